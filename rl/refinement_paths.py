"""Good refinement paths: the rollouts of a run from which PASR(+IFT) learns, and an account of what was left out and why."""

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from rewards.format import parse_response
from rewards.refine import refine_reward
from rewards.refinements import changes_nothing
from rl.evaluation.records import read_lines, rollout_files


@dataclass(frozen=True)
class Selection:
    """What counts as good.

    Attributes:
        min_accuracy: score of a right answer; a judge's doubtful ones are no examples to learn from.
        zeta: half width of the tie band of Eq. 6, as in the run.
        per_question: paths kept for each question; 0: all that differ.
        first_step, last_step: of the rollouts used; 0: from the first, to the last.
    """

    min_accuracy: float = 0.9
    zeta: float = 0.05
    per_question: int = 1
    first_step: int = 0
    last_step: int = 0


REASONS = (
    "malformed",
    "no refinement",
    "cut off before its end",
    "no score",
    "not right",
    "no baseline to win against",
    "refinement did not win",
    "refinement only repeats",
    "duplicate",
    "more than enough of its question",
)


def fault(row: dict, selection: Selection) -> str | None:
    """Why a refine-prompt rollout is not a good path; None if it is one.

    Whether the refinement won is decided by Eq. 6 anew: a run with another --refine-reward paid for something else.
    """
    response = parse_response(row["text"])
    if response is None:
        return "malformed"
    if not response.refinements:
        return "no refinement"
    if row["finish_reason"] != "stop":
        return "cut off before its end"
    if row["accuracy"] is None:
        return "no score"
    if row["accuracy"] < selection.min_accuracy:
        return "not right"
    if row["baseline"] is None:
        return "no baseline to win against"
    if refine_reward(row["accuracy"], row["baseline"], zeta=selection.zeta, refined=True) != 1.0:
        return "refinement did not win"
    return "refinement only repeats" if changes_nothing(response) else None


def collect_paths(run: Path, selection: Selection) -> tuple[list[dict], dict[str, int]]:
    """The good paths of a run's rollouts, and how many responses were left out for each of `REASONS`.

    Of several to a question the most accurate are kept, then the shortest, then those of the newest policy.

    Raises:
        ValueError: no rollouts, a line that is none, or nothing good: the message counts the reasons.
    """
    dropped = Counter(dict.fromkeys(REASONS, 0))
    good: dict[tuple[str, str], list[dict]] = {}
    plain = 0
    for file in rollout_files(run):
        step = int(file.stem.removeprefix("step_"))
        if step < selection.first_step or (selection.last_step and step > selection.last_step):
            continue
        for place, row in read_lines(file):
            try:
                if row["mode"] != "refine":
                    plain += 1
                elif reason := fault(row, selection):
                    dropped[reason] += 1
                else:
                    path = as_path(row, run.name, step)
                    good.setdefault((path["question"], path["reference"]), []).append(path)
            except (KeyError, TypeError) as error:
                raise ValueError(f"{place}: not a rollout ({type(error).__name__}: {error})") from error
    paths = []
    for of_question in good.values():
        ordered = sorted(of_question, key=lambda p: (-p["accuracy"], p["tokens"], -p["step"], p["response"]))
        best: dict[str, dict] = {}
        for path in ordered:
            best.setdefault(path["response"], path)
        different = list(best.values())
        kept = different[: selection.per_question or None]
        dropped["duplicate"] += len(ordered) - len(different)
        dropped["more than enough of its question"] += len(different) - len(kept)
        paths += kept
    if not paths:
        raise ValueError(
            f"no good refinement path in {run / 'rollouts'}: {describe_reasons(dropped)}; {plain} plain answers do not count. "
            "Train longer, or lower --min-accuracy"
        )
    return paths, dict(dropped)


def describe_reasons(dropped: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count) or "not a single refine-prompt response"


def as_path(row: dict, run: str, step: int) -> dict:
    """A rollout as a row of the data set."""
    kept = ("format", "accuracy", "refine", "reward", "baseline", "tokens", "policy_version")
    head = {"question": row["question"], "reference": row["reference"], "response": row["text"], "ids": row.get("ids")}
    return head | {name: row[name] for name in kept} | {"id": row["id"], "run": run, "step": step}


def write_paths(paths: list[dict], dropped: dict[str, int], run: Path, selection: Selection, out: Path) -> None:
    """paths.jsonl, and manifest.json beside it: where the paths come from and what was left out."""
    out.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(path, ensure_ascii=False) + "\n" for path in paths)
    (out / "paths.jsonl").write_text(content, encoding="utf-8")
    steps = Counter(path["step"] for path in paths)
    manifest = {
        "run": str(run),
        "selection": asdict(selection),
        "paths": len(paths),
        "questions": len({(path["question"], path["reference"]) for path in paths}),
        "tokens": sum(path["tokens"] for path in paths),
        "paths_by_step": {str(step): steps[step] for step in sorted(steps)},
        "left_out": dropped,
        "blake2b": hashlib.blake2b(content.encode(), digest_size=16).hexdigest(),
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
