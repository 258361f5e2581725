"""The curves of the report: which ones there are, what to look for in each, and how they are drawn."""

import io
import re
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import isnan, nan


@dataclass(frozen=True)
class Series:
    """One curve.

    Attributes:
        metric: its name in metrics.jsonl; "" if only evaluations have it: then their points are joined.
        evaluation: name of the same quantity in evaluations, drawn as points; "" for none.
    """

    label: str
    metric: str
    evaluation: str = ""


@dataclass(frozen=True)
class Chart:
    """A few curves that are read together.

    Attributes:
        note: what the curves are and what to look for; shown below the title.
        share: values are shares of one: the axis runs from 0 to 1.
        log: logarithmic axis.
        smooth: a running mean is drawn.
    """

    title: str
    note: str
    series: tuple[Series, ...]
    share: bool = False
    log: bool = False
    smooth: bool = True


def _chart(title: str, note: str, *series: tuple[str, ...], **looks: bool) -> Chart:
    return Chart(title, note, tuple(Series(*one) for one in series), **looks)


SECTIONS = {
    "What it learns": (
        _chart("Accuracy", "Of refine-prompt responses, and of plain answers (r̄). Points: held-out questions, greedy.",
               ("refine prompt", "pasr/refined_accuracy", "greedy/refined_accuracy"),
               ("plain prompt, r̄", "pasr/plain_accuracy", "greedy/plain_accuracy"), share=True),
        _chart("Refining when it is needed",
               "P(a refinement follows | what was just written is wrong, right). Points: held-out questions, T = 1.",
               ("after an error", "pasr/p_refine_wrong", "sampled/p_refine_wrong"),
               ("after a right step", "pasr/p_refine_right", "sampled/p_refine_right"), share=True),
        _chart("Responses that refine",
               "Share with a well-formed refinement; of those, the share whose refinements only repeat what was there.",
               ("refine", "pasr/refine_frac", "sampled/refine_rate"),
               ("repeat only", "pasr/noop_refine_frac"), share=True),
        _chart("What refinements earn",
               "Shares of refined responses that beat the plain answers (+1), tie (-0.5) or lose (-1), Eq. 6.",
               ("win", "pasr/win"), ("tie", "pasr/tie"), ("loss", "pasr/loss"), share=True),
        _chart("Reward", "Mean of Eq. 7 and of its parts.",
               ("total", "reward"), ("format", "rewards/format/mean"),
               ("accuracy", "rewards/accuracy/mean"), ("refine", "rewards/refine/mean")),
        _chart("Tokens per response", "Generated tokens, stop token included.",
               ("refine prompt", "completions/mean_length"), ("plain prompt", "completions/plain_mean_length")),
    ),
    "Format and signal": (
        _chart("Well-formed responses",
               "Shares that meet the conditions of Eq. 4: both pairs, refinements inside thinking, order.",
               ("all three", "pasr/wellformed"), ("C1", "pasr/format_c1"), ("C2", "pasr/format_c2"), ("C3", "pasr/format_c3"),
               ("plain answers", "pasr/plain_wellformed"), share=True),
        _chart("Signal", "Groups skipped for equal rewards, groups without any right response, responses cut off.",
               ("equal rewards", "frac_reward_zero_std"), ("nothing right", "pasr/allfail_group_frac"),
               ("cut off", "completions/clipped_ratio"), share=True),
        _chart("Which part of the reward decides", "cov(part, R) / var(R): the share of what tells responses apart.",
               ("format", "rewards/format/variance_share"), ("accuracy", "rewards/accuracy/variance_share"),
               ("refine", "rewards/refine/variance_share")),
    ),
    "Policy": (
        _chart("KL to the initial policy", "k3, mean over tokens.", ("KL", "kl")),
        _chart("Entropy", "Nats per token. Falling to 0 early means that nothing is explored.", ("entropy", "entropy")),
        _chart("Sampler against trainer",
               "Absolute gap of log-probs under the same weights. Growth is a bug, or too coarse a number format.",
               ("mean", "sampling/sampling_logp_difference/mean"),
               ("largest", "sampling/sampling_logp_difference/max"), log=True),
        _chart("Gradient norm", "Before clipping.", ("norm", "grad_norm")),
        _chart("Clipped tokens", "Share below 1 - clip_low and above 1 + clip_high; 0 with one optimizer step a batch.",
               ("low", "clip_ratio/low_mean"), ("high", "clip_ratio/high_mean")),
        _chart("Learning rate", "Of AdamW.", ("learning rate", "learning_rate"), smooth=False),
    ),
    "Speed and judge": (
        _chart("Tokens per second", "Sampled, and trained on.",
               ("sampled", "perf/rollout_tokens_per_s"), ("trained", "perf/train_tokens_per_s")),
        _chart("Seconds of a step", "Waiting for scores is part of the rollout.", ("rollout", "time/rollout"),
               ("update", "time/update"), ("judge wait", "time/judge_wait"), ("weight sync", "time/sync")),
        _chart("Peak memory", "GB of the device.", ("memory", "perf/peak_mem_gb")),
        _chart("Judge calls", "Failed and unreadable ones are excluded from every mean.", ("calls", "judge/calls"),
               ("failed", "judge/failed"), ("unreadable", "judge/parse_failed"), ("retries", "judge/retries")),
        _chart("Judge latency", "Seconds a call.", ("median", "judge/latency_p50"), ("95 %", "judge/latency_p95")),
    ),
}  # fmt: skip


