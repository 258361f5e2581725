"""The curves of the report: which ones there are, what to look for in each, and how they are drawn."""

import io
import re
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import isnan, nan

from rl.report.runs import RunRecord, spread


@dataclass(frozen=True)
class Chart:
    """A few curves that are read together.

    Attributes:
        note: what the curves are and what to look for; shown below the title.
        series: names in metrics.jsonl by label; evaluations of the same quantity are drawn as points.
        share: values are shares of one: the axis runs from 0 to 1.
        log: logarithmic axis.
        smooth: a running mean is drawn.
    """

    title: str
    note: str
    series: dict[str, str]
    share: bool = False
    log: bool = False
    smooth: bool = True


SECTIONS = {
    "What it learns": (
        Chart("Accuracy", "Of refine-prompt responses, and of plain answers (r̄). Points: held-out questions, greedy.",
              {"refine prompt": "pasr/refined_accuracy", "plain prompt, r̄": "pasr/plain_accuracy"}, share=True),
        Chart("Refining when it is needed",
              "P(a refinement follows | what was just written is wrong, right). Points: held-out questions, T = 1.",
              {"after an error": "pasr/p_refine_wrong", "after a right step": "pasr/p_refine_right"}, share=True),
        Chart("Responses that refine",
              "Share with a well-formed refinement; of those, the share whose refinements only repeat what was there.",
              {"refine": "pasr/refine_frac", "repeat only": "pasr/noop_refine_frac"}, share=True),
        Chart("What refinements earn",
              "Shares of refined responses that beat the plain answers (+1), tie (-0.5) or lose (-1), Eq. 6.",
              {"win": "pasr/win", "tie": "pasr/tie", "loss": "pasr/loss"}, share=True),
        Chart("Reward", "Mean of Eq. 7 and of its parts.",
              {"total": "reward", "format": "rewards/format/mean", "accuracy": "rewards/accuracy/mean",
               "refine": "rewards/refine/mean"}),
        Chart("Tokens per response", "Generated tokens, stop token included. Points: held-out questions, T = 1.",
              {"refine prompt": "completions/mean_length", "plain prompt": "completions/plain_mean_length"}),
    ),
    "Format and signal": (
        Chart("Well-formed responses",
              "Shares that meet the conditions of Eq. 4: both pairs, refinements inside, order. Points: held-out, T = 1.",
              {"all three": "pasr/wellformed", "C1": "pasr/format_c1", "C2": "pasr/format_c2", "C3": "pasr/format_c3",
               "plain answers": "pasr/plain_wellformed"}, share=True),
        Chart("Signal", "Groups skipped for equal rewards, groups without any right response, responses cut off.",
              {"equal rewards": "frac_reward_zero_std", "nothing right": "pasr/allfail_group_frac",
               "cut off": "completions/clipped_ratio"}, share=True),
        Chart("Which part of the reward decides", "cov(part, R) / var(R): the share of what tells responses apart.",
              {name: f"rewards/{name}/variance_share" for name in ("format", "accuracy", "refine")}),
    ),
    "Policy": (
        Chart("KL to the initial policy", "k3, mean over tokens.", {"KL": "kl"}),
        Chart("Entropy", "Nats per token. Falling to 0 early means that nothing is explored.", {"entropy": "entropy"}),
        Chart("Sampler against trainer",
              "Absolute gap of log-probs under the same weights. Growth is a bug, or too coarse a number format.",
              {"mean": "sampling/sampling_logp_difference/mean", "largest": "sampling/sampling_logp_difference/max"}, log=True),
        Chart("Gradient norm", "Before clipping.", {"norm": "grad_norm"}),
        Chart("Clipped tokens", "Share below 1 - clip_low and above 1 + clip_high; 0 with one optimizer step a batch.",
              {"low": "clip_ratio/low_mean", "high": "clip_ratio/high_mean"}),
        Chart("Learning rate", "Of AdamW.", {"learning rate": "learning_rate"}, smooth=False),
    ),
    "Speed and judge": (
        Chart("Tokens per second", "Sampled, and trained on.",
              {"sampled": "perf/rollout_tokens_per_s", "trained": "perf/train_tokens_per_s"}),
        Chart("Seconds of a step", "Waiting for scores is part of the rollout.",
              {"rollout": "time/rollout", "update": "time/update", "judge wait": "time/judge_wait",
               "weight sync": "time/sync"}),
        Chart("Peak memory", "GB of the device.", {"memory": "perf/peak_mem_gb"}),
        Chart("Judge calls", "Failed and unreadable ones are excluded from every mean.",
              {"calls": "judge/calls", "failed": "judge/failed", "unreadable": "judge/parse_failed",
               "retries": "judge/retries"}),
        Chart("Judge latency", "Seconds a call.", {"median": "judge/latency_p50", "95 %": "judge/latency_p95"}),
    ),
}  # fmt: skip


