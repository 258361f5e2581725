"""Shared helpers: small models whose greedy text is not degenerate, the demo's tokenizer, command-line runs."""

import io
import json
import os
import runpy
import subprocess
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from threading import RLock

import pytest
import torch
from tqdm import tqdm

import train
from data.division import build_tokenizer, load_split
from data.prompts import Prompts
from model import ModelConfig, Transformer, save_model
from model.config import FAMILIES, RopeScaling

torch.set_num_threads(1)  # models this small run slower on two
ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"
needs_tokenizers = pytest.mark.skipif(
    not (SHARED / "tokenizers").is_dir(), reason="no real tokenizers in ../shared/data/tokenizers"
)

SHAPE = dict(
    vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    rope_theta=5e4,
)  # fmt: skip
SCALING = RopeScaling(factor=4.0, low_freq_factor=1.0, high_freq_factor=3.0, original_max_position_embeddings=10)


def make_config(family: str, **changes) -> ModelConfig:
    special = {"qwen3": {"head_dim": 24}, "llama": {"rope_scaling": SCALING}}.get(family, {})  # 24: not hidden_size / heads
    return ModelConfig(family, **{**SHAPE, "head_dim": 16, **special, **changes})


@torch.no_grad()
def scramble(parameters, seed: int = 0) -> None:
    """Weights large enough that attention, position and every bias matter: at std 0.02 any cache bug goes unseen."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in parameters:
        scale, centre = (0.25, 0.0) if parameter.dim() > 1 else (0.3, 1.0 if "norm" in name else 0.0)
        parameter.normal_(centre, scale, generator=generator)


def make_model(family: str, dtype=torch.float64, seed: int = 0, **changes) -> Transformer:
    model = Transformer(make_config(family, **changes)).to(dtype).eval()
    scramble(model.named_parameters(), seed)
    return model


def random_prompts(lengths, vocab: int = 97, seed: int = 1) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, vocab, (length,), generator=generator).tolist() for length in lengths]


def run_command(*arguments: str, cwd: Path = ROOT, timeout: int = 300) -> subprocess.CompletedProcess:
    """Run a Python script of the repository as a user would, without network and without wandb."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    environment.pop("WANDB_API_KEY", None)
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout
    )


def run_here(*arguments: str) -> subprocess.CompletedProcess:
    """Run a script as `run_command` does, but in this process, without the seconds that imports take."""
    out, err = io.StringIO(), io.StringIO()
    start = partial(runpy.run_module, alter_sys=True) if arguments[0] == "-m" else runpy.run_path
    name, *rest = arguments[1:] if arguments[0] == "-m" else (str(ROOT / arguments[0]), *arguments[1:])
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", [name, *rest])
        patch.delitem(sys.modules, name, raising=False)  # runpy warns of modules that are there already
        with pytest.raises(SystemExit) as ended:
            start(name, run_name="__main__")
    return subprocess.CompletedProcess(arguments, ended.value.code, out.getvalue(), err.getvalue())


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


def write_task_folder(path: Path, family: str = "qwen3", seed: int = 0) -> Path:
    """Write a random model with the embedded task's tokenizer, as a checkpoint folder."""
    tokenizer = build_tokenizer(Prompts())
    model = make_model(family, torch.float32, seed, vocab_size=len(tokenizer), num_hidden_layers=2)
    save_model(model, tokenizer, path)
    return path


def write_questions(path: Path, count: int = 6) -> Path:
    """Write questions of the embedded task as JSONL."""
    rows = [{"question": e.question, "answer": e.reference} for e in load_split(held_out=True)[:count]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def without_costs(rows: list[dict]) -> list[dict]:
    """Return metrics without times and without the number of baselines that were not yet in the cache."""
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "perf/", "step_time", "baseline/"))} for row in rows]


STEPS = 8  # of the runs that are killed and resumed


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("resume")
    write_task_folder(path / "model")
    write_questions(path / "data.jsonl", 7)
    return path


def flags(place: Path, run: str, *more: str) -> list[str]:
    return [
        "--model", str(place / "model"), "--data", str(place / "data.jsonl"), "--runs-dir", str(place / "runs"), "--run", run,
        "--steps", str(STEPS), "--save-every", "2", "--questions-per-step", "2", "--group-size", "4", "--num-plain", "2",
        "--max-new-tokens", "10", "--lr", "1e-2", "--aggregation", "seq", "--adv-norm", "none", "--judge", "rules",
        "--wandb", "off", *more,
    ]  # fmt: skip


def pay_for_length(patch: pytest.MonkeyPatch) -> None:
    """A random model is malformed throughout, and equal rewards are skipped: pay for length, so that every step trains."""
    assign_rewards = train.assign_rewards

    def pay(groups, config):
        assign_rewards(groups, config)
        for sample in (s for g in groups for s in g.refine_samples):
            sample.reward += len(sample.completion.ids) + 0.01 * sample.completion.ids[0]

    patch.setattr(train, "assign_rewards", pay)


@pytest.fixture(scope="module")
def reward_for_length():
    with pytest.MonkeyPatch.context() as patch:
        pay_for_length(patch)
        yield


@pytest.fixture(scope="module")
def no_report():
    """Draw no reports, because twenty charts take longer than all the steps of a run this small. test_report.py draws them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "write_report", lambda folders: None)
        yield


@pytest.fixture(scope="module")
def whole(place, reward_for_length, no_report) -> Path:
    """An uninterrupted run."""
    assert train.main(flags(place, "whole")) == 0
    return place / "runs" / "whole"


def start_child(arguments: list[str], patch=None) -> int:
    """Start train.main in a forked process, with one attribute replaced, and return the process id."""
    child = os.fork()
    if child == 0:
        tqdm.set_lock(RLock())  # the usual one is shared with the parent, who would wait for a killed child for ever
        code = 1
        try:
            if patch is not None:
                setattr(*patch)
            code = train.main(arguments)
        except SystemExit as ended:
            code = ended.code
        except Exception:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return child


def run_in_child(arguments: list[str], patch=None) -> int:
    """Return the exit code of a child, negative if it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(start_child(arguments, patch), 0)[1])


def assert_same_run(run: Path, other: Path) -> None:
    assert without_costs(lines_of(run / "metrics.jsonl")) == without_costs(lines_of(other / "metrics.jsonl"))
    rollouts = [f"rollouts/step_{step:06d}.jsonl" for step in range(1, STEPS + 1)]
    weights = [str(file.relative_to(run)) for file in (run / "checkpoints/step_000008").glob("*model.safetensors")]
    assert len(weights) == 1
    for name in [*rollouts, *weights]:
        assert (run / name).read_bytes() == (other / name).read_bytes(), name
    assert not list(run.rglob("*.part"))