def benchmark_charts(names: set[str]) -> list[Chart]:
    """Return a chart for each benchmark among metrics named eval/<benchmark>/<method>/accuracy."""
    series: dict[str, list[Series]] = {}
    for name in sorted(names):
        parts = name.split("/")
        if parts[0] == "eval" and parts[-1] == "accuracy" and len(parts) > 3:
            series.setdefault(parts[1], []).append(Series(" ".join(parts[2:-1]), "", name))
    return [Chart(benchmark, "Accuracy.", tuple(methods), share=True) for benchmark, methods in series.items()]


def one_curve_each(charts: Iterable[Chart]) -> list[Chart]:
    """Return the same curves in charts of their own, so that several runs can be laid over each other in each."""
    return [
        replace(chart, title=chart.title if len(chart.series) == 1 else f"{chart.title}: {series.label}", series=(series,))
        for chart in charts
        for series in chart.series
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
class Line:
    """A curve of one run: values at each step (not a number where there is none), and points of evaluations."""

    label: str
    steps: list[int]
    values: list[float]
    point_steps: list[int]
    point_values: list[float]

    @property
    def is_empty(self) -> bool:
        return not self.point_values and all(map(isnan, self.values))


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


def thin(steps: list[int], *columns: list[float]) -> tuple[list, ...]:
    """Return every k-th entry and the last, so that at most about MAX_POINTS stay."""
    stride = -(-len(steps) // MAX_POINTS) or 1
    indices = sorted({*range(0, len(steps), stride), len(steps) - 1}) if steps else []
    return tuple([column[i] for i in indices] for column in (steps, *columns))


def draw(chart: Chart, lines: list[Line]) -> Drawing:
    """Draw a chart. The position of a line in the list decides its colour; empty lines are left out."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    entries, hover_steps, hover_values, output = [], [], [], io.StringIO()
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72)
        axes = figure.add_axes((LEFT, BOTTOM, RIGHT - LEFT, TOP - BOTTOM))

        # single steps pale, their running mean bold, evaluations as points
        for number, line in enumerate(lines):
            if line.is_empty:
                continue
            smooth = running_mean(line.values, window_of(len(line.values)) if chart.smooth else 1)
            steps, raw, mean = thin(line.steps, line.values, smooth)
            colour = number % len(COLOURS)
            if len(raw) > 1 and raw != mean:
                axes.plot(steps, raw, color=COLOURS[colour], alpha=0.25, linewidth=0.8)
            axes.plot(steps, mean, color=COLOURS[colour], linewidth=1.8, marker="o" if len(mean) == 1 else "", markersize=4)
            joined = "-" if all(map(isnan, line.values)) else ""
            axes.plot(line.point_steps, line.point_values, color=COLOURS[colour], marker="o", markersize=4.5, linestyle=joined)
            last = [value for value in smooth if not isnan(value)] or line.point_values
            entries.append((line.label, colour, format_number(last[-1])))
            hover_steps.append(steps)
            hover_values.append([None if isnan(value) else float(f"{value:.4g}") for value in mean])

        # axes, and the figure as text
        _dress(axes, chart)
        low, high = axes.get_xlim()
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(output, format="svg", transparent=True, metadata=metadata)
    hover = {"x": sorted(set().union(*hover_steps)), "steps": hover_steps, "y": hover_values}
    hover |= {"low": low, "high": high, "left": LEFT, "right": RIGHT}
    return Drawing(_fragment(output.getvalue(), chart), entries, hover)


def _dress(axes, chart: Chart) -> None:
    """Give the axes a light grid, no frame, whole steps and ticks that do not collide."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    # range and ticks of the values
    if chart.log:
        axes.set_yscale("log", nonpositive="mask")
    elif chart.share:
        axes.set_ylim(-0.03, 1.03)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".5", ".75", "1"])
    else:
        low, high = axes.dataLim.intervaly
        if low >= 0:
            axes.set_ylim(0, 1.12 * high if high > 0 else 1)
        else:
            axes.margins(y=0.12)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))

    # steps, frame and grid
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(INK)
    axes.grid(axis="y", color=INK, alpha=0.13, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.minorticks_off()
    axes.tick_params(colors=INK, length=0, pad=5)


def _tick(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.4g}" if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")


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
