"""The numbers at the top of the report: where a run began, and where it is."""

import statistics
from dataclasses import asdict, dataclass, fields

from rl.config import PRESETS, Config
from rl.config_checks import to_flag
from rl.report.figures import format_number
from rl.report.runs import RunRecord
from rl.resume import FREE_ON_RESUME

ENDS = 10  # steps averaged at each end of a run, where no evaluation tells better


@dataclass(frozen=True)
class Quantity:
    """One row of the headline table.

    Attributes:
        evaluation: its name in eval/, used where a run has it.
        metric: its name in metrics.jsonl, used otherwise.
    """

    label: str
    evaluation: str
    metric: str


QUANTITIES = (
    Quantity("Accuracy, refine prompt", "greedy/refined_accuracy", "pasr/refined_accuracy"),
    Quantity("Accuracy, plain prompt", "greedy/plain_accuracy", "pasr/plain_accuracy"),
    Quantity("Benchmarks, refine prompt", "eval/average/pasr/accuracy", ""),
    Quantity("Benchmarks, plain prompt", "eval/average/vanilla/accuracy", ""),
    Quantity("P(refine | wrong)", "sampled/p_refine_wrong", "pasr/p_refine_wrong"),
    Quantity("P(refine | right)", "sampled/p_refine_right", "pasr/p_refine_right"),
    Quantity("Responses that refine", "sampled/refine_rate", "pasr/refine_frac"),
    Quantity("Refined responses that win", "", "pasr/win"),
    Quantity("Tokens per response", "sampled/tokens", "completions/mean_length"),
    Quantity("Well formed", "sampled/wellformed", "pasr/wellformed"),
    Quantity("Reward", "", "reward"),
)


@dataclass(frozen=True)
class Change:
    """A quantity at the beginning and now. source: "held-out" or "training"."""

    begin: float | None
    end: float | None
    source: str

    @property
    def texts(self) -> tuple[str, str]:
        return format_number(self.begin), format_number(self.end)


def change_of(run: RunRecord, quantity: Quantity, *, held_out: bool) -> Change | None:
    """From the first and the last evaluation, or the means of the first and of the last steps. None if it is not known."""
    if held_out:
        values = run.evaluated(quantity.evaluation)[1]
        return Change(values[0], values[-1], "held-out")
    known = [value for value in run.column(quantity.metric) if value == value]
    if not known:
        return None
    count = max(1, min(ENDS, len(known) // 2))
    return Change(statistics.fmean(known[:count]), statistics.fmean(known[-count:]), "training")


def headline_rows(runs: list[RunRecord]) -> list[dict]:
    """Rows of the headline table, one change for each run and all from one source, without the rows that no run knows."""
    rows = []
    for quantity in QUANTITIES:
        held_out = all(len(run.evaluated(quantity.evaluation)[0]) > 1 for run in runs)
        changes = [change_of(run, quantity, held_out=held_out) for run in runs]
        if known := [change for change in changes if change]:
            rows.append({"quantity": quantity, "changes": changes, "source": known[0].source})
    return rows


def differing_flags(runs: list[RunRecord]) -> list[dict]:
    """The settings in which the runs differ; of a single run, those in which it differs from its preset."""
    names = [spec.name for spec in fields(Config) if spec.name not in FREE_ON_RESUME | {"preset"}]
    known = [run.config for run in runs if run.config]
    if not known:
        return []
    if len(runs) == 1:
        known.append(PRESETS.get(known[0].get("preset"), {}))
    columns = [asdict(Config()) | config for config in known]  # a flag that the run did not have yet: its default
    changed = [name for name in names if len({repr(config[name]) for config in columns}) > 1]
    return [{"flag": to_flag(name), "values": [_shown(config[name]) for config in columns[: len(runs)]]} for name in changed]


def _shown(value) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def state_of(run: RunRecord) -> str:
    """How far it is, for how long, of which code."""
    done, planned = (run.steps or [0])[-1], run.config.get("steps")
    parts = [f"{done:,} of {planned:,} steps" if planned else f"{done:,} steps"]
    if "wall_s" in run.summary:
        parts.append(f"finished in {duration(run.summary['wall_s'])}")
    elif run.metrics:
        parts.append("not finished")
    if run.metrics and run.metrics[-1].get("num_tokens"):
        parts.append(f"{run.metrics[-1]['num_tokens']:,} tokens")
    if run.origin.get("git"):
        parts.append(f"commit {run.origin['git']}")
    if "torch" in run.origin.get("versions", {}):
        parts.append(f"torch {run.origin['versions']['torch']}")
    return " · ".join(parts)


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
