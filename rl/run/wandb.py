"""The wandb mirror of a run: metrics under the names of metrics.jsonl, histograms of each step, tables of samples.

It never asks and never waits for long: without a key, or when the server cannot be reached, the run is recorded in its folder,
to be uploaded by `wandb sync`.
"""

import os
import uuid
from dataclasses import asdict
from pathlib import Path

from rewards.refinements import mark_refinements
from rl.config import FREE_ON_RESUME, Config, preset_values, to_flag
from rl.records import Group
from rl.run.console import wrapped

INIT_TIMEOUT = 30.0  # seconds to wait for the server at the start
FINISH_TIMEOUT = 120.0  # seconds to wait for the upload at the end; what is missing stays on disk for `wandb sync`
MAX_GROUP_NAME = 128  # characters, by the server
TABLE_ROWS = 64
TABLE_COLUMNS = (
    "prompt", "reference", "mode", "response", "format", "accuracy", "refine", "reward", "baseline", "advantage", "tokens",
    "finish_reason",
)  # fmt: skip


class WandbMirror:
    """An open wandb run.

    Args:
        config: of the run; --wandb must not be off.
        folder: of the run; names it, and keeps its id, so that a resumed run goes on in the same place.
        details: what the configuration does not say (git hash, versions).
    """

    def __init__(self, config: Config, folder: Path, details: dict) -> None:
        import wandb  # late: it takes seconds, and `--wandb off` should not need it

        self._wandb, self._show_every = wandb, config.show_every
        arguments = dict(
            project="pasr",
            name=folder.name,
            id=run_id(folder),
            group=os.environ.get("WANDB_RUN_GROUP") or group_name(config),
            resume="allow",
            dir=folder,
            config=asdict(config) | details,
            settings=wandb.Settings(silent=True, init_timeout=INIT_TIMEOUT, finish_timeout=FINISH_TIMEOUT),
        )
        self._run = self._open(config.wandb, arguments)

    def _open(self, mode: str, arguments: dict):
        if mode == "online":
            if not (os.environ.get("WANDB_API_KEY") or self._wandb.login(prompt=False)):
                reason = "no API key is set"
            else:
                try:
                    return self._wandb.init(mode="online", **arguments)
                except (self._wandb.Error, ValueError) as error:  # ValueError: a key of the wrong form
                    reason = str(error).splitlines()[0]
                    self._wandb.teardown()  # its service still holds the run's id
        run = self._wandb.init(mode="offline", **arguments)
        if mode == "online":
            print(wrapped(f"wandb: {reason}; recorded offline, to be uploaded by: wandb sync {Path(run.dir).parent}"))
        return run

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log(metrics, step=step)

    def log_samples(self, step: int, groups: list[Group]) -> None:
        """Histograms of a step, and every --show-every steps a table under a key of its own, so that none replaces another."""
        samples = [sample for group in groups for sample in group.refine_samples]
        values = {
            "histograms/reward": [s.reward for s in samples if s.reward is not None],
            "histograms/advantage": [s.advantage for s in samples if s.trained],
            "histograms/completion_length": [len(s.completion.ids) for s in samples],
        }
        logged = {name: self._wandb.Histogram(numbers) for name, numbers in values.items() if numbers}
        if self._show_every and (step == 1 or step % self._show_every == 0):
            logged[f"samples/step_{step:06d}"] = self._wandb.Table(list(TABLE_COLUMNS), sample_rows(groups, TABLE_ROWS))
        self._run.log(logged, step=step)

    def close(self) -> None:
        self._run.finish()


def run_id(folder: Path) -> str:
    file = folder / "wandb_id"
    if not file.exists():
        part = file.with_name("wandb_id.part")
        part.write_text(uuid.uuid4().hex, encoding="utf-8")
        part.replace(file)
    return file.read_text(encoding="utf-8")


def group_name(config: Config) -> str:
    """Runs that differ in their seeds alone share a group; whatever else differs from the preset makes another one."""
    bookkeeping = FREE_ON_RESUME | {"seed", "sft_seed", "preset", "model"}
    default = Config(**preset_values(config.preset or "default"))
    changed = [
        f"{to_flag(name)} {value}"
        for name, value in asdict(config).items()
        if name not in bookkeeping and value != getattr(default, name)
    ]
    names = [Path(config.model).name] if config.model else []
    return " ".join([config.preset or "default", *names, *changed])[:MAX_GROUP_NAME]


def sample_rows(groups: list[Group], limit: int) -> list[list]:
    """The rows of the table: whole questions, their refine-prompt responses before the plain answers, `limit` at most."""
    rows = [
        [
            group.question, group.reference, sample.mode, mark_refinements(sample.text), sample.format, sample.accuracy,
            sample.refine, sample.reward, group.baseline, sample.advantage, len(sample.completion.ids),
            sample.completion.finish_reason,
        ]
        for group in groups
        for sample in group.refine_samples + group.plain_samples
    ]  # fmt: skip
    return rows[:limit]
