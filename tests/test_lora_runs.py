"""Runs with --lora-rank: one copy of the weights for all, kills and resumes, and what other programs make of them."""

import json
import os
import re
import shutil
import signal
from contextlib import closing

import pytest
import torch
from conftest import ROOT, assert_same_run, flags, lines_of, run_here, run_in_child, without_costs
from transformers import AutoModelForCausalLM

import train
from model import ModelConfig, load_model
from model.folder import base_folder, is_adapter
from model.lora import TARGETS, adapter_parameters
from rewards.judge import RuleScorer
from rl.config import parse_config
from rl.session import open_session
from rl.weights.memory import decide
from rl.weights.plan import GIB, Machine, Plan, Shapes

LORA = ("--lora-rank", "4", "--lora-alpha", "8")
IDS = torch.arange(2, 14)[None]


@pytest.fixture(scope="module")
def adapted(place, reward_for_length, no_report):
    """An uninterrupted run with adapters; its base's folder has an adapter of one step beside it."""
    assert train.main(flags(place, "adapted", *LORA)) == 0
    folder = place / "adapter"
    shutil.copytree(place / "runs/adapted/checkpoints/step_000008", folder, ignore=shutil.ignore_patterns("state", "COMPLETE"))
    return place / "runs/adapted"


def opened(place, name, *more):
    session = open_session(parse_config(flags(place, name, *more)))
    session.run.close()
    return session


def storages(*models) -> dict[int, int]:
    """Return address and elements of all memory that models hold."""
    return {p.untyped_storage().data_ptr(): p.numel() for model in models for p in model.parameters()}


@torch.no_grad()
def logits(model):
    return model.logits(model(IDS))


def test_one_copy_of_the_weights_serves_all(place, monkeypatch):
    """Bug guarded: a second model for reference, judge or sampler, which a 24 GB card has no room for."""
    judges = []
    monkeypatch.setattr("rl.judging.judge.LocalJudge", lambda model, *_, **__: judges.append(model) or RuleScorer())
    session = opened(place, "one-copy", *LORA, "--judge", "self", "--plain-policy", "reference", "--beta", "0.1")
    policy, rollout = session.state.policy, session.rollout
    writer = rollout.fill_baselines.sampler.model
    base = sum(p.numel() for p in load_model(place / "model").parameters())
    adapters = sum(p.numel() for p in adapter_parameters(policy).values())
    everything = storages(policy, session.state.reference, rollout.sampler.model, writer, judges[0])
    assert sum(everything.values()) == base + adapters
    assert rollout.sampler.model is policy
    assert torch.equal(logits(session.state.reference), logits(load_model(place / "model")))
    assert len(session.state.optimizer.state) == len(adapter_parameters(policy)) == 2 * len(TARGETS) * 2


def test_adapters_learn_and_the_base_does_not(place, adapted):
    """Bug guarded: a run that trains nothing; a reference that moves."""
    base, model = load_model(place / "model"), load_model(adapted / "checkpoints/step_000008")
    for name, parameter in base.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)), name
    moved = [name for name, p in adapter_parameters(model).items() if ".lora_B." in name and p.abs().max() > 0]
    assert len(moved) == len(adapter_parameters(model)) / 2
    rows = lines_of(adapted / "metrics.jsonl")
    assert rows[0]["kl"] == 0 < rows[-1]["kl"]


@pytest.mark.parametrize("number", [3, 6])
def test_killed_and_resumed(place, adapted, number):
    """Bug guarded: adapters or moments that are not restored to the bit; a base that is trained on from a checkpoint."""
    step, calls = train.optimizer_step, []

    def killed(*args):
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        step(*args)

    name = f"killed-{number}"
    assert run_in_child(flags(place, name, *LORA), (train, "optimizer_step", killed)) == -signal.SIGKILL
    assert train.main(flags(place, name, *LORA, "--resume", "auto")) == 0
    assert_same_run(place / "runs" / name, adapted)


def test_checkpoints_hold_adapters_alone(place, adapted, capsys):
    """Bug guarded: 91 GB of state for adapters of 40 MB, or a size told that is another one."""
    checkpoint = adapted / "checkpoints/step_000008"
    trained = sum(p.numel() for p in adapter_parameters(load_model(checkpoint)).values())
    sizes = [sum(f.stat().st_size for f in path.glob("*.safetensors")) for path in (checkpoint, checkpoint / "state")]
    assert 4 * trained < sizes[0] < 4 * trained + 10_000
    assert 12 * trained < sizes[1] < 12 * trained + 40_000
    opened(place, "sizes", *LORA)
    assert re.search(rf"{12 * trained / 1e6:.1f} MB of state", capsys.readouterr().out)


