"""The behaviour analyses for readers: a Markdown summary, and a figure for each analysis.

The paper's figures beside ours are of 384 answers (transitions; its plain answers are the base model's) and 300 (coherence).
"""

import json
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure

from rewards.judge import Scorer
from rewards.judge_prompts import INSTRUCTIONS, KIND
from rl.evaluation.behaviour import ASKED, BINS, GRADES, HIGH, LOW, TRANSITIONS, TRIED, analyse
from rl.evaluation.records import SCORES, Answer, load_settings, methods_of, read_records, read_rollouts
from rl.files import write_whole
from rl.judging.judge import JudgeSpec, make_scorers
from rl.run.checkpoint import newest_model

PAPER = {
    "transitions": {"right->right": 0.26, "wrong->wrong": 0.08, "wrong->right": 0.61, "right->wrong": 0.05},
    "coherence": {"high": 0.80, "middle": 0.16, "low": 0.04},
    "alignment": {"high": 0.94, "middle": 0.04, "low": 0.02},
}
GRADE_LABELS = {"high": f"{HIGH} or more", "middle": f"{LOW} to {HIGH}", "low": f"below {LOW}"}
ANSWER_LABELS = {
    "new": "new: written nowhere before",
    "written before": "written before, not as the last",
    "kept": "kept: the last candidate before",
}
NO_PAIRS = "Nothing to compare: no plain answers, or no scores."
WIDTH, HEIGHT = 6.4, 3.2  # inches
OURS, THEIRS = "#2a6f97", "#c9a227"


def percent(of: dict) -> str:
    """A share with its count and interval: "61.2 % (235 of 384, 56-66 %)"."""
    if not of["of"]:
        return "none to count"
    share, low, high = (100 * of[name] for name in ("share", "low", "high"))
    return f"{share:.1f} % ({of['count']} of {of['of']}, {low:.1f}-{high:.1f} %)"


def summary(analysis: dict) -> str:
    """All of it as Markdown, in lines of at most 100 columns."""
    lines = ["# How the model refines", ""]
    lines += [f"{name}: {text}  " for name, text in analysis.get("source", {}).items()]
    lines += [
        "",
        "Shares with their counts and 95 % Wilson intervals (several samples of a question are not",
        "independent). The paper's figures are of its own model and tasks: 384 answers (coherence and",
        "alignment: 300), compared with the base model's plain answers.",
        "",
    ]
    for part in (_transitions, _whether, _when, _effect):
        lines += [*part(analysis), ""]
    for name in ("coherence", "alignment", "kind"):
        if name in analysis.get("judge", {}):
            lines += [*_judged(name, analysis["judge"][name]), ""]
    if "judge" not in analysis:
        lines += ["Coherence, alignment and kinds need a judge: --judge.", ""]
    return "\n".join(lines)


def _table(title: str, rows: list[tuple[str, dict]], paper: dict[str, float] | None = None) -> list[str]:
    head = [f"| {title:<36} | {'share':<38} |" + (" paper |" if paper else "")]
    head.append("|---|---|" + ("---|" if paper else ""))
    names = list(paper or {})
    for n, (label, value) in enumerate(rows):
        line = f"| {label:<36} | {percent(value):<38} |"
        head.append(line + (f" {paper[names[n]]:>4.0%}  |" if paper else ""))
    return head


def _transitions(analysis: dict) -> list[str]:
    given = analysis["transitions"]
    rows = [(kind, given["shares"][kind]) for kind in TRANSITIONS]
    left = given["left_out"]
    return [
        "## From plain to refined answer",
        "",
        f"{given['pairs']} pairs, {given['questions']} questions; without a partner or a score: "
        f"{left['plain']} plain, {left['refined']} refined.",
        "",
        *(_table("plain -> refined", rows, PAPER["transitions"]) if given["pairs"] else [NO_PAIRS]),
    ]


def _whether(analysis: dict) -> list[str]:
    given = analysis["whether"]
    rows = [
        ("well formed", given["wellformed"]),
        ("refine", given["refine"]),
        ("refine, where the plain one is wrong", given["refine_where_plain_wrong"]),
        ("refine, where the plain one is right", given["refine_where_plain_right"]),
        *((f"{count} refinement{'s' * (count != '1')}", value) for count, value in given["refinements"].items()),
    ]
    return ["## Whether", "", *_table("refine-prompt answers", rows)]


