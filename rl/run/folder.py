"""The run folder: config.json, metrics.jsonl, rollouts/, summary.json, the wandb mirror, and the checkpoint to go on from.

Everything is on disk with and without wandb. wandb gets the same numbers under the same names.
"""

import fcntl
import json
import math
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
import transformers

from model.checkpoint import read_json
from rl.config import FREE_ON_RESUME, Config, preset_values, to_flag
from rl.distributed import broadcast_from_main, main_only
from rl.files import append_line, write_whole
from rl.judging.judge import flags_that_differ
from rl.metrics import Clock, SandbaggingWatch, rollout_metrics
from rl.records import Group, Sample
from rl.run.advice import UpdateWatch
from rl.run.checkpoint import all_checkpoints, damage
from rl.run.console import wrapped
from rl.run.wandb import WandbMirror


def find_checkpoint(config: Config) -> tuple[Config, Path | None]:
    """Return the configuration with its run name filled in, and the checkpoint to continue, if there is one.

    Raises:
        ValueError: no such checkpoint, or the run was started with other flags.
    """
    # the one that is named, or the newest; damaged ones are named
    checkpoint = None
    if config.resume == "auto":
        if config.run is None:
            raise ValueError("--resume auto needs --run NAME: name the run to continue")
        for folder in reversed(all_checkpoints(Path(config.runs_dir) / config.run)):
            if (problem := damage(folder)) is None:
                checkpoint = folder
                break
            print(f"ignoring {folder}: {problem}")
    elif config.resume != "never":
        checkpoint = Path(config.resume)
        is_place = checkpoint.parent.name == "checkpoints"
        if problem := damage(checkpoint) if is_place else "expected runs/NAME/checkpoints/step_NNNNNN":
            raise ValueError(f"--resume {config.resume} is no complete checkpoint: {problem}")
        run = checkpoint.parent.parent
        config = replace(config, run=run.name, runs_dir=str(run.parent))
    if checkpoint is None:
        return config, None

    # the flags of the run
    if not config.resume_with_changes:
        file = checkpoint.parent.parent / "config.json"
        saved = read_json(file).get("config")
        if not isinstance(saved, dict):
            raise ValueError(f"{file} does not hold the flags of a run. To go on all the same: --resume-with-changes")
        config = _with_its_batch(config, saved)
        if changed := flags_that_differ(asdict(config), saved, FREE_ON_RESUME):
            changes = "; ".join(f"{to_flag(name)} was {saved.get(name)}, is {getattr(config, name)}" for name in changed)
            raise ValueError(f"the run was started with other flags: {changes}. To go on all the same: --resume-with-changes")
    return config, checkpoint


def _with_its_batch(config: Config, saved: dict) -> Config:
    """Keep the batch of a run of the paper's preset, whose batch depends on the number of GPUs, on another number."""
    if config.preset != "paper" or config.questions_per_step != preset_values("paper")["questions_per_step"]:
        return config
    return replace(config, questions_per_step=saved["questions_per_step"])


