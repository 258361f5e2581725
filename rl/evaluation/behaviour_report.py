"""The behaviour analyses for readers: where the answers come from, a Markdown summary, and a figure for each analysis.

The paper's figures beside ours are of 384 answers (transitions; its plain answers are the base model's) and 300 (coherence).
"""

import json
from contextlib import ExitStack, closing
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np

from rewards.judge_prompts import INSTRUCTIONS
from rl.evaluation.behaviour import BINS, HIGH, JUDGE_PROMPTS, LOW, TRANSITIONS, analyse
from rl.evaluation.records import AnswerRecord, load_settings, methods_of, read_records, read_rollouts
from rl.files import write_whole
from rl.judging.judge import JudgeSpec, make_scorers
from rl.run.checkpoint import newest_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER = {
    "transitions": {"right->right": 0.26, "wrong->wrong": 0.08, "wrong->right": 0.61, "right->wrong": 0.05},
    "coherence": {"high": 0.80, "middle": 0.16, "low": 0.04},
    "alignment": {"high": 0.94, "middle": 0.04, "low": 0.02},
}
LABELS = {  # of grades and of what became of the answer
    "high": f"{HIGH} or more",
    "middle": f"{LOW} to {HIGH}",
    "low": f"below {LOW}",
    "new": "new: written nowhere before",
    "written before": "written before, not as the last",
    "kept": "kept: the last candidate before",
}
NO_PAIRS = "Nothing to compare: no plain answers, or no scores."
HEAD = """\
Shares with their counts and 95 % Wilson intervals (several samples of a question are not
independent). The paper's figures are of its own model and tasks: 384 answers (coherence and
alignment: 300), compared with the base model's plain answers."""
PLAIN, REFINED = ("vanilla",), ("pasr", "pasr-ift", "pasr-prompt")  # methods that are compared, in order of preference
TRIED = "alignment"  # the prompt by which a judge is tried out, because right and wrong answers differ in it


def analyse_folder(
    folder: Path,
    judge: JudgeSpec | None = None,
    *,
    plain: str | None = None,
    refined: str | None = None,
    plain_from: Path | None = None,
    score: str | None = None,
    last_steps: int = 10,
) -> dict:
    """Analyse the records of an evaluation (FOLDER/records) or the rollouts of a run (FOLDER/rollouts).

    Args:
        judge: the judge. None or rules: without the judge's parts; self: the model that gave the refined answers.
        plain, refined: methods to compare; default vanilla, with the first there is of pasr, pasr-ift and pasr-prompt.
        plain_from: folder of the evaluation with the plain answers; default the same.
        score: "rule" or "judge": whose scores say right or wrong; default the judge's if the refined answers have any.
        last_steps: newest steps of a run; 0: all. Behaviour changes in training, so all steps together describe no model.

    Raises:
        ValueError: neither records nor rollouts, no answers of a method, or a judge that does not answer.
    """
    # the judge, tried out before any answer is read; a named one scores answers, not behaviour
    with ExitStack() as stack:
        scorers = {}
        if judge is not None and judge.kind != "named":
            if judge.kind == "self":
                model = load_settings(folder)["model"] if methods_of(folder) else folder
                judge = replace(judge, name=str(newest_model(Path(model))))
            scorers = make_scorers(judge, JUDGE_PROMPTS, None, tried=TRIED)
        for scorer in scorers.values():
            stack.enter_context(closing(scorer))
        # the answers of both sides
        if methods_of(folder):
            *sides, score, source = _read_evaluation(folder, plain_from or folder, plain, refined, score)
        elif (folder / "rollouts").is_dir():
            *sides, score, source = _read_run(folder, last_steps)
        else:
            raise ValueError(f"{folder} has neither records/ (of evaluate.py) nor rollouts/ (of train.py): nothing to analyse")
        # without the questions that the model could not be given
        readable = [[record for record in side if record.turns] for side in sides]
        if not readable[1]:
            raise ValueError(f"{folder} has no refine-prompt answers to analyse")
        source["answers"] = f"{len(readable[0])} plain, {len(readable[1])} refined"
        if unreadable := sum(map(len, sides)) - sum(map(len, readable)):
            source["left out"] = f"{unreadable}, of questions that could not be asked"
        return {"source": source} | analyse(*readable, score, scorers)


Sides = tuple[list[AnswerRecord], list[AnswerRecord], str, dict[str, str]]  # plain, refined, name of the score, source