def _when(analysis: dict) -> list[str]:
    when, long = analysis["when"], analysis["how_long"]
    lines = ["## When, and how long", "", f"{when['count']} refinements."]
    if not when["count"]:
        return lines
    return [
        *lines,
        "",
        "| of a refinement                      | mean    | median  |",
        "|---|---|---|",
        f"| begins after this share of the text  | {when['mean']:>6.1%}  | {when['median']:>6.1%}  |",
        f"| its share of the text                | {long['mean']:>6.1%}  | {long['median']:>6.1%}  |",
        f"| characters                           | {long['characters']['mean']:>7.1f} | {long['characters']['median']:>7.1f} |",
        f"| tokens (by its share of the text)    | {long['tokens']['mean']:>7.1f} | {long['tokens']['median']:>7.1f} |",
    ]


def _effect(analysis: dict) -> list[str]:
    given = analysis["effect"]
    return [
        "## To what end",
        "",
        *_table(
            "final answer, of answers that refine", [(ANSWER_LABELS[name], value) for name, value in given["answer"].items()]
        ),
        "",
        f"Answers of another form, which cannot be compared so: {given['not_comparable']}.",
        "",
        *_table(
            "otherwise",
            [
                ("refinements that only repeat", given["repeats"]),
                ("right, of answers that refine", given["right"]["refining"]),
                ("right, of answers that do not", given["right"]["not_refining"]),
            ],
        ),
    ]


def _judged(name: str, given: dict) -> list[str]:
    labels = {kind: kind for kind in KIND.options} if name == "kind" else GRADE_LABELS
    lines = [f"## {name.capitalize()}, by the judge", ""]
    lines.append(
        f"{given['asked']} of {given['there_are']} put to the judge; {given['failed']} failed or unreadable, left out."
    )
    rows = [(labels[key], value) for key, value in given["shares"].items()]
    return [*lines, "", *_table(name, rows, PAPER.get(name))]


def figures(analysis: dict) -> dict[str, Figure]:
    """A figure for each analysis, by name."""
    whether, effect = analysis["whether"], analysis["effect"]
    made = {
        "transitions": bars("from plain to refined answer", analysis["transitions"]["shares"], PAPER["transitions"]),
        "whether": bars("refinements in an answer", whether["refinements"]),
        "when": histogram("where refinements begin", "share of the response before them", analysis["when"]),
        "how_long": histogram("how long refinements are", "share of the response in them", analysis["how_long"]),
        "effect": bars("the final answer of answers that refine", effect["answer"], labels=ANSWER_LABELS),
    }
    for name, given in analysis.get("judge", {}).items():
        labels = GRADE_LABELS if set(given["shares"]) == set(GRADES) else None
        made[name] = bars(f"{name}, by the judge", given["shares"], PAPER.get(name), labels)
    return made


def bars(title: str, given: dict[str, dict], paper: dict[str, float] | None = None, labels: dict | None = None) -> Figure:
    """Shares as bars with their intervals, the paper's beside them."""
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    values = list(given.values())
    heights = [value["share"] or 0.0 for value in values]
    whiskers = [
        [(v["share"] - v["low"]) if v["of"] else 0.0 for v in values],
        [(v["high"] - v["share"]) if v["of"] else 0.0 for v in values],
    ]
    width = 0.4 if paper else 0.7
    places = [n - (width / 2 if paper else 0.0) for n in range(len(values))]
    axes.bar(places, heights, width, yerr=whiskers, capsize=3, color=OURS, label=f"here, n = {values[0]['of']}")
    if paper:
        axes.bar([n + width / 2 for n in range(len(values))], [paper[k] for k in given], width, color=THEIRS, label="paper")
    axes.set_xticks(range(len(values)), [_two_lines((labels or {}).get(key, key)) for key in given])
    axes.set_ylim(0, 1.05)
    axes.set_ylabel("share")
    axes.set_title(title)
    axes.legend(frameon=False)
    return figure


def histogram(title: str, label: str, given: dict) -> Figure:
    """Counts in equal bins over [0, 1]."""
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    axes.bar([(n + 0.5) / BINS for n in range(BINS)], given["bins"], 0.9 / BINS, color=OURS, label=f"n = {given['count']}")
    axes.set_xlim(0, 1)
    axes.set_xlabel(label)
    axes.set_ylabel("refinements")
    axes.set_title(title)
    axes.legend(frameon=False)
    return figure


def _two_lines(label: str) -> str:
    """A label broken in its middle where it is long."""
    words = label.split()
    half = (len(words) + 1) // 2
    return label if len(label) <= 14 else f"{' '.join(words[:half])}\n{' '.join(words[half:])}"


PLAIN, REFINED = ("vanilla",), ("pasr", "pasr-ift", "pasr-prompt")  # methods that are compared, in order of preference


