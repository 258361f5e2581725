"""Slots chosen from free memory."""

from dataclasses import replace

import pytest
import torch
from conftest import make_model, write_questions, write_task_folder

import rl.session
import rl.slots
from model.kv_cache import KVCache, kv_bytes_per_token
from rl.config import parse_config
from rl.records import Request
from rl.sampler import Sampler
from rl.slots import MOST_SLOTS, USED_SHARE, draw_bytes, free_bytes, prefill_bytes, slots_that_fit
from rl.weights.memory import plan_run

REQUESTS = [Request([5] * 40, 30, 20, 1.0, 0)]


def least_free(model) -> int:
    """The least free memory in which one row of REQUESTS fits."""
    row = 60 * kv_bytes_per_token(model.config, torch.float64) + draw_bytes(model.config, 20)
    return round((row + prefill_bytes(model.config, torch.float64, 40)) / USED_SHARE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_bytes_per_token_are_those_of_the_caches(family, dtype):
    """Bug guarded: an estimate that forgets the values, the layers, or counts query heads."""
    config = make_model(family).config
    place = dict(dtype=dtype, device=torch.device("cpu"))
    per_token = kv_bytes_per_token(config, dtype)
    assert KVCache(config, slots=3, max_len=7, **place).kv.nbytes == 3 * 7 * per_token


def test_slots_follow_free_memory(monkeypatch, capsys):
    """Bug guarded: a cache larger than what is free; a line that does not say why."""
    model = make_model("qwen2")
    row = 60 * kv_bytes_per_token(model.config, torch.float64)
    found = []
    for free in (2_000_000, 4_000_000, 2**40):
        monkeypatch.setattr(rl.slots, "free_bytes", lambda device, free=free: free)
        slots, line = slots_that_fit(model, REQUESTS)
        assert slots * row < free
        assert line.startswith(f"sampler: {slots:,} rows at once of ")
        assert len(line) < 100
        assert slots < 16 or slots % 16 == 0, "a little more memory makes no other batch"
        found.append(slots)
    assert 0 < found[0] < found[1] < found[2] == MOST_SLOTS
    monkeypatch.setattr(rl.slots, "free_bytes", lambda device: 2_000_000)
    sampler = Sampler(model, stop_ids=[0], max_slots="auto", max_len=64)
    fixed = Sampler(model, stop_ids=[0], max_slots=64, max_len=64)
    for _ in range(2):
        assert [c.ids for c in sampler.generate(REQUESTS)[0]] == [c.ids for c in fixed.generate(REQUESTS)[0]]
    assert capsys.readouterr().out.count("rows at once") == 1, "said once, and again when it changes"

    least = least_free(model)
    for free in (1000, least - 2):
        monkeypatch.setattr(rl.slots, "free_bytes", lambda device, free=free: free)
        with pytest.raises(ValueError, match=r"not one row fits.* Lower --max-new-tokens"):
            sampler.generate(REQUESTS)
    monkeypatch.setattr(rl.slots, "free_bytes", lambda device: least + 2)
    assert slots_that_fit(model, REQUESTS)[0] == 1


def test_free_memory_is_read():
    """Bug guarded: kilobytes taken for bytes."""
    assert 2**24 < free_bytes(torch.device("cpu")) < 2**50


def test_the_flag():
    """Bug guarded: "auto" refused, a number taken for text."""
    model = ["--model", "m"]
    for given, wanted in (([], "auto"), (["--max-slots", "auto"], "auto"), (["--max-slots", "12"], 12)):
        assert parse_config([*model, *given]).max_slots == wanted
    with pytest.raises(SystemExit):
        parse_config(["--max-slots", "many"])


@pytest.mark.parametrize(("given", "used"), [("8", 3), ("auto", "auto")])
def test_a_run_samples_with_the_slots_of_its_plan(tmp_path, monkeypatch, given, used):
    """Bug guarded: slots that the plan lowered, said so, and nobody used."""

    def lowered(config, source, device):
        plan = plan_run(config, source, device)
        return replace(plan, config=replace(plan.config, max_slots=3))

    monkeypatch.setattr(rl.session, "plan_run", lowered)
    folder, data = write_task_folder(tmp_path / "model"), write_questions(tmp_path / "data.jsonl")
    where = ["--model", str(folder), "--data", str(data), "--runs-dir", str(tmp_path), "--run", "r"]
    session = rl.session.open_session(parse_config([*where, "--judge", "rules", "--max-slots", given]))
    session.run.close()
    assert session.rollout.sampler.max_slots == used


def test_processes_of_one_machine_share_its_memory(monkeypatch):
    """Bug guarded: two ranks on a CPU that each take nine tenths of the same memory."""
    alone = free_bytes(torch.device("cpu"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert free_bytes(torch.device("cpu")) < alone / 4
