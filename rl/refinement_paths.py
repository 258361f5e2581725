"""Good refinement paths: the rollouts of a run from which PASR(+IFT) learns, and a count of what is left out and why."""

import hashlib
import json
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

from rewards.format import parse_response
from rewards.refine import refine_reward
from rewards.refinements import changes_nothing
from rl.config import option
from rl.evaluation.records import read_lines, rollout_files


@dataclass(frozen=True)
class Selection:
    """The flags that choose good paths. A judge's doubtful answers are no examples to learn from, hence `min_accuracy`."""

    min_accuracy: float = option(0.9, "score from which an answer counts as right")
    zeta: float | None = option(None, "half width of the tie band of Eq. 6; none: the run's")
    per_question: int = option(1, "paths kept for each question; 0: all that differ")
    first_step: int = option(0, "first step whose rollouts are used")
    last_step: int = option(0, "last step whose rollouts are used; 0: the newest")


REASONS = (
    "malformed", "no refinement", "cut off before its end", "no score", "not right", "no baseline to win against",
    "refinement did not win", "refinement only repeats", "duplicate", "more than enough of its question",
)  # fmt: skip


def find_fault(row: dict, selection: Selection) -> str | None:
    """Return the reason that a refine-prompt rollout is not a good path; None if it is one.

    Eq. 6 decides anew if the refinement won, because a run with another --refine-reward paid for something else.
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
    return "refinement only repeats" if changes_nothing(row["text"]) else None


def collect_paths(run: Path, selection: Selection) -> tuple[list[dict], dict[str, int]]:
    """Return the good paths of a run's rollouts, and the number of responses left out for each of `REASONS`.

    Of several to a question the most accurate are kept, then the shortest, then those of the newest policy.

    Raises:
        ValueError: no rollouts, a line that is none, or nothing good: the message counts the reasons.
    """
    # good paths by question
    left_out, plain = Counter(dict.fromkeys(REASONS, 0)), 0
    good: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for file in rollout_files(run):
        step = int(file.stem.removeprefix("step_"))
        if step < selection.first_step or (selection.last_step and step > selection.last_step):
            continue
        for where, row in read_lines(file):
            try:
                if row["mode"] != "refine":
                    plain += 1
                elif reason := find_fault(row, selection):
                    left_out[reason] += 1
                else:
                    good[row["question"], row["reference"]].append(as_path(row, run.name, step))
            except (KeyError, TypeError) as error:
                raise ValueError(f"{where}: not a rollout ({type(error).__name__}: {error})") from error

    # the best of each question, every text once
    paths = []
    for candidates in good.values():
        best: dict[str, dict] = {}
        for path in sorted(candidates, key=lambda p: (-p["accuracy"], p["tokens"], -p["step"], p["response"])):
            best.setdefault(path["response"], path)
        kept = list(best.values())[: selection.per_question or None]
        left_out["duplicate"] += len(candidates) - len(best)
        left_out["more than enough of its question"] += len(best) - len(kept)
        paths += kept
    if not paths:
        raise ValueError(
            f"no good refinement path in {run / 'rollouts'}: {describe_reasons(left_out)}; {plain} plain answers do not count. "
            "Train longer, or lower --min-accuracy"
        )
    return paths, dict(left_out)


def describe_reasons(left_out: dict[str, int]) -> str:
    counts = [f"{count} {reason}" for reason, count in left_out.items() if count]
    return ", ".join(counts) or "not a single refine-prompt response"


def as_path(row: dict, run: str, step: int) -> dict:
    """Return a rollout as a row of the data set."""
    kept = ("format", "accuracy", "refine", "reward", "baseline", "tokens", "policy_version")
    head = {"question": row["question"], "reference": row["reference"], "response": row["text"], "ids": row.get("ids")}
    return head | {name: row[name] for name in kept} | {"id": row["id"], "run": run, "step": step}


def write_paths(paths: list[dict], left_out: dict[str, int], run: Path, selection: Selection, out: Path) -> None:
    """Write paths.jsonl, and manifest.json beside it: the origin of the paths, and what was left out."""
    out.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(path, ensure_ascii=False) + "\n" for path in paths)
    (out / "paths.jsonl").write_text(content, encoding="utf-8")
    manifest = {
        "run": str(run),
        "selection": asdict(selection),
        "paths": len(paths),
        "questions": len({(path["question"], path["reference"]) for path in paths}),
        "tokens": sum(path["tokens"] for path in paths),
        "paths_by_step": {str(step): count for step, count in sorted(Counter(path["step"] for path in paths).items())},
        "left_out": left_out,
        "blake2b": hashlib.blake2b(content.encode(), digest_size=16).hexdigest(),
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
