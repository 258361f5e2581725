"""Compare the measured peaks of a real run's phases with what `--plan` says, the arithmetic of rl/weights/plan.py.

    python benchmarks/memory.py                                     # a random model of 55 M parameters, on this machine
    python benchmarks/memory.py --layers 16 --micro-batch-tokens 4096
    python benchmarks/memory.py --shape 3b --flags "--memory exact-bf16"                   # on a GPU

Runs `train.py` for two steps in a process of its own, once without and once with activation checkpointing. Peaks are the
resident memory of that process on a CPU, and what torch has allocated on a GPU, beyond what it was before the run; the plan's
constant for the runtime is left out.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from functools import wraps
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train
from benchmarks.workload import SHAPES, model_config
from data.division import build_tokenizer, load_split
from data.prompts import Prompts
from model import ModelConfig, Transformer, save_model
from model.checkpoint import read_json
from rl.config import parse_config
from rl.distributed import pick_device
from rl.rollout import Rollout
from rl.weights.memory import decide, this_machine
from rl.weights.plan import CPU_RUNTIME, GIB, GPU_RUNTIME, Shapes

PHASES = {
    "rollout": (Rollout, "collect"),
    "reference": (train, "token_logprobs"),  # those without gradient, which come before all others of a step
    "update": (train, "update_policy"),
}


def make_folder(path: Path, args: argparse.Namespace) -> Path:
    """Write a random model with the embedded task's tokenizer, and questions."""
    if args.shape in SHAPES:
        config = model_config(args.shape)
    elif args.shape:
        config = ModelConfig.from_hf(read_json(Path(args.shape)))
    else:
        shape = dict(hidden_size=args.hidden, intermediate_size=11 * args.hidden // 4, num_hidden_layers=args.layers)
        heads = dict(num_attention_heads=args.hidden // 64, num_key_value_heads=max(1, args.hidden // 256), head_dim=64)
        config = ModelConfig("qwen2", vocab_size=args.vocabulary, **shape, **heads)
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(0))
    save_model(model, build_tokenizer(Prompts()), path / "model", dtype=torch.bfloat16)
    rows = [{"question": e.question, "answer": "a word"} for e in load_split(held_out=True)[: args.questions]]
    (path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def command_line(path: Path, args: argparse.Namespace, more: list[str]) -> list[str]:
    return [
        "--model", str(path / "model"), "--data", str(path / "data.jsonl"), "--runs-dir", str(path / "runs"),
        "--judge", "rules", "--steps", "2", "--keep", "0", "--wandb", "off",
        "--questions-per-step", str(args.questions), "--group-size", "8", "--num-plain", "8",
        "--max-prompt-tokens", "64", "--max-new-tokens", str(args.max_new_tokens),
        "--micro-batch-tokens", str(args.micro_batch_tokens), "--memory", "shard", *args.flags.split(), *more,
    ]  # fmt: skip


class Peaks:
    """The highest memory of each phase over a run, in bytes."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peaks = {"before": self.read()}

    def read(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024

    def reset(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the high-water mark

    def watch(self, phase: str, owner: type, name: str) -> None:
        original = getattr(owner, name)

        @wraps(original)
        def watched(*arguments, **named):
            if phase == "reference" and torch.is_grad_enabled():
                return original(*arguments, **named)
            self.reset()
            result = original(*arguments, **named)
            self.peaks[phase] = max(self.peaks.get(phase, 0), self.read())
            return result

        setattr(owner, name, watched)


def pay_for_length(groups, config) -> None:
    """Pay for something, because random weights earn nothing and equal rewards are not trained on."""
    for group in groups:
        for index, sample in enumerate(group.refine_samples):
            sample.reward, sample.format, sample.refine = float(index), -1.0, 0.0


def measure(arguments: list[str]) -> None:
    """Run in the child process, and print the peaks as the last line."""
    peaks = Peaks(pick_device("auto"))
    for phase, (owner, name) in PHASES.items():
        peaks.watch(phase, owner, name)
    train.assign_rewards = pay_for_length
    train.main(arguments)
    print(json.dumps(peaks.peaks))


def compare(path: Path, args: argparse.Namespace, more: list[str]) -> dict[str, tuple[float, float]]:
    """Return planned and measured GiB of each phase."""
    arguments = command_line(path, args, more)
    config = parse_config(arguments)
    device = pick_device(config.device)
    shapes = Shapes(ModelConfig.from_hf(read_json(path / "model" / "config.json")))
    plan = decide(shapes, config, this_machine(device))
    # memory that is freed goes back to the system, so that a phase's peak is its own
    environment = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": "1048576",
        "MALLOC_TRIM_THRESHOLD_": "1048576",
        "OMP_NUM_THREADS": "1",
    }
    child = [sys.executable, __file__, "--measure", *arguments]
    done = subprocess.run(child, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the run failed:\n{done.stdout}\n{done.stderr}")
    peaks = json.loads(done.stdout.splitlines()[-1])
    runtime = GPU_RUNTIME if device.type == "cuda" else CPU_RUNTIME
    return {phase: ((plan.sums[phase] - runtime) / GIB, (peaks[phase] - peaks["before"]) / GIB) for phase in PHASES}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", help="a size of benchmarks/workload.py or a config.json; default: by the flags below")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--questions", type=int, default=4)
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--micro-batch-tokens", type=int, default=2048)
    parser.add_argument("--flags", default="", help="more flags of train.py")
    return parser.parse_args()


def main() -> None:
    args = parse()
    with tempfile.TemporaryDirectory() as folder:
        path = make_folder(Path(folder), args)
        print(f"{'GiB':<44}{'planned':>10}{'measured':>10}{'error':>9}")
        for more in (["--no-activation-checkpointing"], ["--activation-checkpointing"]):
            for phase, (planned, measured) in compare(path, args, [*more, "--run", more[0].strip("-")]).items():
                print(f"{more[0]:<34}{phase:<10}{planned:>10.2f}{measured:>10.2f}{planned / measured - 1:>+9.1%}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2:])
    else:
        main()
