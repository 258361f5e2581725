"""The run folder: config.json, metrics.jsonl, rollouts/, checkpoints/, summary.json, and the wandb mirror.

Everything is on disk whether or not wandb is; wandb gets the same numbers under the same names.
"""

import fcntl
import json
import math
import platform
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import jsonlines
import torch
import transformers

from model.checkpoint import read_json
from rl.config import Config
from rl.demo import trial_metrics
from rl.distributed import broadcast_from_main, main_only
from rl.files import write_whole
from rl.judging.cache import baseline_files
from rl.metrics import Clock, SandbaggingWatch, rollout_metrics
from rl.records import Group, Sample
from rl.run.wandb import WandbMirror


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
    """Writes what a run leaves behind: rank 0 does, the others only know where it is.

    Args:
        config: of the run; names the folder.
        resuming: whether an existing folder is continued.

    Raises:
        ValueError: the folder exists and is not to be continued, or cannot be written.
    """

    def __init__(self, config: Config, *, resuming: bool) -> None:
        self._wandb = self._lock = None
        self.path = broadcast_from_main(
            lambda: self._open(Path(config.runs_dir) / (config.run or default_run_name(config)), resuming)
        )
        self.metrics_file = self.path / "metrics.jsonl"

    def _open(self, path: Path, resuming: bool) -> Path:
        self.path = path
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._is_new = not self.path.exists()
            self.path.mkdir(exist_ok=resuming)
            (self.path / "rollouts").mkdir(exist_ok=True)
            self._lock = (self.path / ".lock").open("w")  # held until the process ends
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileExistsError as error:
            raise ValueError(
                f"{self.path} exists: continue it with --resume auto, or choose another --run name; nothing was changed"
            ) from error
        except BlockingIOError as error:
            raise ValueError(f"another process is writing to {self.path}; wait for it, or choose another --run name") from error
        except OSError as error:
            raise ValueError(f"cannot write to {self.path}: {error.strerror}. Choose a writable --runs-dir") from error
        return path

    @main_only
    def start(self, config: Config, baselines: str | None) -> None:
        """Set-up has succeeded: from now on the run is the one of this configuration.

        Args:
            baselines: name of its file of reference answers, see rl/baselines.py; None without. A run that is continued under
                other rules has several.
        """
        file = self.path / "config.json"
        known = baseline_files(read_json(file)) if file.exists() else []
        names = list(dict.fromkeys([*known, *([baselines] if baselines else [])]))
        details = {"git": git_hash(), "versions": versions(), "baselines": names}
        self._write_json("config.json", {"config": asdict(config)} | details)
        (self.path / "summary.json").unlink(missing_ok=True)  # of a run that is being extended

    @main_only
    def keep_prompts(self, text: str) -> None:
        """The prompts of the first question, as they were rendered."""
        (self.path / "prompts.txt").write_text(text + "\n", encoding="utf-8")

    @main_only
    def discard(self) -> None:
        """Set-up has failed: leave nothing behind that was not there before."""
        self.close()
        if self._is_new:
            shutil.rmtree(self.path)

    def close(self) -> None:
        """Close the mirror and let other processes write to the folder."""
        if self._wandb is not None:
            self._wandb.close()
        if self._lock is not None:
            self._lock.close()

    @main_only
    def start_wandb(self, config: Config) -> None:
        """Open the mirror, unless it is switched off."""
        if config.wandb == "off":
            return
        self._wandb = WandbMirror(config, self.path, {"git": git_hash(), "versions": versions()})

    @main_only
    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append one line to metrics.jsonl and mirror it. Values that are not finite are written as null."""
        record = {"step": step} | {name: _finite(value) for name, value in metrics.items()}
        with jsonlines.open(self.metrics_file, mode="a") as file:
            file.write(record)
        if self._wandb is not None:
            self._wandb.log(step, metrics)

    @main_only
    def log_rollouts(self, step: int, groups: list[Group]) -> None:
        """Every sample of a step, with its rewards, as rollouts/step_NNNNNN.jsonl; some of them to the mirror."""
        with jsonlines.open(self.path / "rollouts" / f"step_{step:06d}.jsonl", mode="w") as file:
            for group in groups:
                for sample in group.refine_samples + group.plain_samples:
                    file.write(rollout_record(group, sample))
        if self._wandb is not None:
            self._wandb.log_samples(step, groups)

    def read_metrics(self) -> list[dict[str, float]]:
        """The metrics of every step so far."""
        return broadcast_from_main(self._read_metrics)

    def _read_metrics(self) -> list[dict[str, float]]:
        if not self.metrics_file.exists():
            return []
        with jsonlines.open(self.metrics_file) as rows:
            return list(rows)

    @main_only
    def truncate_after(self, step: int) -> None:
        """Forget what was logged after `step`: the run goes on from there."""
        if self.metrics_file.exists():
            text = self.metrics_file.read_text(encoding="utf-8", errors="replace")
            lines = text.split("\n")[:-1]  # what has no newline was cut off
            kept = [line + "\n" for number, line in enumerate(lines, start=1) if self._step_of(line, number) <= step]
            write_whole(self.metrics_file, "".join(kept))
        for file in [*self.path.glob("rollouts/step_*.jsonl"), *self.path.glob("eval/step_*.json*")]:
            number = file.stem.removeprefix("step_")
            if number.isdecimal() and int(number) > step:
                file.unlink()

    def _step_of(self, line: str, number: int) -> int:
        try:
            return json.loads(line)["step"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{self.metrics_file}, line {number} is not a metrics record; mend or remove it") from error

    @main_only
    def finish(self, summary: dict) -> None:
        """Write summary.json, the mark of a finished run."""
        self._write_json("summary.json", summary)

    def is_finished(self, steps: int) -> bool:
        """Whether the run has made this many steps and been summed up.

        Raises:
            ValueError: summary.json is damaged.
        """
        return broadcast_from_main(lambda: self._steps_summed_up() >= steps)

    def _steps_summed_up(self) -> int:
        file = self.path / "summary.json"
        if not file.exists():
            return -1
        steps = read_json(file).get("steps")
        if not isinstance(steps, int):
            raise ValueError(f"{file} is damaged; remove it to go on from the newest checkpoint")
        return steps

    def _write_json(self, name: str, content: dict) -> None:
        write_whole(self.path / name, json.dumps(content, indent=2) + "\n")


def rollout_record(group: Group, sample: Sample) -> dict:
    """One line of a rollout file."""
    return {
        "id": group.example_id,
        "question": group.question,
        "reference": group.reference,
        "mode": sample.mode,
        "text": sample.text,
        "tokens": len(sample.completion.ids),
        "ids": sample.completion.ids if sample.mode == "refine" else None,  # what is trained on, here and by rl/sft.py
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


class StepLog:
    """Writes the steps of a run down, one after another; of a continued run from where it stopped.

    Args:
        say: prints a line.
    """

    def __init__(self, run: RunFolder, config: Config, say: Callable[[str], None]) -> None:
        before = run.read_metrics()
        self.run, self.config, self.say = run, config, say
        self.watch = SandbaggingWatch(config, before)
        self.num_tokens = before[-1]["num_tokens"] if before else 0

    def log_step(self, done: int, groups: list[Group], more: dict[str, float], clock: Clock) -> dict[str, float]:
        """Log the step that makes `done` steps.

        Args:
            more: metrics of other than the rollout's samples: of the judge, the update, an evaluation.
            clock: its seconds are logged; it begins anew.

        Returns:
            All metrics of the step.
        """
        metrics = rollout_metrics(groups, self.config) | more
        if self.config.model is None:
            metrics |= trial_metrics(groups)
        self.num_tokens += metrics["num_tokens"]
        metrics["num_tokens"] = self.num_tokens
        metrics |= clock.metrics(metrics["completions/num_tokens"], metrics.get("trained_tokens", 0))
        self.run.log(done, metrics)
        self.run.log_rollouts(done, groups)
        if not any(sample.trained for group in groups for sample in group.refine_samples):
            self.say(f"step {done}: nothing to train on ({dropped_reasons(groups)}); no optimizer step, going on")
        if warning := self.watch.warning(metrics):
            self.say(f"step {done}: {warning}")
        return metrics


def dropped_reasons(groups: list[Group]) -> str:
    """Why the groups of a step are not trained on, with counts."""
    counts = Counter(group.dropped or "responses left out of the loss" for group in groups)
    return ", ".join(f"{count} x {reason}" for reason, count in counts.items())
