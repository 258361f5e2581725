"""The commands as a user runs them: training, resuming, asking, and every mistake in one line."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from conftest import (
    SHARED,
    lines_of,
    make_model,
    needs_tokenizers,
    pay_for_length,
    run_command,
    run_here,
    without_costs,
    write_questions,
    write_task_folder,
)

import evaluate
from data.prompts import load_tokenizer
from model import save_model
from rl.config import Config
from train import main

DEMO = ("train.py", "--sft-steps", "60", "--eval-limit", "20", "--wandb", "off", "--questions-per-step", "3")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def demo_run(runs) -> Path:
    """Four steps of the demo."""
    done = run_command(*DEMO, "--runs-dir", str(runs), "--run", "demo", "--steps", "4", "--save-every", "2", "--keep", "9")
    assert done.returncode == 0, done.stdout + done.stderr
    (runs / "demo" / "stdout.txt").write_text(done.stdout)
    return runs / "demo"


def test_demo_leaves_a_whole_run_behind(demo_run):
    """Bug guarded: any part of the path from warm start to summary."""
    out = (demo_run / "stdout.txt").read_text()
    for words in ("as rendered", "completions end with: 1 '<|end|>'", "loss near 0 is expected", "P(refine | trial is wrong)"):
        assert words in out
    metrics = lines_of(demo_run / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2, 3, 4]
    expected = {
        "reward", "reward_std", "frac_reward_zero_std", "rewards/format/mean", "rewards/accuracy/mean", "rewards/refine/mean",
        "completions/mean_length", "completions/clipped_ratio", "kl", "entropy", "clip_ratio/region_mean",
        "sampling/sampling_logp_difference/mean", "sampling/importance_sampling_ratio/mean", "num_tokens", "step_time",
        "grad_norm", "learning_rate", "loss", "pasr/refine_frac", "pasr/win", "pasr/plain_accuracy", "pasr/refined_accuracy",
        "pasr/allfail_group_frac", "baseline/sampled", "judge/calls", "time/rollout", "pasr/p_refine_right",
        "perf/rollout_tokens_per_s",
    }  # fmt: skip
    assert expected <= set(metrics[0])
    rollouts = lines_of(demo_run / "rollouts" / "step_000004.jsonl")
    assert len(rollouts) == 3 * 8
    columns = {"id", "mode", "text", "tokens", "finish_reason", "reward", "baseline", "advantage", "policy_version"}
    assert columns <= set(rollouts[0])
    assert {row["policy_version"] for row in rollouts if row["mode"] == "refine"} == {3}
    config = json.loads((demo_run / "config.json").read_text())
    assert {f.name for f in fields(Config)} == set(config["config"])
    assert {"git", "versions"} <= set(config)
    summary = json.loads((demo_run / "summary.json").read_text())
    assert summary["steps"] == 4
    assert {"wall_s", "cpu_s"} <= set(summary)
    assert "P(refine | wrong)" in (demo_run / "report.html").read_text()
    for part in ("before", "after"):
        assert {"greedy/plain_accuracy", "greedy/refined_accuracy"} <= set(summary[part])
        assert {"sampled/p_refine_wrong", "sampled/p_refine_right", "sampled/fix_share"} <= set(summary[part])


def test_resumed_run_equals_an_uninterrupted_one(demo_run, runs, no_report):
    """Bug guarded: an optimizer, a data position or a version that is not restored. Metrics are equal to the last bit."""
    arguments = [*DEMO[1:], "--runs-dir", str(runs), "--run", "cut", "--save-every", "2", "--keep", "9", "--steps", "4"]
    assert main(arguments) == 0
    (runs / "cut" / "summary.json").unlink()
    (runs / "cut" / "checkpoints" / "step_000004" / "COMPLETE").unlink()  # as if the process had died while saving step 4
    assert main([*arguments, "--resume", "auto"]) == 0
    assert without_costs(lines_of(runs / "cut" / "metrics.jsonl")) == without_costs(lines_of(demo_run / "metrics.jsonl"))
    weights = [(run / "checkpoints/step_000004/model.safetensors").read_bytes() for run in (runs / "cut", demo_run)]
    assert weights[0] == weights[1]


def test_resume_of_a_finished_and_of_a_changed_run(demo_run, runs, capsys):
    again = [*DEMO[1:], "--runs-dir", str(runs), "--steps", "4", "--save-every", "2", "--keep", "9", "--resume", "auto"]
    assert main([*again, "--run", "demo"]) == 0
    assert "is finished" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*again, "--run", "demo", "--lr", "1e-3"])
    assert "--lr was 0.0002, is 0.001" in capsys.readouterr().out


def test_existing_run_is_not_overwritten(demo_run, runs, capsys):
    before = {p: p.stat().st_mtime_ns for p in demo_run.rglob("*") if p.is_file()}
    with pytest.raises(SystemExit) as stop:
        main([*DEMO[1:], "--runs-dir", str(runs), "--run", "demo", "--steps", "4"])
    assert stop.value.code == 2
    assert "--resume auto" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in demo_run.rglob("*") if p.is_file()} == before


def test_asking_a_trained_model(demo_run, capsys):
    done = run_here("evaluate.py", "--model", str(demo_run), "--ask", "274/39", "--max-new-tokens", "30")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("refine prompt")
    assert "\nplain prompt" in done.stdout
    with pytest.raises(SystemExit):
        evaluate.main(["--model", str(demo_run), "--ask", "why?"])
    assert "cannot represent" in capsys.readouterr().out


def real_run(tmp_path: Path, family: str = "qwen3") -> list[str]:
    """Flags of two steps from a model folder and a file of questions; the run is tmp_path/r."""
    folder, data = write_task_folder(tmp_path / "model", family), write_questions(tmp_path / "data.jsonl")
    return [
        "--model", str(folder), "--data", str(data), "--judge", "rules", "--steps", "2", "--questions-per-step", "4",
        "--max-new-tokens", "12", "--wandb", "off", "--runs-dir", str(tmp_path), "--run", "r",
    ]  # fmt: skip


@pytest.mark.parametrize("extra", [(), ("--plain-policy", "reference", "--minibatches", "2")])
def test_any_model_folder_and_data_file(tmp_path, family, extra):
    """Bug guarded: what works for the demo's own model only."""
    assert main([*real_run(tmp_path, family), "--group-size", "4", *extra]) == 0
    metrics = lines_of(tmp_path / "r/metrics.jsonl")
    assert len(metrics) == 2
    assert {"pasr/plain_wellformed", "pasr/plain_leak"} <= set(metrics[0]) or extra
    assert (tmp_path / "r/checkpoints/step_000002/model.safetensors").exists()


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_the_temperature_reaches_sampler_and_trainer(tmp_path):
    """Bug guarded: sampling at one temperature and scoring at another, anywhere between flag and loss (released code)."""
    with pytest.MonkeyPatch.context() as patch:
        pay_for_length(patch)
        assert main([*real_run(tmp_path), "--temperature", "0.7", "--adv-norm", "none"]) == 0
    for row in lines_of(tmp_path / "r/metrics.jsonl"):
        assert row["sampling/sampling_logp_difference/max"] < 1e-4