def _read_evaluation(folder: Path, plain_from: Path, plain: str | None, refined: str | None, score: str | None) -> Sides:
    plain, refined = plain or _choose(plain_from, PLAIN), refined or _choose(folder, REFINED)
    sources = (plain_from, plain), (folder, refined)
    sides = [[r for records in read_records(*source).values() for r in records] for source in sources]
    score = score or ("judge" if any(record.scores.get("judge") is not None for record in sides[1]) else "rule")
    return *sides, score, {"plain": f"{plain} of {plain_from}", "refined": f"{refined} of {folder}", "scored by": score}


def _choose(folder: Path, names: tuple[str, ...]) -> str:
    methods = methods_of(folder)
    for name in names:
        if name in methods:
            return name
    raise ValueError(f"{folder / 'records'} has {methods}, none of {list(names)}: name the two with --methods")


def _read_run(folder: Path, last_steps: int) -> Sides:
    plain, refined = read_rollouts(folder, last_steps)
    steps = sorted({record.id.partition("/")[0] for record in refined})
    whose = "none found" if not plain else "the initial policy's" if plain[0].method == "reference" else "the policy's"
    shown = f"{steps[0]} to {steps[-1]}" if steps else "without answers"
    return plain, refined, "accuracy", {"folder": str(folder), "plain answers": whose, "rollouts": shown}


def summary(analysis: dict) -> str:
    """Return all of it as Markdown, in lines of at most 100 columns."""
    change, whether, effect = analysis["transitions"], analysis["whether"], analysis["effect"]
    # from plain to refined answer
    left_out = f"{change['left_out']['plain']} plain, {change['left_out']['refined']} refined"
    pairs = f"{change['pairs']} pairs, {change['questions']} questions; without a partner or a score: {left_out}."
    table = _table("plain -> refined", {kind: change["shares"][kind] for kind in TRANSITIONS}, PAPER["transitions"])
    parts = {"From plain to refined answer": [pairs, table if change["pairs"] else NO_PAIRS]}
    # whether, when, how long
    rows = {
        "well formed": whether["wellformed"],
        "refine": whether["refine"],
        "refine, where the plain one is wrong": whether["refine_where_plain_wrong"],
        "refine, where the plain one is right": whether["refine_where_plain_right"],
    }
    rows |= {f"{count} refinement{'s' * (count != '1')}": value for count, value in whether["refinements"].items()}
    parts["Whether"] = [_table("refine-prompt answers", rows)]
    parts["When, and how long"] = _when(analysis["when"], analysis["how_long"])
    # to what end
    others = {
        "refinements that only repeat": effect["repeats"],
        "right, of answers that refine": effect["right"]["refining"],
        "right, of answers that do not": effect["right"]["not_refining"],
    }
    parts["To what end"] = [
        _table("final answer, of answers that refine", {LABELS[n]: value for n, value in effect["answer"].items()}),
        f"Answers of another form, which cannot be compared so: {effect['not_comparable']}.",
        _table("otherwise", others),
    ]
    # the judge's parts
    for name in [name for name in INSTRUCTIONS if name in analysis.get("judge", {})]:
        part = analysis["judge"][name]
        asked = f"{part['asked']} of {part['there_are']} put to the judge; {part['failed']} failed or unreadable, left out."
        rows = {LABELS.get(key, key): value for key, value in part["shares"].items()}
        parts[f"{name.capitalize()}, by the judge"] = [asked, _table(name, rows, PAPER.get(name))]
    source = "\n".join(f"{name}: {text}  " for name, text in analysis.get("source", {}).items())
    blocks = [block for title, content in parts.items() for block in (f"## {title}", *content)]
    blocks += [] if "judge" in analysis else ["Coherence, alignment and kinds need a judge: --judge."]
    return "\n\n".join([f"# How the model refines\n\n{source}", HEAD, *blocks]) + "\n"


def _table(title: str, rows: dict[str, dict], paper: dict[str, float] | None = None) -> str:
    """Return shares by their labels as a table; the paper's are in the same order."""
    lines = [f"| {title:<36} | {'share':<38} |{' paper |' if paper else ''}", f"|---|---|{'---|' if paper else ''}"]
    theirs = [f" {share:>4.0%}  |" for share in paper.values()] if paper else [""] * len(rows)
    for (label, value), figure in zip(rows.items(), theirs, strict=True):
        lines.append(f"| {label:<36} | {percent(value):<38} |{figure}")
    return "\n".join(lines)


