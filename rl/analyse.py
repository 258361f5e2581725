"""Behaviour analyses of answers on disk, from the command line or from `evaluate.py --analyse`.

python -m rl.analyse OUT                 the records of an evaluation: plain and refined answers to its questions
python -m rl.analyse runs/NAME           the last rollouts of a training run
python -m rl.analyse B --plain-from A    the same, the plain answers of another evaluation: the base model's, as in the paper
python -m rl.analyse OUT --judge PATH    with coherence, alignment and kinds of refinements, by a local model or a server

Writes behaviour.json, behaviour.md and one SVG for each figure into the folder's `behaviour/`, and prints the summary.
"""

import argparse
import json
import sys
from contextlib import ExitStack, closing
from dataclasses import fields
from pathlib import Path
from typing import Literal, get_args, get_origin

from rewards.judge import Scorer
from rl.answers import SCORES, methods_of, read_records, read_rollouts
from rl.behaviour import analyse
from rl.behaviour_judge import make_behaviour_scorers
from rl.behaviour_report import figures, summary
from rl.config import Config, to_flag
from rl.distributed import pick_device
from rl.memory import load_frozen
from rl.run_folder import write_whole
from rl.setup import one_line_errors

JUDGE_FLAGS = ("judge", "judge_model", "judge_extra_body", "judge_concurrency", "judge_timeout", "device", "runs_dir")
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
        scorers: see `make_behaviour_scorers`; None: without the judge's parts.
        judge_limit: items put to the judge for each part.

    Raises:
        ValueError: neither records nor rollouts, or not of the methods asked for.
    """
    if methods_of(folder):
        plain_from = plain_from or folder
        plain, refined = plain or _choose(plain_from, PLAIN), refined or _choose(folder, REFINED)
        score = score or next((s for s in SCORES if any(a.score is not None for a in read_records(folder, refined, s))), "rule")
        answers = read_records(plain_from, plain, score), read_records(folder, refined, score)
        source = {"plain": f"{plain} of {plain_from}", "refined": f"{refined} of {folder}", "scored by": score}
    elif (folder / "rollouts").is_dir():
        answers = read_rollouts(folder, last_steps)
        steps = sorted({answer.id.partition("/")[0] for answer in answers[1]})
        source = {"folder": str(folder), "rollouts": f"{steps[0]} to {steps[-1]}" if steps else "without answers"}
    else:
        raise ValueError(f"{folder} has neither records/ (of evaluate.py) nor rollouts/ (of train.py): nothing to analyse")
    if not answers[1]:
        raise ValueError(f"{folder} has no refine-prompt answers to analyse")
    source["answers"] = f"{len(answers[0])} plain, {len(answers[1])} refined"
    return {"source": source} | analyse(*answers, scorers=scorers, judge_limit=judge_limit)


def _choose(folder: Path, names: tuple[str, ...]) -> str:
    known = methods_of(folder)
    for name in names:
        if name in known:
            return name
    raise ValueError(f"{folder / 'records'} has {known}, none of {list(names)}: name the methods with --plain and --refined")


def write_analysis(analysis: dict, out: Path) -> list[Path]:
    """behaviour.json, behaviour.md and a figure for each analysis; returns the files."""
    out.mkdir(parents=True, exist_ok=True)
    files = [out / "behaviour.json", out / "behaviour.md"]
    write_whole(files[0], json.dumps(analysis, indent=2) + "\n")
    write_whole(files[1], summary(analysis) + "\n")
    for name, figure in figures(analysis).items():
        files.append(out / f"{name}.svg")
        figure.savefig(files[-1])
    return files


def run_analysis(folder: Path, config: Config | None = None, **options) -> dict:
    """`analyse_folder` with the judge of a configuration.

    Args:
        config: its judge flags are used; None: without the judge's parts.
        options: of `analyse_folder`.
    """
    with ExitStack() as stack:
        load = lambda folder: load_frozen(folder, pick_device(config.device))  # noqa: E731
        scorers = None if config is None else make_behaviour_scorers(config, load)
        for scorer in (scorers or {}).values():
            stack.enter_context(closing(scorer))
        return analyse_folder(folder, scorers=scorers, **options)


def publish(analysis: dict, out: Path) -> None:
    """Print the summary, and write everything to `out`."""
    print(summary(analysis))
    files = write_analysis(analysis, out)
    print(f"written: {files[0]}, {files[1].name} and {len(files) - 2} figures beside it")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m rl.analyse", description="Behaviour analyses.", allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="output folder of evaluate.py, or run folder of train.py")
    parser.add_argument("--plain", metavar="METHOD", help="plain method (default: vanilla)")
    parser.add_argument("--refined", metavar="METHOD", help="refining method (default: pasr, pasr-ift or pasr-prompt)")
    parser.add_argument("--plain-from", type=Path, metavar="DIR", help="evaluation with the plain answers (default: the same)")
    parser.add_argument("--score", choices=("rule", "judge"), help="whose scores (default: the judge's if there are any)")
    parser.add_argument("--last-steps", type=int, default=10, help="of a run's rollouts; 0: all (default: 10)")
    parser.add_argument("--judge-limit", type=int, default=300, help="items for each of the judge's parts (default: 300)")
    parser.add_argument("--out", type=Path, help="where results go (default: FOLDER/behaviour)")
    for spec in fields(Config):
        if spec.name in JUDGE_FLAGS:
            kind = {int: int, float: float}.get(spec.type, str)
            default = None if spec.name == "judge" else spec.default
            choices = get_args(spec.type) if get_origin(spec.type) is Literal else None
            parser.add_argument(to_flag(spec.name), type=kind, choices=choices, default=default, help=spec.metadata["help"])
    given = parser.parse_args(argv)
    if given.last_steps < 0 or given.judge_limit < 1:
        parser.error("--last-steps must be at least 0 and --judge-limit at least 1")
    return given


def main(argv: list[str] | None = None) -> int:
    given = parse_arguments(argv)
    with one_line_errors():
        config = Config(**{name: getattr(given, name) for name in JUDGE_FLAGS}) if given.judge else None
        options = ("plain", "refined", "plain_from", "score", "last_steps", "judge_limit")
        analysis = run_analysis(given.folder, config, **{name: getattr(given, name) for name in options})
    publish(analysis, given.out or given.folder / "behaviour")
    return 0


if __name__ == "__main__":
    sys.exit(main())
