"""Puts the page together: one HTML file with its style, script, curves and samples inside, which needs no network.

Everything that a model or a user wrote is escaped by the template engine; only this package's own style sheet, script and
curves go in as they are.
"""

import base64
import statistics
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rl.config import FREE_ON_RESUME, PRESETS, Config, to_flag
from rl.report.curves import (
    COLOURS,
    SECTIONS,
    Chart,
    Drawing,
    Line,
    Series,
    benchmark_section,
    draw,
    format_number,
    one_curve_each,
    window_of,
)
from rl.report.runs import MAX_RESPONSES, MAX_STEPS, OUTCOMES, RunRecord, load_run, sampled_steps, segments

HERE = Path(__file__).parent
MAX_MENDED = 6  # questions shown before and after


def write_report(folders: list[Path | str], file: Path | str | None = None) -> Path:
    """Write the report of one run, or of several side by side.

    Args:
        folders: run folders; a run may still be going on.
        file: where to; by default report.html in the run's folder, or in the working directory for several.

    Returns:
        The file.

    Raises:
        ValueError: a folder is no run folder, or there are more runs than colours.
    """
    if len(folders) > len(COLOURS):
        raise ValueError(f"{len(folders)} runs cannot be told apart; compare at most {len(COLOURS)} at a time")
    runs = [load_run(folder) for folder in folders]
    file = Path(file) if file else (runs[0].path / "report.html" if len(runs) == 1 else Path("report.html"))
    part = file.with_name(f"{file.name}.part")
    part.write_text(render(runs), encoding="utf-8", errors="replace")
    part.replace(file)
    return file


def render(runs: list[RunRecord]) -> str:
    """The page as text."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["fixed"] = lambda value: "–" if value is None else f"{value:.2f}"
    environment.filters["signed"] = lambda value: (
        "–" if value is None else f"{value:+.2f}".replace("+0.00", "0.00").replace("-", "−")
    )
    sections = drawn_sections(runs)
    samples = [{"run": run, "steps": sampled_steps(run, max(2, MAX_STEPS // len(runs)))} for run in runs]
    return environment.get_template("template.html").render(
        runs=runs,
        states=[state_of(run) for run in runs],
        title=" · ".join(run.name for run in runs),
        rows=headline_rows(runs),
        flags=differing_flags(runs),
        sections=sections,
        window=window_of(max((len(run.metrics) for run in runs), default=0)),
        hover=[drawing.hover for section in sections for _, drawing in section["charts"]],
        samples=[entry for entry in samples if entry["steps"]],
        outcomes=OUTCOMES,
        max_responses=MAX_RESPONSES,
        mended=mended_answers(runs[0]) if len(runs) == 1 else [],
        analyses=[entry for run in runs for entry in analysis_figures(run)],
        style=Markup((HERE / "style.css").read_text(encoding="utf-8")),
        script=Markup((HERE / "script.js").read_text(encoding="utf-8")),
    )


def drawn_sections(runs: list[RunRecord]) -> list[dict]:
    """Every chart that some run has data for; of several runs, one curve a chart and one colour a run."""
    names = set().union(*(run.names() for run in runs))
    wanted = [*SECTIONS, *filter(None, [benchmark_section(names)])]
    drawn = []
    for section in wanted if len(runs) == 1 else map(one_curve_each, wanted):
        charts = [(chart, drawing) for chart in section.charts if (drawing := _drawing(chart, runs))]
        if charts:
            drawn.append({"title": section.title, "charts": charts})
    return drawn


def _drawing(chart: Chart, runs: list[RunRecord]) -> Drawing | None:
    if len(runs) == 1:
        lines = [_line(runs[0], series.label, series) for series in chart.series]
    else:
        lines = [_line(run, run.name, chart.series[0]) for run in runs]
    return None if all(line.is_empty for line in lines) else draw(chart, lines)


def _line(run: RunRecord, label: str, series: Series) -> Line:
    return Line(label, run.steps, run.column(series.metric), *run.evaluated(series.evaluation))


def mended_answers(run: RunRecord) -> list[dict]:
    """Held-out questions answered wrong before training and right now: {question, before, after}, greedy."""
    pairs = zip(run.first_answers.get("greedy/refine", []), run.last_answers.get("greedy/refine", []), strict=False)
    mended = [(old, new) for old, new in pairs if old["accuracy"] == 0.0 and new["accuracy"] == 1.0]
    return [
        {"question": old["question"], "before": segments(old["text"]), "after": segments(new["text"])}
        for old, new in mended[:MAX_MENDED]
    ]


def analysis_figures(run: RunRecord) -> list[dict]:
    """Pictures that other tools have put into the run's analysis/ folder, as images: what is in them is not executed."""
    return [
        {
            "title": f"{run.name}: {file.stem.replace('_', ' ')}",
            "source": "data:image/svg+xml;base64," + base64.b64encode(file.read_bytes()).decode("ascii"),
        }
        for file in sorted(run.path.glob("analysis/*.svg"))
    ]


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