@needs_tokenizers
@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "tokenizer", "judge"), [("qwen2", "qwen2.5", "self"), ("qwen3", "qwen3", "self"), ("qwen3", "qwen3", "rules")]
)
def test_real_vocabulary_and_questions(tmp_path, capsys, family, tokenizer, judge):
    """Bug guarded: what only shows with 151,936 tokens, a real chat template and GSM8K rows."""
    model = make_model(family, torch.float32, vocab_size=151_936, hidden_size=32, num_hidden_layers=1)
    save_model(model, load_tokenizer(SHARED / "tokenizers" / tokenizer), tmp_path / "model")
    arguments = [
        "--model", str(tmp_path / "model"), "--data", str(SHARED / "open_qa" / "gsm8k_train_1500.jsonl"), "--judge", judge,
        "--steps", "2", "--group-size", "4", "--num-plain", "2", "--max-new-tokens", "8", "--questions-per-step", "2",
        "--wandb", "off", "--runs-dir", str(tmp_path), "--run", "r",
    ]  # fmt: skip
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "<|im_start|>assistant" in printed
    assert ("WARNING: this judge does not tell" in printed) == (judge == "self"), "a random model is no judge"
    assert "151645 '<|im_end|>' (" in printed
    assert (tmp_path / "r/checkpoints/step_000002/model.safetensors").exists()


