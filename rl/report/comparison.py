"""Runs side by side, grouped by the flags that differ: one table over seeds, the steps as CSV, one picture, some responses.

    python -m rl.report --table runs/a runs/b ...               the table, as Markdown
    python -m rl.report --table runs/a ... --out DIR            all of it, into a folder

The folder gets README.md (table and responses), metrics.csv and curves.svg.
"""

import csv
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

from rl.evaluation.tables import WIDTH, text_table
from rl.report.runs import RunRecord, load_run, readable_lines, spread

SAME_ARM = {"seed", "sft_seed", "run", "runs_dir", "resume", "resume_with_changes", "save_every", "keep", "wandb", "show_every"}
EVALUATED = ("accuracy", "refined", "tokens")  # of eval/BENCHMARK/METHOD/...
OF_THE_DEMO = ("greedy/refined_accuracy", "sampled/p_refine_wrong", "sampled/p_refine_right", "sampled/refine_rate",
               "sampled/fix_share", "sampled/harm_share", "sampled/useless_share", "sampled/refined_tokens")  # fmt: skip
IN_CSV = ("reward", "pasr/refined_accuracy", "pasr/plain_accuracy", "pasr/refine_frac", "pasr/win", "pasr/tie", "pasr/loss",
          "pasr/wellformed", "kl", "entropy", "completions/mean_length", "num_tokens", "trained_tokens", "time/rollout",
          "time/update")  # fmt: skip
Arms = dict[str, list[RunRecord]]


def group_runs(folders: list[str]) -> Arms:
    """Return the runs by arm. An arm is named by those flags in which not all runs agree, seeds and folders aside.

    Raises:
        ValueError: a folder is no run folder.
    """
    runs = [load_run(folder) for folder in folders]
    names = {name for run in runs for name in run.config} - SAME_ARM
    differing = sorted(name for name in names if len({json.dumps(run.config.get(name)) for run in runs}) > 1)
    arms: Arms = {}
    for run in runs:
        label = ", ".join(f"--{name.replace('_', '-')} {run.config.get(name)}" for name in differing)
        arms.setdefault(label or "all runs", []).append(run)
    return arms


def default_metrics(arms: Arms) -> list[str]:
    """Return the metrics of the evaluations that a reader compares: those of the demo, or accuracy, refinements, tokens."""
    names = {name for runs in arms.values() for run in runs for metrics in run.evaluations.values() for name in metrics}
    benchmarks = sorted(n for n in names if n.startswith("eval/") and n.rsplit("/", 1)[1] in EVALUATED)
    return [name for name in OF_THE_DEMO if name in names] or benchmarks or ["reward"]


def ends(run: RunRecord, metric: str) -> tuple[float, float]:
    """Return a metric before and after training: of the first and last evaluation, else of the first and last step."""
    values = run.evaluated(metric)[1] or [value for value in run.column(metric) if not math.isnan(value)]
    return (values[0], values[-1]) if values else (math.nan, math.nan)


def over_seeds(values: list[float]) -> str:
    """Return the mean, and with several seeds the range."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return "-"
    shown = [f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" for value in (mean(known), min(known), max(known))]
    return f"{shown[0]} ({shown[1]}-{shown[2]})" if len(known) > 1 else shown[0]


def comparison_table(arms: Arms, metrics: list[str], width: int = WIDTH) -> str:
    """Return Markdown with a row for each metric: before training, and after it for each arm. Columns beyond the width wrap."""
    head = ["metric", "before", *(f"{label}, {len(runs)} seed{'s' * (len(runs) > 1)}" for label, runs in arms.items())]
    rows = []
    for metric in metrics:
        before = [ends(run, metric)[0] for runs in arms.values() for run in runs]
        after = [over_seeds([ends(run, metric)[1] for run in runs]) for runs in arms.values()]
        rows.append([metric, over_seeds(before), *after])
    return text_table(head, rows, width)


def steps_as_csv(arms: Arms) -> str:
    """Return a few metrics of every step of every run, and those of its evaluations."""
    out, evaluated = io.StringIO(), default_metrics(arms)
    columns = [*IN_CSV, *(name for name in evaluated if name not in IN_CSV)]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["arm", "run", "seed", "step", *columns])
    for label, runs in arms.items():
        for run in runs:
            for row in run.metrics:
                known = row | run.evaluations.get(row["step"], {})
                cells = [known.get(name) for name in columns]
                shown = ["" if cell is None else f"{cell:.5g}" if isinstance(cell, float) else cell for cell in cells]
                writer.writerow([label, run.name, run.config.get("seed"), row["step"], *shown])
    return out.getvalue()


def draw_arms(arms: Arms, metrics: list[str], file: Path) -> None:
    """Draw each metric over the steps: a line through the means of an arm, a band from the lowest to the highest seed."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from rl.report.picture import STYLE

    with rc_context(STYLE):
        figure = Figure(figsize=(4.2 * len(metrics), 3.2), layout="constrained")
        for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
            for label, runs in arms.items():
                curves = [dict(zip(*run.evaluated(metric), strict=True)) for run in runs]
                steps = sorted(set.intersection(*map(set, curves)))
                values = [[curve[step] for curve in curves] for step in steps]
                (line,) = axes.plot(steps, [mean(v) for v in values], marker="o", markersize=4, label=label)
                axes.fill_between(steps, [min(v) for v in values], [max(v) for v in values], color=line.get_color(), alpha=0.15)
            axes.set_title(metric.removeprefix("eval/"), fontsize=10, loc="left")
            axes.set_xlabel("step")
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False)
        figure.savefig(file, metadata={"Date": None})


def responses(run: RunRecord, count: int) -> Iterator[str]:
    """Yield refine-prompt responses of the first and the last step with their rewards, as Markdown."""
    files = sorted((run.path / "rollouts").glob("step_*.jsonl"))
    for file in (files[0], files[-1]) if files else ():
        rows = [row for row in readable_lines(file)[0] if row.get("mode") == "refine"]
        for row in spread(rows, count):
            paid = ", ".join(f"{name} {row.get(name)}" for name in ("reward", "accuracy", "refine", "baseline"))
            yield f"**{file.stem.replace('_', ' ')}** ({paid}): {row['question']}\n\n```\n{row['text']}\n```\n"


def write_comparison(folders: list[str], metrics: list[str] | None, out: Path | None) -> str:
    """Return the table; with `out` write README.md (table and responses), metrics.csv and curves.svg into that folder."""
    arms = group_runs(folders)
    table = comparison_table(arms, metrics or default_metrics(arms))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "metrics.csv").write_text(steps_as_csv(arms), encoding="utf-8")
        drawn = [
            m for m in metrics or default_metrics(arms) if all(len(r.evaluated(m)[0]) > 1 for rs in arms.values() for r in rs)
        ]
        if drawn:
            draw_arms(arms, drawn, out / "curves.svg")
        first = next(iter(arms.values()))[0]
        whole = comparison_table(arms, metrics or default_metrics(arms), width=10_000)
        page = [f"{whole}\n", "![curves](curves.svg)\n"] if drawn else [f"{whole}\n"]
        (out / "README.md").write_text("\n".join([*page, *responses(first, 3)]), encoding="utf-8")
    return table
