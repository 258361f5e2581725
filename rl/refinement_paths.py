"""Good refinement paths: the rollouts of a run from which PASR(+IFT) learns, and a count of what is left out and why."""

import hashlib
import json
from collections import Counter, defaultdict
from pathlib import Path

from rewards.format import parse_response
from rewards.refine import refine_reward
from rewards.refinements import changes_nothing
from rl.evaluation.records import read_lines, rollout_files

KEPT = ("question", "reference", "format", "accuracy", "refine", "reward", "baseline", "tokens", "policy_version", "id")


def find_fault(row: dict, *, zeta: float, min_accuracy: float) -> str | None:
    """Return the reason that a refine-prompt rollout is not a good path; None if it is one.

    Eq. 6 decides anew if the refinement won, because a run with another --refine-reward paid for something else.
    """
    response, accuracy, baseline = parse_response(row["text"]), row["accuracy"], row["baseline"]
    if response is None:
        return "malformed"
    if not response.refinements:
        return "no refinement"
    if row["finish_reason"] != "stop":
        return "cut off before its end"
    if accuracy is None or baseline is None:
        return "no score" if accuracy is None else "no baseline to win against"
    if accuracy < min_accuracy:
        return "not right"
    if refine_reward(accuracy, baseline, zeta=zeta, refined=True) != 1.0:
        return "refinement did not win"
    return "refinement only repeats" if changes_nothing(row["text"]) else None


def collect_paths(run: Path, *, zeta: float, min_accuracy: float, per_question: int) -> tuple[list[dict], dict[str, int]]:
    """Return the good paths of a run's rollouts, and the number of responses left out by reason.

    Of several to a question the most accurate are kept, then the shortest, then those of the newest policy.

    Args:
        zeta: half width of the tie band of Eq. 6, the run's.
        min_accuracy: score from which an answer counts as right.
        per_question: paths kept for each question; 0: all that differ.

    Raises:
        ValueError: no rollouts, a line that is none, or nothing good: the message counts the reasons.
    """
    # good paths by question
    left_out: Counter[str] = Counter()
    good: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for file in rollout_files(run):
        origin = {"run": run.name, "step": int(file.stem.removeprefix("step_"))}
        for where, row in read_lines(file):
            try:
                if row["mode"] != "refine":
                    left_out["plain answer"] += 1
                elif reason := find_fault(row, zeta=zeta, min_accuracy=min_accuracy):
                    left_out[reason] += 1
                else:
                    path = {"response": row["text"], "ids": row.get("ids")} | {name: row[name] for name in KEPT}
                    good[row["question"], row["reference"]].append(path | origin)
            except (KeyError, TypeError) as error:
                raise ValueError(f"{where}: not a rollout ({type(error).__name__}: {error})") from error

    # the best of each question, every text once
    paths = []
    for candidates in good.values():
        best: dict[str, dict] = {}
        for path in sorted(candidates, key=lambda p: (-p["accuracy"], p["tokens"], -p["step"], p["response"])):
            best.setdefault(path["response"], path)
        kept = list(best.values())[: per_question or None]
        left_out["duplicate"] += len(candidates) - len(best)
        left_out["more than enough of its question"] += len(best) - len(kept)
        paths += kept
    if not paths:
        raise ValueError(
            f"no good refinement path in {run / 'rollouts'}: {describe_reasons(left_out)}. "
            "Train longer, or lower --min-accuracy"
        )
    return paths, dict(left_out)


def describe_reasons(left_out: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count) or "nothing"


def write_paths(paths: list[dict], left_out: dict[str, int], run: Path, out: Path, **selection: float) -> None:
    """Write paths.jsonl, and manifest.json beside it: the origin of the paths, how they were selected, what was left out."""
    out.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(path, ensure_ascii=False) + "\n" for path in paths)
    (out / "paths.jsonl").write_text(content, encoding="utf-8")
    manifest = {
        "run": str(run),
        "selection": selection,
        "paths": len(paths),
        "questions": len({(path["question"], path["reference"]) for path in paths}),
        "tokens": sum(path["tokens"] for path in paths),
        "paths_by_step": dict(sorted(Counter(path["step"] for path in paths).items())),
        "left_out": left_out,
        "blake2b": hashlib.blake2b(content.encode(), digest_size=16).hexdigest(),
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