REAL = "--model {tmp}/model --data {tmp}/data.jsonl"
MISTAKES = {  # flags: what is printed
    "--tempreature 1": "unrecognized arguments: --tempreature",
    "--temp 1": "unrecognized arguments",
    "--lr fast": "--lr",
    "--model {tmp}/model --data nowhere.jsonl": "no data file at nowhere.jsonl",
    "--model {tmp}/model --data {tmp}/bad.jsonl": "line 2: 'answer' is missing",
    "--model {tmp}/model --data {tmp}/empty.jsonl": "holds no examples",
    "--model no/such/model --data {tmp}/data.jsonl": "give an existing folder or a hub id",
    "--model nobody/nothing --data {tmp}/data.jsonl": "could not be fetched",
    "--model {tmp}/bare --data {tmp}/data.jsonl": "only safetensors weights",
    "--model {tmp}/model": "could not be downloaded",
    f"{REAL} --group-size 1": "--group-size is 1; it must be at least 2",
    f"{REAL} --max-slots 0": "--max-slots is 0",
    f"{REAL} --temperature 0": "--temperature is 0.0; it must be above 0",
    f"{REAL} --runs-dir {{tmp}}/empty.jsonl/runs": "Choose a writable --runs-dir",
    f"{REAL} --resume auto": "--resume auto needs --run",
    f"{REAL} --resume {{tmp}}": "no complete checkpoint",
    f"{REAL} --zeta nan": "--zeta is nan",
    f"{REAL} --max-grad-norm 0": "--max-grad-norm is 0.0; it must be above 0",
    f"{REAL} --eval-every 5": "needs --eval-benchmarks",
    f"{REAL} --keep-best x": "--keep-best needs --eval-benchmarks",
    f"{REAL} --keep-best x --keep 0 --eval-benchmarks gsm8k": "--keep-best needs --keep 1 or more",
    f"{REAL} --eval-benchmarks gsm8k --eval-limit 0": "--eval-limit",
    "--eval-benchmarks gsm8k": "needs --model",
    f"{REAL} --judge http://localhost:1/v1": "needs --judge-model",
    f"{REAL} --run a/../../b": "leads out of --runs-dir",
}


BARE_IMAGE = """
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
absent = ("math_verify", "latex2sympy2_extended", "rouge_score", "nltk", "wandb", "matplotlib", "pyarrow", "hypothesis")
PathFinder.find_spec = lambda name, *more: None if name.split(".")[0] in absent else find(name, *more)
import evaluate, rl.sft, train
sys.exit(train.main(sys.argv[1:]))
"""


def test_an_image_with_torch_and_transformers_alone_can_train(tmp_path):
    """Bug guarded: an import at the top of something that only a rule, a report or a mirror needs: nothing starts."""
    folder, data = write_task_folder(tmp_path / "model"), tmp_path / "data.jsonl"
    data.write_text('{"question": "12/3", "answer": "four"}\n')
    (tmp_path / "bare.py").write_text(BARE_IMAGE)
    arguments = [
        "--model", str(folder), "--data", str(data), "--judge", "rules", "--steps", "1", "--questions-per-step", "1",
        "--group-size", "2", "--num-plain", "1", "--max-new-tokens", "4", "--runs-dir", str(tmp_path), "--wandb", "off",
    ]  # fmt: skip
    done = run_command(str(tmp_path / "bare.py"), *arguments)
    assert done.returncode == 0, done.stderr
    assert "no report: install what it needs (pip install matplotlib)" in done.stdout + done.stderr


@pytest.fixture(scope="module")
def mistaken(tmp_path_factory) -> Path:
    """A folder with a model, questions, and files that are wrong."""
    path = tmp_path_factory.mktemp("mistaken")
    folder = write_task_folder(path / "model")
    write_questions(path / "data.jsonl")
    (path / "bad.jsonl").write_text('{"question": "1/2", "answer": "0"}\n{"question": "1/2"}\n')
    (path / "empty.jsonl").write_text("")
    (path / "bare").mkdir()
    (path / "bare" / "config.json").write_text((folder / "config.json").read_text())
    return path


@pytest.mark.parametrize(("flags", "words"), MISTAKES.items())
def test_mistakes_end_in_one_line(mistaken, tmp_path, capsys, flags, words):
    """Bug guarded: a traceback, an exit code of 0, a half-made run folder."""
    arguments = flags.format(tmp=mistaken).split()
    where = () if "--runs-dir" in arguments else ("--runs-dir", str(tmp_path / "runs"))
    with pytest.raises(SystemExit) as stop:
        main(["--wandb", "off", *arguments, *where])
    printed = "".join(capsys.readouterr())
    assert stop.value.code == 2, printed
    assert words in printed
    assert "Traceback" not in printed
    assert sum(line.startswith(("error:", "train.py: error:")) for line in printed.splitlines()) == 1
    assert not [path for path in (tmp_path / "runs").glob("*") if path.name != "data"], "a half-made run folder"