def analyse_folder(
    folder: Path,
    *,
    plain: str | None = None,
    refined: str | None = None,
    plain_from: Path | None = None,
    score: str | None = None,
    last_steps: int = 10,
    scorers: dict[str, Scorer] | None = None,
    judge_limit: int = 300,
) -> dict:
    """Analyse the records of an evaluation (FOLDER/records) or the rollouts of a run (FOLDER/rollouts).

    Args:
        plain, refined: methods to compare; default vanilla, with the first there is of pasr, pasr-ift and pasr-prompt.
        plain_from: folder of the evaluation with the plain answers; default the same.
        score: "rule" or "judge": whose scores say right or wrong; default the judge's if the refined answers have any.
        last_steps: of a run; 0: all. Behaviour changes in training, so an average over a whole run describes no model.
        scorers: by the names of `ASKED`; none: without the judge's parts.
        judge_limit: items put to the judge for each part.

    Raises:
        ValueError: neither records nor rollouts, or not of the methods asked for.
    """
    if methods_of(folder):
        answers, source = _of_evaluation(folder, plain_from or folder, plain, refined, score)
    elif (folder / "rollouts").is_dir():
        answers, source = _of_run(folder, last_steps)
    else:
        raise ValueError(f"{folder} has neither records/ (of evaluate.py) nor rollouts/ (of train.py): nothing to analyse")
    asked = [[answer for answer in side if answer.text is not None] for side in answers]
    if not asked[1]:
        raise ValueError(f"{folder} has no refine-prompt answers to analyse")
    source["answers"] = f"{len(asked[0])} plain, {len(asked[1])} refined"
    if unasked := sum(map(len, answers)) - sum(map(len, asked)):
        source["left out"] = f"{unasked}, of questions that could not be asked"
    return {"source": source} | analyse(*asked, scorers=scorers, judge_limit=judge_limit)


def _of_evaluation(
    folder: Path, plain_from: Path, plain: str | None, refined: str | None, score: str | None
) -> tuple[tuple[list[Answer], list[Answer]], dict[str, str]]:
    """(plain, refined) answers, and where they come from."""
    plain, refined = plain or _choose(plain_from, PLAIN), refined or _choose(folder, REFINED)
    score = score or next((s for s in SCORES if any(a.score is not None for a in read_records(folder, refined, s))), "rule")
    answers = read_records(plain_from, plain, score), read_records(folder, refined, score)
    return answers, {"plain": f"{plain} of {plain_from}", "refined": f"{refined} of {folder}", "scored by": score}


def _of_run(folder: Path, last_steps: int) -> tuple[tuple[list[Answer], list[Answer]], dict[str, str]]:
    """(plain, refined) answers, and where they come from."""
    answers = read_rollouts(folder, last_steps)
    steps = sorted({answer.id.partition("/")[0] for answer in answers[1]})
    whose = "the initial policy's" if any(answer.tokens is None for answer in answers[0]) else "the policy's"
    shown = f"{steps[0]} to {steps[-1]}" if steps else "without answers"
    return answers, {"folder": str(folder), "plain answers": whose, "rollouts": shown}


def _choose(folder: Path, names: tuple[str, ...]) -> str:
    known = methods_of(folder)
    for name in names:
        if name in known:
            return name
    raise ValueError(f"{folder / 'records'} has {known}, none of {list(names)}: name the two with --methods")


def write_analysis(analysis: dict, out: Path) -> list[Path]:
    """behaviour.json, behaviour.md and a figure for each analysis; returns the files."""
    out.mkdir(parents=True, exist_ok=True)
    files = [out / "behaviour.json", out / "behaviour.md"]
    write_whole(files[0], json.dumps(analysis, indent=2) + "\n")
    write_whole(files[1], summary(analysis) + "\n")
    for name in INSTRUCTIONS:  # a figure of an earlier analysis with a judge would pass for a part of this one
        (out / f"{name}.svg").unlink(missing_ok=True)
    for name, figure in figures(analysis).items():
        files.append(out / f"{name}.svg")
        figure.savefig(files[-1])
    return files


def run_analysis(folder: Path, spec: JudgeSpec, **options) -> dict:
    """Run `analyse_folder` with a judge.

    Args:
        spec: the judge. rules: without the judge's parts; self: the model that gave the refined answers.
        options: of `analyse_folder`.
    """
    if spec.kind == "self":
        model = load_settings(folder)["model"] if methods_of(folder) else folder
        spec = replace(spec, name=str(newest_model(Path(model))))
    with ExitStack() as stack:
        scorers = {}
        if spec.kind != "named":  # those score answers, not behaviour
            scorers = make_scorers(spec, ASKED, None, tried=TRIED)
        for scorer in scorers.values():
            stack.enter_context(closing(scorer))
        return analyse_folder(folder, scorers=scorers, **options)


def publish(analysis: dict, folder: Path) -> None:
    """Print the summary, and write everything to the folder's `analysis/`."""
    print(summary(analysis))
    files = write_analysis(analysis, folder / "analysis")
    print(f"written: {files[0]}, {files[1].name} and {len(files) - 2} figures beside it")
