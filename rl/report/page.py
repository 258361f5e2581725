"""Puts the page together: one HTML file with its style, script, curves and samples inside, which needs no network.

Everything that a model or a user wrote is escaped by the template engine; only this package's own style sheet, script and
curves go in as they are.
"""

import base64
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rl.report.charts import SECTIONS, Chart, Series, benchmark_section, one_curve_each
from rl.report.figures import COLOURS, Drawing, Line, draw, window_of
from rl.report.headline import differing_flags, headline_rows, state_of
from rl.report.runs import RunRecord, load_run
from rl.report.samples import MAX_RESPONSES, MAX_STEPS, OUTCOMES, sampled_steps, segments

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
