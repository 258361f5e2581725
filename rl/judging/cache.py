"""Scores that are kept on disk: those of a judge's server, and those of the initial policy's plain answers.

The files are JSONL. They survive kills, and several runs share them.
"""

import hashlib
import json
from contextlib import AbstractContextManager
from pathlib import Path

from rewards.refine import baseline_accuracy
from rl.distributed import gather, rank
from rl.files import append_line
from rl.records import Group
from rl.rollout import Rollout
from rl.sampler import Sampler


class ScoreCache(dict[str, float]):
    """Scores by key, each also a row of a file. Safe for threads; several processes may append to one file.

    Raises:
        OSError: the file cannot be read or made, or a score cannot be written, for example because the disk is full.
    """

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        self._file = file
        rows = _read_rows(file, {"key": str, "score": float})
        super().__init__((row["key"], row["score"]) for row in rows if 0.0 <= row["score"] <= 1.0)

    def __setitem__(self, key: str, score: float) -> None:
        super().__setitem__(key, score)
        append_line(self._file, json.dumps({"key": key, "score": score}))


class BaselineCache:
    """Scores of plain answers by question, in one file for each setting that they depend on.

    Args:
        folder: where the files are; made if absent.
        setting: everything the scores depend on (model, prompt, judge, sampling); must be JSON.
    """

    def __init__(self, folder: Path, setting: dict) -> None:
        self.path = folder / f"{_digest(setting)}.jsonl"
        self._scores: dict[str, list[float]] = {key: row["scores"] for key, row in read_baselines(self.path).items()}

    def __len__(self) -> int:
        return len(self._scores)

    def get(self, question: str, reference: str) -> list[float] | None:
        """Return the scores of a question's plain answers; None if there are none."""
        return self._scores.get(question_key(question, reference))

    def put(self, question: str, reference: str, answers: list[tuple[str, float | None]], *, to_file: bool = True) -> None:
        """Keep the (text, score) pairs of a question, unless a score failed: then it is to be tried again.

        Args:
            to_file: False for those that another process has put into the file.
        """
        key, scores = question_key(question, reference), [score for _, score in answers]
        if None in scores:
            return
        self._scores[key] = scores
        if to_file:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            row = {"key": key, "question": question, "scores": scores, "texts": [text for text, _ in answers]}
            append_line(self.path, json.dumps(row))


class ReferenceBaselines:
    """Sets r̄ of groups from the initial policy's plain answers, sampled and judged once a question and kept on disk.

    The policy cannot lower a baseline that it does not write. These answers count in no metric but r̄ and `baseline/*`, so that
    a run's metrics do not depend on which questions were in the cache.

    Args:
        sampler: draws from the initial policy.
        weights: context in which its model may be used.
    """

    def __init__(self, cache: BaselineCache, sampler: Sampler, weights: AbstractContextManager) -> None:
        self.cache, self.sampler, self.weights = cache, sampler, weights

    def __call__(self, groups: list[Group], rollout: Rollout) -> dict[str, float]:
        """Set r̄ of this rank's groups, and return `baseline/*`. All ranks call this together."""
        # questions without a cached baseline are answered by the reference, once each
        missing = [group for group in groups if self.cache.get(group.question, group.reference) is None]
        unique = {(g.question, g.reference): Group(g.example_id, g.question, g.reference) for g in missing}
        count = rollout.config.plain_samples
        requests = [
            (g, "plain", rollout.request(g.question, "plain", count, ("reference", g.question))) for g in unique.values()
        ]
        if any(gather(bool(requests))):  # all ranks together, or none: the reference is made whole for it
            rollout.sample_and_judge(self.sampler, self.weights, requests)

        # their scores go into the cache of every rank, because the next epoch may give a question to another one
        fresh = {key: [(sample.text, sample.accuracy) for sample in g.plain_samples] for key, g in unique.items()}
        for source, answered in enumerate(gather(fresh)):
            for key, answers in answered.items():
                self.cache.put(*key, answers, to_file=source == rank())

        # r̄ of every group; scores of which some failed are in no cache
        for group in groups:
            key = group.question, group.reference
            group.baseline = baseline_accuracy(self.cache.get(*key) or [score for _, score in fresh[key]])
        stats = {name.replace("judge/", "baseline/judge_"): value for name, value in rollout.scores.take_stats().items()}
        return stats | {"baseline/sampled": len(unique)}


def read_baselines(file: Path) -> dict[str, dict]:
    """Return the rows of a cache, {key, question, scores, texts}, by `question_key`; none of a file that does not exist."""
    return {row["key"]: row for row in _read_rows(file, {"key": str, "scores": list, "texts": list})}


def question_key(question: str, reference: str) -> str:
    """Return the key of a question in a `BaselineCache`."""
    return _digest([question, reference])


def _read_rows(file: Path, types: dict[str, type]) -> list[dict]:
    """Return the rows of a JSONL file that have these fields; a line that was cut off while being written is left out."""
    rows = []
    for line in file.read_text(encoding="utf-8", errors="replace").split("\n") if file.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and all(isinstance(row.get(name), type_) for name, type_ in types.items()):
            rows.append(row)
    return rows


def _digest(value) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=12).hexdigest()
