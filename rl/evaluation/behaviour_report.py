"""The behaviour analyses for readers: where the answers come from, a Markdown summary, and a figure for each part."""

import json
from contextlib import ExitStack, closing
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rl.evaluation.behaviour import BINS, JUDGE_PROMPTS, analyse
from rl.evaluation.records import AnswerRecord, load_settings, methods_of, read_records, read_rollouts
from rl.evaluation.tables import text_table
from rl.files import write_whole
from rl.judging.judge import JudgeSpec, make_scorers
from rl.run.checkpoint import newest_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    last_steps: int = 10,
) -> dict[str, dict]:
    """Analyse the records of an evaluation (FOLDER/records) or the rollouts of a run (FOLDER/rollouts).

    Args:
        judge: the judge. None or rules: without the judge's parts; self: the model that gave the refined answers.
        plain, refined: methods to compare; default vanilla, with the first there is of pasr, pasr-ift and pasr-prompt.
        plain_from: folder of the evaluation with the plain answers; default the same.
        last_steps: newest steps of a run; 0: all. Behaviour changes in training, so all steps together describe no model.

    Returns:
        What `analyse` returns, after "source": where the answers come from.

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
            *sides, score, source = _read_evaluation(folder, plain_from or folder, plain, refined)
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


def _read_evaluation(folder: Path, plain_from: Path, plain: str | None, refined: str | None) -> Sides:
    plain, refined = plain or _choose(plain_from, PLAIN), refined or _choose(folder, REFINED)
    sides = [
        [record for of_benchmark in read_records(place, method)[method].values() for record in of_benchmark]
        for place, method in ((plain_from, plain), (folder, refined))
    ]
    score = "judge" if any(record.scores.get("judge") is not None for record in sides[1]) else "rule"
    return *sides, score, {"plain": f"{plain} of {plain_from}", "refined": f"{refined} of {folder}", "scored by": score}


def _choose(folder: Path, names: tuple[str, ...]) -> str:
    methods = methods_of(folder)
    if found := [name for name in names if name in methods]:
        return found[0]
    raise ValueError(f"{folder / 'records'} has {methods}, none of {list(names)}: name the two with --methods")


def _read_run(folder: Path, last_steps: int) -> Sides:
    plain, refined = read_rollouts(folder, last_steps)
    steps = sorted({record.id.partition("/")[0] for record in refined})
    whose = "none found" if not plain else "the initial policy's" if plain[0].method == "reference" else "the policy's"
    shown = f"{steps[0]} to {steps[-1]}" if steps else "without answers"
    return plain, refined, "accuracy", {"folder": str(folder), "plain answers": whose, "rollouts": shown}


def summary(analysis: dict[str, dict]) -> str:
    """Return all of it as Markdown."""
    source = "\n".join(f"{name}: {text}  " for name, text in analysis.get("source", {}).items())
    blocks = ["# How the model refines", source, HEAD]
    for part in (part for name, part in analysis.items() if name != "source"):
        counts = ", ".join(f"{label}: {count}" for label, count in part.get("counts", {}).items())
        blocks += [f"## {part['title']}", *([counts] if counts else [])]
        if "shares" in part:
            paper = {label: f"{share:.0%}" for label, share in part.get("paper", {}).items()}
            rows = [[label, percent(value), *([paper[label]] if paper else [])] for label, value in part["shares"].items()]
            blocks.append(text_table(["", "share", *(["paper"] if paper else [])], rows))
        if "numbers" in part:
            rows = [[n, *("-" if v is None else f"{v:.2f}" for v in of.values())] for n, of in part["numbers"].items()]
            blocks.append(text_table(["", "mean", "median"], rows))
    blocks += [] if JUDGE_PROMPTS.keys() & analysis.keys() else ["Coherence, alignment and kinds need a judge: --judge."]
    return "\n\n".join(blocks) + "\n"


def percent(of: dict) -> str:
    """Return a share with its count and interval: "61.2 % (235 of 384, 56-66 %)"."""
    if not of["of"]:
        return "none to count"
    share, low, high = (100 * of[name] for name in ("share", "low", "high"))
    return f"{share:.1f} % ({of['count']} of {of['of']}, {low:.1f}-{high:.1f} %)"


def draw(part: dict) -> "Figure":
    """Return a figure of a part: its histogram, or its shares as bars with their intervals and the paper's beside them."""
    from matplotlib.figure import Figure

    axes = Figure(figsize=(6.4, 3.2), layout="constrained").add_subplot()
    if "bins" in part:
        label = next(iter(part["numbers"]))
        axes.stairs(part["bins"], np.linspace(0, 1, BINS + 1), fill=True, color="#2a6f97", label=f"n = {sum(part['bins'])}")
        axes.set(xlabel=label, ylabel="refinements", xlim=(0, 1))
    else:
        labels, values = list(part["shares"]), part["shares"].values()
        ends = [(v["low"], v["share"], v["high"]) if v["of"] else (0.0, 0.0, 0.0) for v in values]
        low, share, high = np.array(ends).T
        axes.barh(labels, share, 0.6, xerr=[share - low, high - share], capsize=3, color="#2a6f97", label="here")
        if "paper" in part:
            axes.plot(list(part["paper"].values()), labels, "D", color="#c9a227", label="paper")
        axes.set(xlabel="share", xlim=(0, 1.05))
        axes.invert_yaxis()
    axes.set_title(part["title"])
    axes.legend(frameon=False)
    return axes.figure


def publish(analysis: dict[str, dict], folder: Path) -> None:
    """Print the summary, and write behaviour.json, behaviour.md and the figures to the folder's `analysis/`."""
    text, out = summary(analysis), folder / "analysis"
    print(text)
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "behaviour.json", json.dumps(analysis, indent=2) + "\n")
    write_whole(out / "behaviour.md", text + "\n")
    for name in JUDGE_PROMPTS:  # a figure of an earlier analysis with a judge would pass for a part of this one
        (out / f"{name}.svg").unlink(missing_ok=True)
    parts = {name: part for name, part in analysis.items() if name != "source"}
    for name, part in parts.items() if find_spec("matplotlib") else ():
        draw(part).savefig(out / f"{name}.svg")
    figures = f"and {len(parts)} figures" if find_spec("matplotlib") else "without figures (pip install matplotlib)"
    print(f"written: {out / 'behaviour.json'}, behaviour.md {figures}")