def test_evaluate_export_and_transformers(place, adapted, tmp_path):
    """Bug guarded: a run that cannot be asked; a merged folder that says something else than the run."""
    checkpoint = adapted / "checkpoints/step_000008"
    asked = run_here("evaluate.py", "--model", str(adapted), "--ask", "7/2", "--max-new-tokens", "5")
    assert "plain prompt" in asked.stdout, asked.stderr
    for flag, out in (([], "as-it-is"), (["--merge"], "merged")):
        done = run_here("-m", "rl.export", str(adapted), str(tmp_path / out), *flag)
        assert done.returncode == 0, done.stderr
    assert {f.name for f in checkpoint.iterdir()} - {f.name for f in (tmp_path / "as-it-is").iterdir()} == {"state", "COMPLETE"}
    assert not is_adapter(tmp_path / "merged")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, logits(load_model(checkpoint)), atol=1e-5, rtol=1e-5)
    again = run_here("-m", "rl.export", str(adapted), str(tmp_path / "merged"), "--merge")
    assert again.returncode == 2
    assert "exists; choose another folder" in again.stdout + again.stderr


def test_an_adapter_is_a_start(place, adapted):
    """Bug guarded: a reference without the adapter that the policy began with, or one that moves with it."""
    folder = place / "adapter"
    session = opened(place, "from-adapter", *LORA, "--model", str(folder), "--beta", "0.1")
    state = session.state
    assert torch.equal(logits(state.policy), logits(load_model(folder)))
    assert torch.equal(logits(state.reference), logits(state.policy))
    with torch.no_grad():
        next(iter(adapter_parameters(state.policy).values())).add_(1)
    assert torch.equal(logits(state.reference), logits(load_model(folder)))
    assert train.main(flags(place, "on", *LORA, "--model", str(folder))) == 0
    assert base_folder(place / "runs/on/checkpoints/step_000008") == place / "model"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--lora-rank", "49"], "rank 49: choose from 1 to 48, or other targets"),
        (["--lora-rank", "4", "--lora-targets", "q_proj,gate"], "named 'gate': choose from q_proj"),
        (["--lora-rank", "-1"], "--lora-rank is -1; it must be at least 0"),
        (["--lora-rank", "4", "--memory", "offload"], "--memory offload .*leave it out"),
        (["--lora-rank", "8", "--model", "adapter"], "is an adapter: train it on with --lora-rank 4 --lora-alpha 8 --lora-t"),
        (["--model", "adapter"], "is an adapter: train it on with --lora-rank 4"),
        (["--run", "full", *LORA, "--resume", "auto"], "--lora-rank was 0, is 4"),
        (
            ["--run", "full", *LORA, "--resume", "auto", "--resume-with-changes"],
            "go on with --memory shard or .*without --lora",
        ),
        (["--run", "adapted-2", "--resume", "auto", "--resume-with-changes"], "go on with the --lora-rank of that run"),
        (["--run", "adapted-2", "--lora-rank", "2", "--resume", "auto", "--resume-with-changes"], "another model: .*[Ss]ize"),
    ],
    ids=str,
)
def test_bad_input_is_told_in_a_line(place, adapted, whole, more, message, capsys):
    """Bug guarded: a traceback, or a run that trains something else than its flags say."""
    for name, run in (("full", whole), ("adapted-2", adapted)):
        if not (place / "runs" / name).exists():
            shutil.copytree(run, place / "runs" / name)
            (place / "runs" / name / "summary.json").unlink()
    more = [str(place / "adapter") if word == "adapter" else word for word in more]
    before = {f: f.stat().st_mtime_ns for f in (place / "runs").rglob("*") if f.name != ".lock"}
    with pytest.raises(SystemExit) as ended:
        train.main(flags(place, "bad", *more))
    said = capsys.readouterr()
    assert ended.value.code == 2
    lines = [line for line in (said.out + said.err).splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert re.search(message, " ".join((said.out + said.err).split())), said
    assert before == {f: f.stat().st_mtime_ns for f in before}


def test_learning_rates_of_adapters():
    """Bug guarded: adapters at the rate of full fine-tuning, with which they hardly move."""
    rates = [parse_config([*more]).lr for more in ([], ["--lora-rank", "2"], ["--model", "m", *LORA], [*LORA, "--lr", "1e-3"])]
    assert rates == [2e-4, 2e-3, 1e-5, 1e-3]


def test_fine_tuning_with_adapters(place, adapted, tmp_path):
    """Bug guarded: rl.sft that trains the whole model, or leaves a folder that train.py cannot start from."""
    run = tmp_path / "run"
    (run / "rollouts").mkdir(parents=True)
    shutil.copy(adapted / "config.json", run / "config.json")
    good = {
        "id": "7/2", "question": "7/2", "reference": "3", "mode": "refine", "tokens": 9, "finish_reason": "stop", "ids": None,
        "text": "<think>4:008><refine>3:006<</refine></think><answer>3</answer>", "format": 1.0, "accuracy": 1.0, "refine": 1.0,
        "reward": 3.0, "baseline": 0.25, "policy_version": 5,
    }  # fmt: skip
    (run / "rollouts/step_000001.jsonl").write_text(json.dumps(good) + "\n")
    tuned = run_here("-m", "rl.sft", "--from-rollouts", str(run), "--epochs", "4", *LORA)
    assert tuned.returncode == 0, tuned.stderr
    record = json.loads((run / "ift/sft.json").read_text())
    assert record["recipe"]["lr"] == 1e-4
    assert record["losses"][-1] < record["losses"][0]
    with closing(open_session(parse_config(flags(place, "ift", *LORA, "--model", str(run / "ift")))).run):
        assert base_folder(run / "ift") == place / "model"


def test_the_plan_counts_one_model_and_its_adapters(place):
    """Bug guarded: a plan with a copy, a reference or gradients of the whole model, or one that forgets the adapters."""
    model = load_model(place / "model")
    config = parse_config(flags(place, "plan", *LORA, "--judge", "self", "--max-slots", "8"))
    shapes = Shapes(model.config, config)
    count = sum(p.numel() for p in model.parameters())
    for gpus in (1, 4):
        table = Plan(shapes, config, Machine(gpus, 2**40)).table
        assert table["weights"] == (2 * count + 4 * shapes.adapters,) * 4
        assert table["gradients"] == (0, 0, 0, 4 * shapes.adapters)
        assert table["optimizer"] == (8 * shapes.adapters,) * 4
        assert not any(table["reference"])
        assert not any(table["gathered"])


MODELS = {
    "Qwen2.5-7B": ModelConfig("qwen2", 152_064, 3584, 18_944, 28, 28, 4, 128),
    "Qwen2.5-14B": ModelConfig("qwen2", 152_064, 5120, 13_824, 48, 40, 8, 128),
    "Qwen2.5-0.5B": ModelConfig("qwen2", 151_936, 896, 4864, 24, 14, 2, 64, tie_word_embeddings=True),
    "Qwen2.5-1.5B": ModelConfig("qwen2", 151_936, 1536, 8960, 28, 12, 2, 128, tie_word_embeddings=True),
    "Qwen2.5-3B": ModelConfig("qwen2", 151_936, 2048, 11_008, 36, 16, 2, 128, tie_word_embeddings=True),
    "Qwen2.5-32B": ModelConfig("qwen2", 152_064, 5120, 27_648, 64, 40, 8, 128),
}


def test_the_table_of_adapters_is_what_auto_takes():
    """Bug guarded: a 24 GB card that is promised a model which does not fit on it; stale figures."""
    text = (ROOT / "docs/training.md").read_text()
    rows = re.findall(r"^\| (Qwen\S+) LoRA \| (\d+) GB \| (.*) \|$", text, flags=re.M)
    assert len(rows) == 9
    config = parse_config(["--model", "x", "--lora-rank", "16"])
    for name, size, rest in rows:
        machine = Machine(1, {"24": 23.6 * GIB, "48": 47.4 * GIB, "80": 79.6 * GIB}[size], 8 * GIB)
        plan = decide(Shapes(MODELS[name], config), config, machine)
        recompute = "yes" if plan.config.activation_checkpointing else "no"
        numbers = [f"{plan.config.micro_batch_tokens:,}", str(plan.config.max_slots)]
        assert rest.split(" | ") == [recompute, *numbers, *(f"{b / GIB:.1f}" for b in plan.sums.values())]
        assert plan.fits


def test_what_does_not_fit_is_offered_adapters(place, capsys):
    """Bug guarded: 7B on 24 GB that ends with advice to buy GPUs."""
    shape = dict(
        model_type="qwen2", hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4, vocab_size=152064, tie_word_embeddings=False, max_position_embeddings=32768, rope_theta=1e6,
        rms_norm_eps=1e-6,
    )  # fmt: skip
    (place / "7b.json").write_text(json.dumps(shape))
    machine = ["--plan", "--gpus", "1", "--gpu-gib", "23.6", "--host-gib", "128"]
    told = []
    for more in ([], ["--lora-rank", "16"]):
        assert train.main(["--model", str(place / "7b.json"), *machine, *more]) == 0
        told.append(" ".join(capsys.readouterr().out.split()))
    assert "adapters would fit: --lora-rank 16; smallest change that works: " in told[0]
    assert "auto takes: --activation-checkpointing" in told[1]
    assert "the reference is the same model without adapters" in told[1]
    assert "40.4 M in adapters" in told[1]


def test_metrics_are_those_of_any_run(adapted, whole):
    """Bug guarded: a metric that a run with adapters lacks."""
    ours, theirs = (
        {name for row in without_costs(lines_of(run / "metrics.jsonl")) for name in row} for run in (adapted, whole)
    )
    assert ours == theirs
