"""Behaviour analyses of answers on disk, for `evaluate.py --analyse DIR`: the records of an evaluation, or a run's rollouts.

Writes behaviour.json, behaviour.md and one SVG for each figure into the folder's `analysis/`, from where the report of a run
takes the figures, and prints the summary.
"""

import json
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

from rewards.behaviour_prompt import INSTRUCTIONS
from rewards.judge import Scorer
from rl.behaviour.judge import ASKED, TRIED
from rl.behaviour.measures import analyse
from rl.behaviour.report import figures, summary
from rl.checkpoint import newest_model
from rl.config import Config
from rl.distributed import pick_device
from rl.evaluation.answer_records import load_settings
from rl.evaluation.answers import SCORES, Answer, methods_of, read_records, read_rollouts
from rl.judges import make_scorers
from rl.run_folder import write_whole

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


def run_analysis(folder: Path, config: Config, **options) -> dict:
    """`analyse_folder` with the judge of a configuration.

    Args:
        config: its judge flags are used. rules: without the judge's parts; self: the model that gave the refined answers.
        options: of `analyse_folder`.
    """
    if config.judge_kind == "self":
        model = load_settings(folder)["model"] if methods_of(folder) else folder
        config = replace(config, judge=str(newest_model(Path(model))))
    with ExitStack() as stack:
        scorers = {}
        if config.judge_kind != "named":  # those score answers, not behaviour
            scorers = make_scorers(config, ASKED, None, pick_device(config.device), tried=TRIED)
        for scorer in scorers.values():
            stack.enter_context(closing(scorer))
        return analyse_folder(folder, scorers=scorers, **options)


def publish(analysis: dict, folder: Path) -> None:
    """Print the summary, and write everything to the folder's `analysis/`."""
    print(summary(analysis))
    files = write_analysis(analysis, folder / "analysis")
    print(f"written: {files[0]}, {files[1].name} and {len(files) - 2} figures beside it")
