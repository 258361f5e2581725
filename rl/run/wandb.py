"""The wandb mirror of a run: metrics under the names of metrics.jsonl, histograms of each step, tables of samples.

It never prompts and never waits for long. Without a key, or when the server cannot be reached, the run is recorded in its
folder, to be uploaded by `wandb sync`.
"""

import os
import uuid
from dataclasses import asdict
from pathlib import Path

from rewards.refinements import mark_refinements
from rl.config import FREE_ON_RESUME, Config, preset_values, to_flag
from rl.files import write_whole
from rl.judging.judge import flags_that_differ
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
        config: configuration of the run; --wandb must not be off.
        folder: folder of the run; names it, and keeps its id, so that a resumed run goes on as the same wandb run.
        details: git hash and versions.
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
        """Open the run; offline if it should be online and cannot."""
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

    def log_samples(self, step: int, records: list[dict]) -> None:
        """Log histograms of a step, and every --show-every steps a table under a key of its own, so that none is replaced.

        Args:
            records: the lines of the step's rollout file.
        """
        rows = [record for record in records if record["mode"] == "refine"]
        values = {
            "histograms/reward": [row["reward"] for row in rows if row["reward"] is not None],
            "histograms/advantage": [row["advantage"] for row in rows if row["trained"]],
            "histograms/completion_length": [row["tokens"] for row in rows],
        }
        logged = {name: self._wandb.Histogram(numbers) for name, numbers in values.items() if numbers}
        if self._show_every and (step == 1 or step % self._show_every == 0):
            logged[f"samples/step_{step:06d}"] = self._wandb.Table(list(TABLE_COLUMNS), table_rows(records, TABLE_ROWS))
        self._run.log(logged, step=step)

    def close(self) -> None:
        self._run.finish()


def run_id(folder: Path) -> str:
    """Return the id in the folder's wandb_id; a new one the first time."""
    file = folder / "wandb_id"
    if not file.exists():
        write_whole(file, uuid.uuid4().hex)
    return file.read_text(encoding="utf-8")


def group_name(config: Config) -> str:
    """Name the group of a run by its differences from the preset, so that runs with other seeds share a group."""
    bookkeeping = FREE_ON_RESUME | {"seed", "sft_seed", "preset", "model"}
    now, default = asdict(config), asdict(Config(**preset_values(config.preset or "default")))
    changed = [f"{to_flag(name)} {now[name]}" for name in flags_that_differ(now, default, bookkeeping)]
    names = [Path(config.model).name] if config.model else []
    return " ".join([config.preset or "default", *names, *changed])[:MAX_GROUP_NAME]


def table_rows(records: list[dict], limit: int) -> list[list]:
    """Return at most `limit` rows of the table of samples."""
    rows = [row | {"prompt": row["question"], "response": mark_refinements(row["text"])} for row in records[:limit]]
    return [[row[column] for column in TABLE_COLUMNS] for row in rows]