class RunFolder:
    """The folder of a run. Rank 0 writes; the others only know the path.

    Args:
        config: configuration of the run; names the folder.
        resuming: an existing folder is continued.

    Raises:
        ValueError: the folder exists and is not to be continued, or cannot be written.
    """

    def __init__(self, config: Config, *, resuming: bool) -> None:
        self._wandb = self._lock = None
        name = config.run or f"{config.preset}-{time.strftime('%Y%m%d-%H%M%S')}"
        self.path = broadcast_from_main(lambda: self._open(Path(config.runs_dir) / name, resuming))
        self.metrics_file = self.path / "metrics.jsonl"

    def _open(self, path: Path, resuming: bool) -> Path:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._is_new = not path.exists()
            path.mkdir(exist_ok=resuming)
            (path / "rollouts").mkdir(exist_ok=True)
            self._lock = (path / ".lock").open("w")  # held until the process ends
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileExistsError as error:
            raise ValueError(
                f"{path} exists: continue it with --resume auto, or choose another --run name; nothing was changed"
            ) from error
        except BlockingIOError as error:
            raise ValueError(f"another process is writing to {path}; wait for it, or choose another --run name") from error
        except OSError as error:
            raise ValueError(f"cannot write to {path}: {error.strerror}. Choose a writable --runs-dir") from error
        return path

    def start(self, config: Config, step: int, prompts: str, baselines: str | None) -> None:
        """Take the folder over on rank 0, because set-up has succeeded: from now on the run has this configuration.

        What lies beyond `step` is removed, checkpoints set aside: they would be taken for the newest ones.

        Args:
            step: the run goes on after it; -1: it begins.
            prompts: for prompts.txt: those of the first question, as rendered.
            baselines: name of the file of reference answers (rl/judging/cache.py); None without. A run that is continued
                under other rules has several.
        """
        # what was logged and saved after the step
        if self.metrics_file.exists():
            lines = self.metrics_file.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]  # the rest was cut off
            kept = [line + "\n" for number, line in enumerate(lines, start=1) if self._step_of(line, number) <= step]
            write_whole(self.metrics_file, "".join(kept))
        for file in [*self.path.glob("rollouts/step_*.jsonl"), *self.path.glob("eval/step_*.json*")]:
            number = file.stem.removeprefix("step_")
            if number.isdecimal() and int(number) > step:
                file.unlink()
        for folder in all_checkpoints(self.path):
            if int(folder.name.removeprefix("step_")) > step:
                aside = folder.with_name(f"aside_{folder.name}")
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)
                print(f"{folder} lies beyond step {max(step, 0)}: set aside as {aside.name}")

        # what the run is from now on
        file = self.path / "config.json"
        names = read_json(file).get("baselines", []) if file.exists() else []
        names += [baselines] if baselines and baselines not in names else []
        self._write_json("config.json", {"config": asdict(config)} | code_details() | {"baselines": names})
        (self.path / "summary.json").unlink(missing_ok=True)  # the run is being extended
        (self.path / "prompts.txt").write_text(prompts + "\n", encoding="utf-8")

    def _step_of(self, line: str, number: int) -> int:
        try:
            return json.loads(line)["step"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{self.metrics_file}, line {number} is not a metrics record; mend or remove it") from error

    @main_only
    def discard(self) -> None:
        """Leave nothing behind that was not there before, because set-up has failed."""
        self.close()
        if self._is_new:
            shutil.rmtree(self.path)

    def close(self) -> None:
        """Close the mirror and let other processes write to the folder."""
        for opened in (self._wandb, self._lock):
            if opened is not None:
                opened.close()

    @main_only
    def start_wandb(self, config: Config) -> None:
        """Open the mirror, unless it is switched off."""
        if config.wandb != "off":
            self._wandb = WandbMirror(config, self.path, code_details())

    @main_only
    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append one line to metrics.jsonl and mirror it. Values that are not finite are written as null."""
        finite = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in metrics.items()}
        append_line(self.metrics_file, json.dumps({"step": step} | finite))
        if self._wandb is not None:
            self._wandb.log(step, metrics)

    @main_only
    def log_rollouts(self, step: int, groups: list[Group]) -> None:
        """Write every sample of a step, with its rewards, to rollouts/step_NNNNNN.jsonl; some of them go to the mirror."""
        records = [rollout_record(group, sample) for group in groups for sample in group.refine_samples + group.plain_samples]
        with (self.path / "rollouts" / f"step_{step:06d}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        if self._wandb is not None:
            self._wandb.log_samples(step, records)

    def read_metrics(self) -> list[dict[str, float]]:
        """Return the metrics of every step so far."""
        file = self.metrics_file
        lines = broadcast_from_main(lambda: file.read_text(encoding="utf-8").splitlines() if file.exists() else [])
        return [json.loads(line) for line in lines]

    @main_only
    def finish(self, summary: dict) -> None:
        """Write summary.json, the mark of a finished run."""
        self._write_json("summary.json", summary)

    def is_finished(self, steps: int) -> bool:
        """Return whether summary.json says that the run has made this many steps.

        Raises:
            ValueError: summary.json is damaged.
        """
        file = self.path / "summary.json"
        made = broadcast_from_main(lambda: read_json(file).get("steps") if file.exists() else -1)
        if not isinstance(made, int):
            raise ValueError(f"{file} is damaged; remove it to go on from the newest checkpoint")
        return made >= steps

    def _write_json(self, name: str, content: dict) -> None:
        write_whole(self.path / name, json.dumps(content, indent=2) + "\n")


def rollout_record(group: Group, sample: Sample) -> dict:
    """Return one line of a rollout file."""
    completion = sample.completion
    return {
        "id": group.example_id, "question": group.question, "reference": group.reference, "mode": sample.mode,
        "text": sample.text, "tokens": len(completion.ids),
        "ids": completion.ids if sample.mode == "refine" else None,  # trained on, here and by rl/sft.py
        "finish_reason": completion.finish_reason, "format": sample.format, "accuracy": sample.accuracy,
        "refine": sample.refine, "reward": sample.reward, "baseline": group.baseline, "advantage": sample.advantage,
        "refinements": sample.refinements, "trained": sample.trained, "dropped": group.dropped,
        "policy_version": completion.policy_version,
    }  # fmt: skip


def code_details() -> dict:
    """Return the commit of the code (+ if the tree has changes, None outside a repository) and the versions it ran with."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--abbrev=12"]
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None
    versions = {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}
    return {"git": commit, "versions": versions}


class StepLog:
    """The log of a run, step by step. A continued run goes on where it stopped.

    Args:
        say: prints a line.
        task_metrics: further metrics of a step's groups, which only this task has.
    """

    def __init__(
        self,
        run: RunFolder,
        config: Config,
        say: Callable[[str], None],
        task_metrics: Callable[[list[Group]], dict[str, float]] | None = None,
    ) -> None:
        before = run.read_metrics()
        self.run, self.config, self.say, self.task_metrics = run, config, say, task_metrics
        self.watch, self.updates = SandbaggingWatch(config, before), UpdateWatch()
        self.num_tokens = before[-1]["num_tokens"] if before else 0

    def log_step(self, done: int, groups: list[Group], more: dict[str, float], clock: Clock) -> dict[str, float]:
        """Log a step, and say so where nothing was trained or the baseline looks wrong.

        Args:
            done: steps made, this one included.
            more: metrics of the judge, the update and an evaluation.
            clock: seconds of the step; it is restarted.

        Returns:
            All metrics of the step.
        """
        metrics = rollout_metrics(groups, self.config) | more
        if self.task_metrics is not None:
            metrics |= self.task_metrics(groups)
        self.num_tokens += metrics["num_tokens"]
        metrics["num_tokens"] = self.num_tokens
        metrics |= clock.metrics(metrics["completions/num_tokens"], metrics.get("trained_tokens", 0))
        self.run.log(done, metrics)
        self.run.log_rollouts(done, groups)
        for line in self.updates.lines(done, groups):
            self.say(wrapped(line))
        if warning := self.watch.warning(metrics):
            self.say(wrapped(f"step {done}: {warning}"))
        return metrics