def percent(of: dict) -> str:
    """Return a share with its count and interval: "61.2 % (235 of 384, 56-66 %)"."""
    if not of["of"]:
        return "none to count"
    share, low, high = (100 * of[name] for name in ("share", "low", "high"))
    return f"{share:.1f} % ({of['count']} of {of['of']}, {low:.1f}-{high:.1f} %)"


def _when(when: dict, long: dict) -> list[str]:
    count = f"{when['count']} refinements."
    if not when["count"]:
        return [count]
    shares = {"begins after this share of the text": when, "its share of the text": long}
    sizes = {"characters": long["characters"], "tokens (by its share of the text)": long["tokens"]}
    lines = [f"| {'of a refinement':<36} | mean    | median  |", "|---|---|---|"]
    lines += [f"| {label:<36} | {part['mean']:>6.1%}  | {part['median']:>6.1%}  |" for label, part in shares.items()]
    lines += [f"| {label:<36} | {part['mean']:>7.1f} | {part['median']:>7.1f} |" for label, part in sizes.items()]
    return [count, "\n".join(lines)]


def figures(analysis: dict) -> dict[str, "Figure"]:
    """Return a figure for each analysis, by name."""
    begin, length = analysis["when"], analysis["how_long"]
    shares = {
        "transitions": ("from plain to refined answer", analysis["transitions"]["shares"]),
        "whether": ("refinements in an answer", analysis["whether"]["refinements"]),
        "effect": ("the final answer of answers that refine", analysis["effect"]["answer"]),
    }
    shares |= {name: (f"{name}, by the judge", part["shares"]) for name, part in analysis.get("judge", {}).items()}
    made = {name: bars(title, values, PAPER.get(name)) for name, (title, values) in shares.items()}
    made["when"] = histogram("where refinements begin", "share of the response before them", begin)
    made["how_long"] = histogram("how long refinements are", "share of the response in them", length)
    return made


def bars(title: str, shares: dict[str, dict], paper: dict[str, float] | None) -> "Figure":
    """Return shares as bars with their intervals, the paper's beside them."""
    from matplotlib.figure import Figure

    # ours, left of the paper's
    axes = Figure(figsize=(6.4, 3.2), layout="constrained").add_subplot()
    places, width = range(len(shares)), 0.4 if paper else 0.7
    ends = [(v["low"], v["share"], v["high"]) if v["of"] else (0.0, 0.0, 0.0) for v in shares.values()]
    lows, heights, highs = np.array(ends).T
    axes.bar(
        [n - (width / 2 if paper else 0.0) for n in places], heights, width, yerr=[heights - lows, highs - heights], capsize=3,
        color="#2a6f97", label=f"here, n = {next(iter(shares.values()))['of']}",
    )  # fmt: skip
    if paper:
        axes.bar([n + width / 2 for n in places], [paper[k] for k in shares], width, color="#c9a227", label="paper")
    # labels, the long ones broken in their middle
    labels = [LABELS.get(key, key) for key in shares]
    axes.set_xticks(places, [label if len(label) <= 14 else fill(label, len(label) // 2 + 4) for label in labels])
    axes.set(title=title, ylabel="share", ylim=(0, 1.05))
    axes.legend(frameon=False)
    return axes.figure


def histogram(title: str, label: str, part: dict) -> "Figure":
    """Return counts in equal bins over [0, 1]."""
    from matplotlib.figure import Figure

    axes = Figure(figsize=(6.4, 3.2), layout="constrained").add_subplot()
    centres = [(n + 0.5) / BINS for n in range(BINS)]
    axes.bar(centres, part["bins"], 0.9 / BINS, color="#2a6f97", label=f"n = {part['count']}")
    axes.set(title=title, xlabel=label, ylabel="refinements", xlim=(0, 1))
    axes.legend(frameon=False)
    return axes.figure


def publish(analysis: dict, folder: Path) -> None:
    """Print the summary, and write behaviour.json, behaviour.md and the figures to the folder's `analysis/`."""
    text, out = summary(analysis), folder / "analysis"
    print(text)
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "behaviour.json", json.dumps(analysis, indent=2) + "\n")
    write_whole(out / "behaviour.md", text + "\n")
    for name in INSTRUCTIONS:  # a figure of an earlier analysis with a judge would pass for a part of this one
        (out / f"{name}.svg").unlink(missing_ok=True)
    drawn = figures(analysis) if find_spec("matplotlib") else {}
    for name, figure in drawn.items():
        figure.savefig(out / f"{name}.svg")
    print(f"written: {out / 'behaviour.json'}, behaviour.md and {len(drawn)} figures beside it")
