"""Which curves the report shows, and what to look for in each."""

from dataclasses import dataclass, replace


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
