"""Which curves the report shows, and what to look for in each."""

import io
import re
import statistics
from dataclasses import dataclass, replace

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator


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
        smooth: whether a running mean is drawn.
    """

    title: str
    note: str
    series: tuple[Series, ...]
    share: bool = False
    log: bool = False
    smooth: bool = True


@dataclass(frozen=True)
class Section:
    title: str
    charts: tuple[Chart, ...]


def _chart(title: str, note: str, *series: tuple[str, ...], **looks: bool) -> Chart:
    return Chart(title, note, tuple(Series(*one) for one in series), **looks)


SECTIONS = (
    Section(
        "What it learns",
        (
            _chart(
                "Accuracy",
                "Of refine-prompt responses, and of plain answers (r̄). Points: held-out questions, greedy.",
                ("refine prompt", "pasr/refined_accuracy", "greedy/refined_accuracy"),
                ("plain prompt, r̄", "pasr/plain_accuracy", "greedy/plain_accuracy"),
                share=True,
            ),
            _chart(
                "Refining when it is needed",
                "P(a refinement follows | what was just written is wrong, right). Points: held-out questions, T = 1.",
                ("after an error", "pasr/p_refine_wrong", "sampled/p_refine_wrong"),
                ("after a right step", "pasr/p_refine_right", "sampled/p_refine_right"),
                share=True,
            ),
            _chart(
                "Responses that refine",
                "Share with a well-formed refinement; of those, the share whose refinements only repeat what was there.",
                ("refine", "pasr/refine_frac", "sampled/refine_rate"),
                ("repeat only", "pasr/noop_refine_frac"),
                share=True,
            ),
            _chart(
                "What refinements earn",
                "Shares of refined responses that beat the plain answers (+1), tie (-0.5) or lose (-1), Eq. 6.",
                ("win", "pasr/win"),
                ("tie", "pasr/tie"),
                ("loss", "pasr/loss"),
                share=True,
            ),
            _chart(
                "Reward",
                "Mean of Eq. 7 and of its parts.",
                ("total", "reward"),
                ("format", "rewards/format/mean"),
                ("accuracy", "rewards/accuracy/mean"),
                ("refine", "rewards/refine/mean"),
            ),
            _chart(
                "Tokens per response",
                "Generated tokens, stop token included.",
                ("refine prompt", "completions/mean_length"),
                ("plain prompt", "completions/plain_mean_length"),
            ),
        ),
    ),
    Section(
        "Format and signal",
        (
            _chart(
                "Well-formed responses",
                "Shares that meet the conditions of Eq. 4: both pairs, refinements inside thinking, order.",
                ("all three", "pasr/wellformed"),
                ("C1", "pasr/format_c1"),
                ("C2", "pasr/format_c2"),
                ("C3", "pasr/format_c3"),
                ("plain answers", "pasr/plain_wellformed"),
                share=True,
            ),
            _chart(
                "Signal",
                "Groups skipped for equal rewards, groups without any right response, responses cut off.",
                ("equal rewards", "frac_reward_zero_std"),
                ("nothing right", "pasr/allfail_group_frac"),
                ("cut off", "completions/clipped_ratio"),
                share=True,
            ),
            _chart(
                "Which part of the reward decides",
                "cov(part, R) / var(R): the share of what tells responses apart.",
                ("format", "rewards/format/variance_share"),
                ("accuracy", "rewards/accuracy/variance_share"),
                ("refine", "rewards/refine/variance_share"),
            ),
        ),
    ),
    Section(
        "Policy",
        (
            _chart("KL to the initial policy", "k3, mean over tokens.", ("KL", "kl")),
            _chart("Entropy", "Nats per token. Falling to 0 early means that nothing is explored.", ("entropy", "entropy")),
            _chart(
                "Sampler against trainer",
                "Absolute gap of log-probs under the same weights. Growth is a bug, or too coarse a number format.",
                ("mean", "sampling/sampling_logp_difference/mean"),
                ("largest", "sampling/sampling_logp_difference/max"),
                log=True,
            ),
            _chart("Gradient norm", "Before clipping.", ("norm", "grad_norm")),
            _chart(
                "Clipped tokens",
                "Share below 1 - clip_low and above 1 + clip_high; 0 with one optimizer step a batch.",
                ("low", "clip_ratio/low_mean"),
                ("high", "clip_ratio/high_mean"),
            ),
            _chart("Learning rate", "Of AdamW.", ("learning rate", "learning_rate"), smooth=False),
        ),
    ),
    Section(
        "Speed and judge",
        (
            _chart(
                "Tokens per second",
                "Sampled, and trained on.",
                ("sampled", "perf/rollout_tokens_per_s"),
                ("trained", "perf/train_tokens_per_s"),
            ),
            _chart(
                "Seconds of a step",
                "Waiting for scores is part of the rollout.",
                ("rollout", "time/rollout"),
                ("update", "time/update"),
                ("judge wait", "time/judge_wait"),
                ("weight sync", "time/sync"),
            ),
            _chart("Peak memory", "GB of the device.", ("memory", "perf/peak_mem_gb")),
            _chart(
                "Judge calls",
                "Failed and unreadable ones are excluded from every mean.",
                ("calls", "judge/calls"),
                ("failed", "judge/failed"),
                ("unreadable", "judge/parse_failed"),
                ("retries", "judge/retries"),
            ),
            _chart("Judge latency", "Seconds a call.", ("median", "judge/latency_p50"), ("95 %", "judge/latency_p95")),
        ),
    ),
)


def benchmark_section(names: set[str]) -> Section | None:
    """A chart for each benchmark among metrics named eval/<benchmark>/<method>/accuracy; None without any."""
    found: dict[str, list[Series]] = {}
    for name in sorted(names):
        parts = name.split("/")
        if parts[0] == "eval" and parts[-1] == "accuracy" and len(parts) > 3:
            found.setdefault(parts[1], []).append(Series(" ".join(parts[2:-1]), "", name))
    charts = [Chart(benchmark, "Accuracy.", tuple(series), share=True) for benchmark, series in found.items()]
    return Section("Benchmarks during training", tuple(charts)) if charts else None


def one_curve_each(section: Section) -> Section:
    """The same curves in charts of their own, so that several runs can be laid over each other in each."""
    charts = [
        replace(chart, title=_title_of_one(chart, series), series=(series,))
        for chart in section.charts
        for series in chart.series
    ]
    return Section(section.title, tuple(charts))


def _title_of_one(chart: Chart, series: Series) -> str:
    return chart.title if len(chart.series) == 1 else f"{chart.title}: {series.label}"


WIDTH, HEIGHT = 360, 196  # points; the page shows a figure about this wide, so that its text keeps its size
LEFT, RIGHT, BOTTOM, TOP = 44, 352, 26, 188  # of the axes
MAX_POINTS = 200  # of a curve
SMOOTHING_SHARE = 25  # the running mean takes one such part of all steps
INK = "#010203"  # stands for the colour of text and grid until the style sheet gives it one
COLOURS = [f"#0{i}0{i}0{i}" for i in range(4, 10)]  # likewise for the curves
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.family": "sans-serif",
    "font.size": 10.5,
    "axes.linewidth": 0.6,
    "path.simplify_threshold": 0.3,
}


@dataclass(frozen=True)
class Line:
    """A curve of one chart: values at each step (not a number where unknown), and points of evaluations."""

    label: str
    steps: list[int]
    values: list[float]
    point_steps: list[int]
    point_values: list[float]

    @property
    def is_empty(self) -> bool:
        return not self.point_values and not any(value == value for value in self.values)


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
    """Steps of the running mean of `count` steps."""
    return max(1, round(count / SMOOTHING_SHARE))


def running_mean(values: list[float], window: int) -> list[float]:
    """Mean of the last `window` values, leaving out what is not a number; not a number before the first one."""
    means = []
    for end in range(1, len(values) + 1):
        known = [value for value in values[max(0, end - window) : end] if value == value]
        means.append(statistics.fmean(known) if known else float("nan"))
    return means


def thin(steps: list[int], *columns: list[float]) -> tuple[list, ...]:
    """Every k-th entry and the last, so that at most about MAX_POINTS stay."""
    stride = -(-len(steps) // MAX_POINTS) or 1
    places = sorted({*range(0, len(steps), stride), len(steps) - 1}) if steps else []
    return tuple([column[i] for i in places] for column in (steps, *columns))


def draw(chart: Chart, lines: list[Line | None]) -> Drawing:
    """A chart. The place of a line decides its colour; None keeps a place free."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72)
        axes = figure.add_axes((LEFT / WIDTH, BOTTOM / HEIGHT, (RIGHT - LEFT) / WIDTH, (TOP - BOTTOM) / HEIGHT))
        entries, columns, shown, base = [], [], [], []
        for number, line in enumerate(lines):
            if line is None or line.is_empty:
                continue
            smooth = running_mean(line.values, window_of(len(line.values)) if chart.smooth else 1)
            steps, raw, mean = thin(line.steps, line.values, smooth)
            colour = COLOURS[number % len(COLOURS)]
            if len(raw) > 1 and raw != mean:
                axes.plot(steps, raw, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(steps, mean, color=colour, linewidth=1.8, marker="o" if len(mean) == 1 else "", markersize=4)
            joined = "" if any(value == value for value in line.values) else "-"
            axes.plot(line.point_steps, line.point_values, color=colour, marker="o", markersize=4.5, linestyle=joined)
            last = next((v for v in reversed(smooth) if v == v), line.point_values[-1] if line.point_values else None)
            entries.append((line.label, number % len(COLOURS), format_number(last)))
            columns.append([_rounded(value) for value in mean])
            shown.append(steps)
            base = sorted({*base, *steps})
        _dress(axes, chart)
        low, high = axes.get_xlim()
        output = io.StringIO()
        figure.savefig(
            output, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    hover = {"x": base, "steps": shown, "y": columns, "low": low, "high": high, "left": LEFT / WIDTH, "right": RIGHT / WIDTH}
    return Drawing(_fragment(output.getvalue(), chart), entries, hover)


def _dress(axes, chart: Chart) -> None:
    """Light grid, no frame, whole steps, ticks that do not collide."""
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
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
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
    """A number for a reader: three digits that count, a dash for none."""
    if value is None or value != value:
        return "–"
    if abs(value) >= 1000 or value == 0:
        return f"{value:,.0f}"
    if abs(value) >= 1e-3:
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return f"{value:.1e}"


def _rounded(value: float) -> float | None:
    return float(f"{value:.4g}") if value == value else None


def _fragment(svg: str, chart: Chart) -> str:
    """The <svg> element alone: colours by the style sheet, coordinates with two decimals, no ids but those referred to."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{chart.title}">', svg, count=1
    )
    svg = re.sub(r' id="[a-zA-Z0-9.]+_\d+"', "", svg)
    svg = round_coordinates(svg)
    svg = re.sub(r"font: ([\d.]+)px 'sans-serif', sans-serif", r"font-size: \1px", svg)
    svg = svg.replace(INK, "var(--ink-soft)")
    for number, colour in enumerate(COLOURS):
        svg = svg.replace(colour, f"var(--curve-{number})")
    return svg.strip()


def round_coordinates(svg: str) -> str:
    """Two decimals of a point are plenty, and halve the size."""
    return re.sub(r'(?<= )(d|x|y)="[^"]*"', lambda match: re.sub(r"(\d+\.\d\d)\d+", r"\1", match.group()), svg)
