"""The run folder: config.json, metrics.jsonl, rollouts/, checkpoints/, summary.json, and the wandb mirror.

Everything is on disk whether or not wandb is; wandb gets the same numbers under the same names.
"""

import json
import math
import os
import platform
import subprocess
import time
from dataclasses import asdict
from pathlib import Path

import jsonlines
import torch
import transformers

from rl.config import Config
from rl.records import Group, Sample


def default_run_name(config: Config) -> str:
    return f"{config.preset}-{time.strftime('%Y%m%d-%H%M%S')}"


def git_hash() -> str | None:
    """The commit of the code, with a + if the tree has changes; None outside a repository."""
    folder = Path(__file__).parent
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


class RunFolder:
    """Writes what a run leaves behind.

    Args:
        config: of the run; names the folder.
        resuming: whether an existing folder is continued.

    Raises:
        ValueError: the folder exists and is not to be continued, or cannot be written.
    """

    def __init__(self, config: Config, *, resuming: bool) -> None:
        self.path = Path(config.runs_dir) / (config.run or default_run_name(config))
        if self.path.exists() and not resuming:
            raise ValueError(
                f"{self.path} exists: continue it with --resume auto, or choose another --run name; nothing was changed"
            )
        try:
            (self.path / "rollouts").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"cannot write to {self.path}: {error.strerror}. Choose a writable --runs-dir") from error
        if not os.access(self.path, os.W_OK):
            raise ValueError(f"cannot write to {self.path}: it is read-only. Choose a writable --runs-dir")
        self.metrics_file = self.path / "metrics.jsonl"
        self._wandb = None
        if not (self.path / "config.json").exists():
            self._write_json("config.json", {"config": asdict(config), "git": git_hash(), "versions": versions()})

    def start_wandb(self, config: Config) -> None:
        """Open the mirror. Never asks for anything: without a key it records offline and says so."""
        if config.wandb == "off":
            return
        import wandb  # late: it takes seconds, and `--wandb off` should not need it

        mode = config.wandb
        if mode == "online" and not (os.environ.get("WANDB_API_KEY") or wandb.api.api_key):
            print("wandb: no API key is set, so this run is recorded offline; upload it later with `wandb sync`")
            mode = "offline"
        name = self.path.name
        self._wandb = wandb.init(
            project="pasr",
            name=name,
            id=name,
            resume="allow",
            dir=self.path,
            mode=mode,
            config=asdict(config),
            settings=wandb.Settings(silent=True),
        )

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append one line to metrics.jsonl and mirror it. Values that are not finite are written as null."""
        record = {"step": step} | {name: _finite(value) for name, value in metrics.items()}
        with jsonlines.open(self.metrics_file, mode="a") as file:
            file.write(record)
        if self._wandb is not None:
            self._wandb.log(metrics, step=step)

    def log_rollouts(self, step: int, groups: list[Group]) -> None:
        """Every sample of a step, with its rewards, as rollouts/step_NNNNNN.jsonl."""
        with jsonlines.open(self.path / "rollouts" / f"step_{step:06d}.jsonl", mode="w") as file:
            for group in groups:
                for sample in group.refine_samples + group.plain_samples:
                    file.write(rollout_record(group, sample))

    def cut_back(self, step: int) -> None:
        """Forget what was logged after `step`: the run goes on from there."""
        if self.metrics_file.exists():
            lines = self.metrics_file.read_text(encoding="utf-8").split("\n")[:-1]  # what has no newline was cut off
            kept = [line for line in lines if json.loads(line)["step"] <= step]
            self.metrics_file.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        for file in (self.path / "rollouts").glob("step_*.jsonl"):
            if int(file.stem.removeprefix("step_")) > step:
                file.unlink()

    def finish(self, summary: dict) -> None:
        """Write summary.json, the mark of a finished run, and close the mirror."""
        self._write_json("summary.json", summary)
        if self._wandb is not None:
            self._wandb.finish()

    @property
    def is_finished(self) -> bool:
        return (self.path / "summary.json").exists()

    def _write_json(self, name: str, content: dict) -> None:
        part = self.path / f"{name}.part"
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        part.rename(self.path / name)


def rollout_record(group: Group, sample: Sample) -> dict:
    """One line of a rollout file."""
    return {
        "id": group.example_id,
        "question": group.question,
        "reference": group.reference,
        "mode": sample.mode,
        "text": sample.text,
        "tokens": len(sample.completion.ids),
        "finish_reason": sample.completion.finish_reason,
        "format": sample.format,
        "accuracy": sample.accuracy,
        "refine": sample.refine,
        "reward": sample.reward,
        "baseline": group.baseline,
        "advantage": sample.advantage,
        "refinements": sample.refinements,
        "trained": sample.trained,
        "dropped": group.dropped,
        "policy_version": sample.completion.policy_version,
    }


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}


def _finite(value):
    return None if isinstance(value, float) and not math.isfinite(value) else value
