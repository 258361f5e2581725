"""--plan: arithmetic against real models, what auto takes, and what it says when nothing fits."""

import argparse
import json
import sys
from dataclasses import replace

import pytest
import torch
from conftest import SHARED, make_config, make_model, write_task_folder

import train
from benchmarks.memory import compare, make_folder
from model import ModelConfig
from model.attention import PackedAttention
from rl.config import Config, parse_config
from rl.weights.exact_bf16 import ExactBF16AdamW
from rl.weights.memory import check_memory, decide, plan_run, smallest_change, this_machine
from rl.weights.plan import (
    GIB,
    ITEMS,
    PHASES,
    Machine,
    Plan,
    Shapes,
    backward_bytes,
    forward_bytes,
    host_bytes,
    pinned,
    saved_bytes,
)
from rl.weights.policy import make_optimizer

CPU = torch.device("cpu")
H100, H200 = 79.6 * GIB, 140.4 * GIB
BILLIONS = dict(
    vocab_size=152_064, hidden_size=3584, intermediate_size=18_944, num_hidden_layers=28, num_attention_heads=28,
    num_key_value_heads=4,
)  # fmt: skip
QWEN_7B = ModelConfig("qwen2", **BILLIONS, head_dim=128)


@pytest.fixture(scope="module")
def seven() -> Shapes:
    return Shapes(QWEN_7B)


def settings(**changes) -> Config:
    return replace(Config(preset="default", model="x"), **changes)


def test_parameters_are_those_of_the_model(seven):
    """Bug guarded: a formula for parameters that forgets biases, norms or that the head is tied."""
    assert seven.parameters == 7_615_616_512  # as the model's card says, 7.61 B
    for tied in (False, True):
        model = make_model("qwen2", tie_word_embeddings=tied)
        assert Shapes(model.config).parameters == sum(p.numel() for p in model.parameters())