def benchmark_charts(names: Iterable[str]) -> list[Chart]:
    """Return a chart for each benchmark among metrics named eval/<benchmark>/<method>/accuracy."""
    series: dict[str, dict[str, str]] = {}
    for name in sorted(names):
        parts = name.split("/")
        if parts[0] == "eval" and parts[-1] == "accuracy" and len(parts) > 3:
            series.setdefault(parts[1], {})[" ".join(parts[2:-1])] = name
    return [Chart(benchmark, "Accuracy.", methods, share=True) for benchmark, methods in series.items()]


def one_curve_each(charts: Iterable[Chart]) -> list[Chart]:
    """Return the same curves in charts of their own, so that several runs can be laid over each other in each."""
    return [
        replace(chart, title=chart.title if len(chart.series) == 1 else f"{chart.title}: {label}", series={label: metric})
        for chart in charts
        for label, metric in chart.series.items()
    ]


WIDTH, HEIGHT = 360, 196  # points; the page shows a figure about this wide, so that its text keeps its size
LEFT, RIGHT, BOTTOM, TOP = 44 / WIDTH, 352 / WIDTH, 26 / HEIGHT, 188 / HEIGHT  # of the axes
MAX_POINTS = 200  # of a curve
SMOOTHING_SHARE = 25  # the running mean takes one such part of all steps
INK = "#010203"  # stands for the colour of text and grid until the style sheet gives it one
COLOURS = [f"#0{i}0{i}0{i}" for i in range(4, 10)]  # likewise for the curves
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "report", "font.family": "sans-serif", "font.size": 10.5, "axes.linewidth": 0.6,
    "path.simplify_threshold": 0.3,
}  # fmt: skip


@dataclass(frozen=True)
class Drawing:
    """A figure and what the page's script needs to read values off it.

    Attributes:
        svg: the fragment.
        entries: (label, number of its colour, last value) of each curve.
        hover: {"x": all steps, "steps", "y": steps and smoothed values of each curve, "low", "high": ends of the axis,
            "left", "right": where these are, as shares of the width}.
    """

    svg: str
    entries: list[tuple[str, int, str]]
    hover: dict


def window_of(count: int) -> int:
    """Return the number of steps of the running mean of `count` steps."""
    return max(1, round(count / SMOOTHING_SHARE))


def running_mean(values: list[float], window: int) -> list[float]:
    """Return the mean of the last `window` values at each step, without those that are not a number."""
    means = []
    for end in range(1, len(values) + 1):
        numbers = [value for value in values[max(0, end - window) : end] if not isnan(value)]
        means.append(statistics.fmean(numbers) if numbers else nan)
    return means


def plot(axes, run: RunRecord, metric: str, colour: str, *, smooth: bool = True, label: str = "") -> tuple[list, list]:
    """Plot single steps pale, their running mean bold and evaluations as points, which are joined where there are only these.

    Returns:
        Steps and running means, at most about MAX_POINTS and the last among them.
    """
    values, (at, points) = run.column(metric), run.evaluated(metric)
    means = running_mean(values, window_of(len(values)) if smooth else 1)
    shown = spread(list(range(len(values))), MAX_POINTS)
    steps, raw, mean = ([column[i] for i in shown] for column in (run.steps, values, means))
    if len(raw) > 1 and raw != mean:
        axes.plot(steps, raw, color=colour, alpha=0.25, linewidth=0.8)
    axes.plot(steps, mean, color=colour, linewidth=1.8, marker="o" if len(mean) == 1 else "", markersize=4, label=label)
    joined = "-" if all(map(isnan, values)) else ""
    axes.plot(at, points, color=colour, marker="o", markersize=4.5, linestyle=joined, clip_on=False, zorder=5)
    return steps, mean


