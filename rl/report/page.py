"""The page: one HTML file with its style, script, curves and samples inside, which needs no network.

The template engine escapes everything that a model or a user wrote. Only the style sheet, script and curves of this package go
in as they are.
"""

import base64
import statistics
from dataclasses import asdict, fields
from functools import cache
from importlib.util import find_spec
from math import isnan
from pathlib import Path

from tqdm import tqdm

from rl.config import FREE_ON_RESUME, PRESETS, Config, to_flag
from rl.files import write_whole
from rl.report.curves import COLOURS, SECTIONS, benchmark_charts, draw, format_number, one_curve_each, window_of
from rl.report.runs import MAX_RESPONSES, MAX_STEPS, OUTCOMES, RunRecord, load_run, sampled_steps, segments

HERE = Path(__file__).parent
MAX_MENDED = 6  # questions shown before and after


@cache
def has_packages() -> bool:
    """Return whether the packages that draw are installed. The first call says what to install if they are not."""
    missing = [name for name in ("matplotlib", "jinja2") if find_spec(name) is None]
    if missing:
        names = " ".join(missing)
        tqdm.write(f"no report: install what it needs (pip install {names}), then draw it: python -m rl.report RUN")
    return not missing


def write_report(folders: list[Path | str], file: Path | str | None = None) -> Path | None:
    """Write the report of one run, or of several side by side.

    Args:
        folders: run folders; a run may still be going on.
        file: where to; by default report.html in the run's folder, or in the working directory for several.

    Returns:
        The file; None if a package is missing.

    Raises:
        ValueError: a folder is not a run folder, or there are more runs than colours.
    """
    if len(folders) > len(COLOURS):
        raise ValueError(f"{len(folders)} runs cannot be told apart; compare at most {len(COLOURS)} at a time")
    if not has_packages():
        return None
    runs = [load_run(folder) for folder in folders]
    file = Path(file) if file else (runs[0].path / "report.html" if len(runs) == 1 else Path("report.html"))
    write_whole(file, render(runs).encode("utf-8", "replace").decode())  # JSON can carry half a character, UTF-8 cannot
    return file


def render(runs: list[RunRecord]) -> str:
    """Return the page as text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    # the template, with its two ways to write a number
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["fixed"] = lambda value: "–" if value is None else f"{value:.2f}"
    environment.filters["signed"] = lambda value: (
        "–" if value is None else f"{value:+.2f}".replace("+0.00", "0.00").replace("-", "−")
    )

    # what it shows
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
        mended=runs[0].mended_answers()[:MAX_MENDED] if len(runs) == 1 else [],
        segments=segments,
        analyses=[entry for run in runs for entry in analysis_figures(run)],
        style=Markup((HERE / "style.css").read_text(encoding="utf-8")),
        script=Markup((HERE / "script.js").read_text(encoding="utf-8")),
    )


def drawn_sections(runs: list[RunRecord]) -> list[dict]:
    """Draw every chart that some run has data for. Several runs get one curve a chart and one colour a run."""
    evaluated = {name for run in runs for metrics in run.evaluations.values() for name in metrics}
    drawn = []
    for title, charts in (SECTIONS | {"Benchmarks during training": benchmark_charts(evaluated)}).items():
        drawings = []
        for chart in charts if len(runs) == 1 else one_curve_each(charts):
            pairs = [(run, label, metric) for run in runs for label, metric in chart.series.items()]
            lines = [(label if len(runs) == 1 else run.name, run, metric) for run, label, metric in pairs]
            if drawing := draw(chart, lines):
                drawings.append((chart, drawing))
        if drawings:
            drawn.append({"title": title, "charts": drawings})
    return drawn


def analysis_figures(run: RunRecord) -> list[dict]:
    """Return the pictures in the run's analysis/ folder as images, because a script inside an image does not run."""
    return [
        {
            "title": f"{run.name}: {file.stem.replace('_', ' ')}",
            "source": "data:image/svg+xml;base64," + base64.b64encode(file.read_bytes()).decode("ascii"),
        }
        for file in sorted(run.path.glob("analysis/*.svg"))
    ]


ENDS = 10  # steps averaged at each end of a run, where no evaluation tells better


HEADLINE = {  # names in metrics.jsonl by label; their evaluations are shown where all runs have them
    "Accuracy, refine prompt": "pasr/refined_accuracy",
    "Accuracy, plain prompt": "pasr/plain_accuracy",
    "Benchmarks, refine prompt": "eval/average/pasr/accuracy",
    "Benchmarks, plain prompt": "eval/average/vanilla/accuracy",
    "P(refine | wrong)": "pasr/p_refine_wrong",
    "P(refine | right)": "pasr/p_refine_right",
    "Responses that refine": "pasr/refine_frac",
    "Refined responses that win": "pasr/win",
    "Tokens per response": "completions/mean_length",
    "Well formed": "pasr/wellformed",
    "Reward": "reward",
}


def headline_rows(runs: list[RunRecord]) -> list[dict]:
    """Compare beginning and end of each run: {label, source, changes: (begin, end) of each run as text, None without values}.

    The source is "held-out" (first and last evaluation) where all runs have it, else "training" (mean of the first and of the
    last steps). Rows without values are left out.
    """
    rows = []
    for label, metric in HEADLINE.items():
        evaluated = [run.evaluated(metric)[1] for run in runs]
        if all(len(values) > 1 for values in evaluated):
            source, ends = "held-out", [(values[0], values[-1]) for values in evaluated]
        else:
            source, ends = "training", [_ends([v for v in run.column(metric) if not isnan(v)]) for run in runs]
        if any(ends):
            changes = [pair and tuple(map(format_number, pair)) for pair in ends]
            rows.append({"label": label, "source": source, "changes": changes})
    return rows


def _ends(values: list[float]) -> tuple[float, float] | None:
    count = max(1, min(ENDS, len(values) // 2))
    return (statistics.fmean(values[:count]), statistics.fmean(values[-count:])) if values else None


def differing_flags(runs: list[RunRecord]) -> list[dict]:
    """Return the settings in which the runs differ; of a single run, those in which it differs from its preset."""
    names = [spec.name for spec in fields(Config) if spec.name not in FREE_ON_RESUME | {"preset"}]
    configs = [run.config for run in runs if run.config]
    if len(configs) == len(runs) == 1:
        configs.append(PRESETS.get(configs[0].get("preset"), {}))
    columns = [asdict(Config()) | config for config in configs]  # a flag that the run did not have yet: its default
    changed = [name for name in names if len({repr(config[name]) for config in columns}) > 1]
    return [{"flag": to_flag(name), "values": [_shown(config[name]) for config in columns[: len(runs)]]} for name in changed]


def _shown(value) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def state_of(run: RunRecord) -> str:
    """Say in one line how far the run is, how long it took and which code made it."""
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
