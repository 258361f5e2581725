"""One picture of a run's result, for a README or a talk: accuracy, when refinements happen, and one answer before and after."""

from pathlib import Path

from rl.report.curves import SECTIONS, Chart, light_frame, plot, round_coordinates, share_axis
from rl.report.runs import RunRecord, Segment, load_run, segments

STYLE = {
    "svg.fonttype": "path", "svg.hashsalt": "picture", "font.family": "DejaVu Sans", "font.size": 10,
    "mathtext.default": "regular",
}  # fmt: skip
INK, SOFT, BLUE, ORANGE, TAG, MARK = "#1c1d1f", "#5d6168", "#2456c8", "#d2691e", "#9297a0", "#fff0bf"
LOOKS = {  # of the pieces of an answer
    "label": {"color": SOFT},
    "tag": {"color": TAG},
    "text": {"color": INK},
    "refine": {"color": INK, "weight": "bold", "bbox": {"facecolor": MARK, "edgecolor": "none", "pad": 1.5}},
    "answer": {"color": INK, "weight": "bold"},
}


def draw_picture(folder: Path | str, file: Path | str) -> Path:
    """Draw the result of a demo run; the suffix of `file` decides the format.

    Raises:
        ValueError: no run folder, or the run has no evaluation before and after training.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    run, file = load_run(folder), Path(file)
    if not run.is_demo or len(run.evaluations) < 2:
        raise ValueError(f"{folder}: the picture needs a demo run that was evaluated before and after training")
    mended = [pair for pair in run.mended_answers() if "<refine>" in pair[1]["text"]]
    if not mended:
        raise ValueError(f"{folder}: no held-out answer was mended by a refinement; there is nothing to show")
    old, new = mended[0]
    with rc_context(STYLE):
        # two panels of curves
        figure = Figure(figsize=(9.6, 4.7), facecolor="white")
        for left, corner, chart in zip(
            (0.055, 0.555), ("lower right", "center right"), SECTIONS["What it learns"], strict=False
        ):
            axes = figure.add_axes((left, 0.4, 0.42, 0.52))
            _draw_panel(axes, run, chart)
            axes.legend(loc=corner, frameon=False, labelcolor=INK, handlelength=1.4)

        # one answer before and after
        trace = figure.add_axes((0, 0, 1, 0.28))
        trace.axis("off")
        _write(trace, 0.8, [Segment("label", f"{old['question']}   a held-out question, answered greedily")])
        _write(trace, 0.5, [Segment("label", "before  "), *segments(old["text"])])
        _write(trace, 0.2, [Segment("label", "after   "), *segments(new["text"])])
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None, dpi=200)
    if file.suffix == ".svg":
        file.write_text(round_coordinates(file.read_text(encoding="utf-8")), encoding="utf-8")
    return file


def _draw_panel(axes, run: RunRecord, chart: Chart) -> None:
    # curves, and points of evaluations
    ends = []
    for (label, metric), colour in zip(chart.series.items(), (BLUE, ORANGE), strict=True):
        plot(axes, run, metric, colour, label=label)
        steps, values = run.evaluated(metric)
        ends.append((steps[0], values[0], steps[-1], values[-1], colour))

    # numbers at both ends; only one where both curves begin alike
    apart = abs(ends[0][1] - ends[1][1]) > 0.05
    for number, (first, begin, last, end, colour) in enumerate(ends):
        if number == 0 or apart:
            _label(axes, first, begin, colour if apart else INK, (6, 9), "left")
        _label(axes, last, end, colour, (-6, 9 if end < 0.85 else -16), "right")

    # axes
    axes.set_title(chart.title, loc="left", weight="bold", color=INK, fontsize=11.5)
    axes.set_xlabel("steps of reinforcement learning", color=SOFT, fontsize=9)
    share_axis(axes, 0.0)
    light_frame(axes, SOFT, grid=0.25)


def _label(axes, step: int, value: float, colour: str, shift: tuple[int, int], align: str) -> None:
    look = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1}
    axes.annotate(
        f"{value:.2f}", (step, value), shift, textcoords="offset points", ha=align, color=colour, weight="bold", bbox=look,
        zorder=6,
    )  # fmt: skip


def _write(axes, height: float, pieces: list[Segment]) -> None:
    """Write one line of text whose pieces have colours of their own."""
    from matplotlib.offsetbox import AnchoredOffsetbox, HPacker, TextArea

    font = {"family": "DejaVu Sans Mono", "size": 11}
    areas = [TextArea(piece.text, textprops=font | LOOKS[piece.kind]) for piece in pieces]
    line = HPacker(children=areas, align="baseline", pad=0, sep=0)
    box = AnchoredOffsetbox(
        "center left", child=line, frameon=False, pad=0, bbox_to_anchor=(0.055, height), bbox_transform=axes.transAxes
    )
    axes.add_artist(box)