def draw(chart: Chart, lines: list[tuple[str, RunRecord, str]]) -> Drawing | None:
    """Draw the (label, run, metric) of a chart; None where no run has any of them.

    The position of a line in the list decides its colour; empty lines are left out.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    entries, all_steps, all_means, output = [], [], [], io.StringIO()
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72)
        axes = figure.add_axes((LEFT, BOTTOM, RIGHT - LEFT, TOP - BOTTOM))

        # curves, and what the legend and the script say of each
        for number, (label, run, metric) in enumerate(lines):
            if run.has(metric):
                colour = number % len(COLOURS)
                steps, means = plot(axes, run, metric, COLOURS[colour], smooth=chart.smooth)
                last = [value for value in means if not isnan(value)] or run.evaluated(metric)[1]
                entries.append((label, colour, format_number(last[-1])))
                all_steps.append(steps)
                all_means.append([None if isnan(value) else float(f"{value:.4g}") for value in means])
        if not entries:
            return None

        # axes, and the figure as text
        _dress(axes, chart)
        low, high = axes.get_xlim()
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(output, format="svg", transparent=True, metadata=metadata)
    hover = {"x": sorted(set().union(*all_steps)), "steps": all_steps, "y": all_means}
    hover |= {"low": low, "high": high, "left": LEFT, "right": RIGHT}
    return Drawing(_fragment(output.getvalue(), chart), entries, hover)


def _dress(axes, chart: Chart) -> None:
    """Give the axes a light grid, no frame, whole steps and ticks that do not collide."""
    from matplotlib.ticker import MaxNLocator

    # range and ticks of the values
    if chart.log:
        axes.set_yscale("log", nonpositive="mask")
    elif chart.share:
        share_axis(axes, -0.03)
    else:
        low, high = axes.dataLim.intervaly
        if low >= 0:
            axes.set_ylim(0, 1.12 * high if high > 0 else 1)
        else:
            axes.margins(y=0.12)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter("{x:g}")

    # steps, frame and grid
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    light_frame(axes, INK, grid=0.13)
    axes.minorticks_off()
    axes.tick_params(pad=5)


def share_axis(axes, low: float) -> None:
    """Let the axis of shares run from `low` to just above 1."""
    axes.set_ylim(low, 1.03)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".5", ".75", "1"])


def light_frame(axes, colour: str, grid: float) -> None:
    """Leave the line of the steps and a pale grid, without ticks."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(colour)
    axes.grid(axis="y", color=colour, alpha=grid, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=colour, length=0)


def format_number(value: float | None) -> str:
    """Write a number for a reader: three digits that count, a dash for none."""
    if value is None or isnan(value):
        return "–"
    if abs(value) >= 1000 or value == 0:
        return f"{value:,.0f}"
    if abs(value) >= 1e-3:
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return f"{value:.1e}"


def _fragment(svg: str, chart: Chart) -> str:
    """Return the <svg> element alone: colours by the style sheet, two decimals, no ids but those referred to."""
    svg = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    opening = rf'<svg viewBox="\1" role="img" aria-label="{chart.title}">'
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', opening, svg, count=1)
    svg = round_coordinates(re.sub(r' id="[a-zA-Z0-9.]+_\d+"', "", svg))
    svg = re.sub(r"font: ([\d.]+)px 'sans-serif', sans-serif", r"font-size: \1px", svg)
    for colour, variable in [(INK, "ink-soft"), *((colour, f"curve-{i}") for i, colour in enumerate(COLOURS))]:
        svg = svg.replace(colour, f"var(--{variable})")
    return svg.strip()


def round_coordinates(svg: str) -> str:
    """Round points to two decimals, which are plenty and halve the size."""
    return re.sub(r'(?<= )(d|x|y)="[^"]*"', lambda match: re.sub(r"(\d+\.\d\d)\d+", r"\1", match.group()), svg)