def test_state_bytes_are_those_of_the_optimizers():
    """Bug guarded: a plan for another optimizer than the one that is used."""
    for mode in ("shard", "exact-bf16"):
        model = make_model("qwen3", torch.float32)
        config, shapes = settings(memory=mode, beta=0.0, judge="rules"), Shapes(model.config)
        optimizer = make_optimizer(model, config)
        assert isinstance(optimizer, ExactBF16AdamW) == (mode == "exact-bf16")
        items = decide(shapes, config, Machine(1, H100)).table["update"]
        state = sum(t.nbytes for s in optimizer.state.values() for name, t in s.items() if name != "step")
        assert items["optimizer"] == state
        assert items["weights"] - sum(p.nbytes for p in model.parameters()) in (0, 2 * shapes.parameters)  # the copy
        assert items["gradients"] == 4 * shapes.parameters


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_bytes_are_what_autograd_keeps(family, dtype):
    """Bug guarded: activation memory of a layer that is off, which is what decides whether a micro-batch fits."""
    config = make_config(family, hidden_size=128, intermediate_size=320)
    model = make_model(family, dtype, hidden_size=128, intermediate_size=320)
    tokens, kept = 64, {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    block, attention = model.model.layers[0], PackedAttention.of_sequences([tokens // 2] * 2, torch.device("cpu"))
    x = torch.randn(1, tokens, 128, dtype=dtype, requires_grad=True)
    cos, sin = (torch.ones(1, tokens, 1, config.head_dim, dtype=dtype) for _ in range(2))
    weights |= {cos.untyped_storage().data_ptr(), sin.untyped_storage().data_ptr()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = block(x, cos, sin, attention)
    measured = sum(storage.nbytes() for storage in kept.values())
    planned = tokens * saved_bytes(config, dtype.itemsize, padded=True)
    assert planned == pytest.approx(measured, rel=0.1)
    assert out.requires_grad


def test_items_add_up_and_every_phase_has_them(seven):
    plan = decide(seven, settings(), Machine(4, H100))
    assert tuple(plan.table) == PHASES
    for phase, items in plan.table.items():
        assert tuple(items) == ITEMS
        assert plan.sums[phase] == sum(items.values())
        assert all(value >= 0 for value in items.values())


def test_the_arithmetic_of_a_7b_model_by_hand(seven):
    """Bug guarded: a factor of two anywhere; the figures are worked out by hand from 7.616e9 parameters."""
    config = settings(memory="shard", activation_checkpointing=True, max_slots=256)
    update, rollout = (Plan(seven, config, Machine(2, H100)).table[phase] for phase in ("update", "rollout"))
    in_gib = {name: value / GIB for name, value in update.items()}
    assert in_gib["weights"] == pytest.approx(4 * 7.616 / 2 / 1.0737, rel=1e-3)
    assert in_gib["gradients"] == pytest.approx(14.19, abs=0.01)
    assert in_gib["optimizer"] == pytest.approx(28.37, abs=0.01)
    assert in_gib["reference"] == pytest.approx(7.09, abs=0.01)
    assert (rollout["weights"] - update["weights"]) / GIB == pytest.approx(14.19, abs=0.01)  # the sampler's copy
    assert rollout["KV cache"] == 57_344 * 256 * (1500 + 1024)
    # 28 layers keep 7,168 bytes a token, and one runs: 225 kB kept, 157 kB of gradients
    assert saved_bytes(QWEN_7B, 2, padded=False) == 57_344 + 16_384 + 151_552
    assert backward_bytes(QWEN_7B, 2) == 113_664 + 43_008
    assert forward_bytes(QWEN_7B, 2) == 113_664 + 14_336 + 2 * 38 * 128


def test_a_sharded_reference_is_whole_while_it_judges_or_writes(seven):
    """Bug guarded: a whole copy beside the sampler's that the plan did not count."""
    config, machine = settings(memory="shard", max_slots=64), Machine(4, H100)
    part = 2 * seven.parameters / 4
    for changes, phase in (({"judge": "self"}, "judge"), ({"judge": "rules", "plain_policy": "reference"}, "rollout")):
        plans = (Plan(seven, replace(config, **changes), machine, keep_copy=keep) for keep in (True, False))
        kept, freed = (plan.table[phase] for plan in plans)
        assert kept["weights"] + kept["reference"] == (4 + 2 * 4 + 2 * 4) * seven.parameters / 4 + part
        assert freed["weights"] + freed["reference"] == (4 + 2 * 4) * seven.parameters / 4 + part
    update = Plan(seven, replace(config, plain_policy="reference"), machine).table["update"]
    assert update["reference"] == part


def test_a_reference_that_nobody_needs_takes_nothing(seven):
    items = decide(seven, settings(beta=0.0, judge="rules"), Machine(1, H200)).table["update"]
    assert items["reference"] == 0
    assert decide(seven, settings(judge="rules"), Machine(1, H200)).table["update"]["reference"] > 0


@pytest.mark.parametrize(
    ("gpus", "gpu", "host", "mode"),
    [(1, H100, 256, "offload"), (1, H200, 256, "exact-bf16"), (2, H100, 256, "shard"), (8, H100, None, "shard")],
)
def test_auto_runs_a_7b_model_on_every_machine_of_the_readme(seven, gpus, gpu, host, mode):
    """Bug guarded: the command of the README that ends in an error, or in a mode that is slow for no reason."""
    plan = check_memory(seven, settings(), Machine(gpus, gpu, host and host * GIB))
    assert plan.config.memory == mode
    assert plan.fits
    assert max(plan.sums.values()) <= 0.95 * gpu


def test_more_memory_never_means_a_smaller_batch(seven):
    """Bug guarded: a search that misses a plan which fits."""
    for gpus in (1, 2, 4):
        sizes = [decide(seven, settings(memory="shard"), Machine(gpus, g * GIB)).fits for g in range(10, 300, 10)]
        assert sizes == sorted(sizes)


def test_auto_lowers_numbers_and_a_named_mode_does_not(seven):
    """Bug guarded: flags that are overridden although the mode was chosen by hand."""
    config = settings(memory="shard", max_slots=256)
    assert decide(seven, config, Machine(2, H100)).config == config
    with pytest.raises(ValueError, match=r"it does not fit: --memory shard: .* needs .* GiB"):
        check_memory(seven, config, Machine(2, H100))
    auto = check_memory(seven, replace(config, memory="auto"), Machine(2, H100)).config
    assert auto.max_slots < config.max_slots


def test_slots_left_to_auto_are_fitted_in_a_named_mode(seven):
    """Bug guarded: a run refused for want of room for 256 slots that nobody asked for."""
    named, machine = settings(memory="shard", activation_checkpointing=True), Machine(2, H100)
    assert not decide(seven, replace(named, max_slots=256), machine).fits
    plan = check_memory(seven, named, machine)
    assert plan.config == replace(named, max_slots=plan.config.max_slots)
    assert plan.config.max_slots < 256


@pytest.mark.parametrize("gpus", [1, 2, 4])
@pytest.mark.parametrize("mode", ["shard", "exact-bf16", "offload"])
def test_the_flags_that_are_named_work(seven, gpus, mode):
    """Bug guarded: advice that does not help. What is named is given to the command line, and must fit."""
    machine, given = Machine(gpus, H100, 400 * GIB), ["--model", "x", "--memory", mode]
    plan = decide(seven, parse_config(given), machine)
    if not plan.fits:
        text = smallest_change(plan, parse_config(given))
        assert text.startswith("--")
        assert check_memory(seven, parse_config([*given, *text.split()]), machine).fits


def test_more_of_a_machine_is_named_where_no_flag_helps(seven):
    """Bug guarded: the same for hardware; with less than what is named it must not fit."""
    small = Machine(1, H100, 64 * GIB)
    with pytest.raises(ValueError, match=r"works: \d+ GiB of host memory a node") as refused:
        check_memory(seven, settings(), small)
    needed = int(str(refused.value).split("works: ")[1].split()[0])
    assert decide(seven, settings(), replace(small, host_bytes=needed * GIB)).fits
    assert not decide(seven, settings(), replace(small, host_bytes=(needed - 2) * GIB)).fits
    with pytest.raises(ValueError, match=r"works: 4 such GPUs"):
        check_memory(seven, settings(memory="shard", activation_checkpointing=True, max_slots=256), small)
    with pytest.raises(ValueError, match=r"works: a smaller --model"):
        check_memory(seven, settings(), Machine(1, 12 * GIB))


def test_pinned_memory_is_rounded_up(seven):
    """Bug guarded: a host that runs full because torch rounds each pinned tensor up to a power of two."""
    plan = Plan(seven, settings(memory="offload"), Machine(1, H100))
    assert [pinned(count, 4) for count in (3, 4, 5)] == [16, 16, 32]
    assert 22 * seven.parameters < host_bytes(plan) < 28 * seven.parameters


def test_the_demo_fits_this_machine():
    """Bug guarded: a check that refuses a laptop."""
    machine = this_machine(torch.device("cpu"))
    assert machine.gpu_bytes > GIB / 4
    config = replace(parse_config([]), memory="auto", max_slots=128)
    plan = check_memory(Shapes(make_config("qwen3")), config, machine)
    assert plan.config == replace(config, memory="shard")


def test_plan_prints_a_table_and_loads_nothing(tmp_path, capsys):
    """Bug guarded: a table that a terminal of 100 columns breaks; weights that have to be there."""
    file = tmp_path / "config.json"
    file.write_text(json.dumps(QWEN_7B.to_hf("bfloat16")))
    for where in (file, tmp_path):
        arguments = ["--model", str(where), "--plan", "--gpus", "2", "--gpu-gib", "79.6", "--host-gib", "256"]
        assert train.main(arguments) == 0
        said = capsys.readouterr().out
        assert max(map(len, said.splitlines()[1:])) <= 100
        for word in (
            *PHASES,
            "KV cache",
            "optimizer",
            "left",
            "auto takes: --memory shard",
            "host memory of a node",
            "disk for 2 checkpoints",
        ):
            assert word in said
    assert train.main([*arguments[:3], "--gpus", "1", "--gpu-gib", "24", "--host-gib", "64"]) == 0
    assert "smallest change that works: " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        train.main(["--model", str(tmp_path / "nothing"), "--plan"])
    assert "no config.json" in capsys.readouterr().out


def test_a_run_is_planned_before_its_weights_are_there(tmp_path, capsys):
    """Bug guarded: a model of a hundred gigabytes that is loaded first and refused then."""
    huge = replace(QWEN_7B, intermediate_size=200 * QWEN_7B.intermediate_size)
    assert plan_run(settings(judge="rules", beta=0.0, max_slots=8), write_task_folder(tmp_path / "small"), CPU).fits
    assert "memory: auto takes: --memory shard" in capsys.readouterr().out
    (tmp_path / "config.json").write_text(json.dumps(huge.to_hf("bfloat16")))
    with pytest.raises(ValueError, match="smallest change that works: a smaller --model"):
        plan_run(settings(), tmp_path, CPU)


@pytest.mark.skipif(not (SHARED / "configs").is_dir(), reason="no model configurations in ../shared/data/configs")
def test_real_configurations():
    counts = {"qwen2.5-7b": 7.616, "qwen3-8b": 8.191, "qwen2.5-14b": 14.770, "qwen2.5-0.5b": 0.494, "qwen3-0.6b": 0.596}
    for name, billions in counts.items():
        config = ModelConfig.from_hf(json.loads((SHARED / "configs" / f"{name}.json").read_text()))
        assert Shapes(config).parameters / 1e9 == pytest.approx(billions, abs=5e-4)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads peaks from /proc")
def test_planned_peaks_are_the_measured_ones(tmp_path):
    """Bug guarded: a plan that says nothing about what a run really takes."""
    args = argparse.Namespace(
        shape=None, hidden=512, layers=4, vocabulary=16_000, questions=6, max_new_tokens=64, micro_batch_tokens=1024, flags=""
    )
    for phase, (planned, measured) in compare(make_folder(tmp_path, args), args, ["--run", "r"]).items():
        assert planned == pytest.approx(measured, rel=0.25), phase
