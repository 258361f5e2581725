"""Which step of a run was the best by one metric, so that its checkpoint is kept.

Nothing is remembered beside metrics.jsonl: a resumed run, which has cut its metrics back, finds the best among what is left.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from rl.checkpoint import checkpoint_folder
from rl.distributed import main_only
from rl.run_folder import write_whole

BEST_FILE = "best.json"


class BestStep:
    """The step with the highest value of a metric so far, the earliest of equals.

    Args:
        metric: its name; None: nothing is best.
        rows: metrics of the steps so far, each with "step".

    Attributes:
        step: None before the metric was seen. 0 is the initial model, of which there is no checkpoint.
    """

    def __init__(self, metric: str | None, rows: Iterable[dict] = ()) -> None:
        self.metric, self.step, self.value = metric, None, None
        for row in rows:
            self.update(row["step"], row)

    def update(self, step: int, metrics: dict) -> bool:
        """Take the metrics of a step in; whether it is the best so far."""
        value = metrics.get(self.metric)
        if value is None or (self.value is not None and value <= self.value):
            return False
        self.step, self.value = step, value
        return True

    @main_only
    def save(self, run: Path) -> None:
        """Write best.json: metric, step, value and the checkpoint, which is null of the initial model."""
        if self.step is not None:
            folder = checkpoint_folder(run, self.step).relative_to(run) if self.step else None
            content = {"metric": self.metric, "step": self.step, "value": self.value, "checkpoint": folder and str(folder)}
            write_whole(run / BEST_FILE, json.dumps(content, indent=2) + "\n")
