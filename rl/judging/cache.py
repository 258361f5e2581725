"""Scores that a judge has given already, in memory and in a JSONL file that survives kills and is shared by runs."""

import hashlib
import json
from pathlib import Path
from threading import Lock

from rl.files import append_line


class ScoreCache:
    """Scores by key. Safe for threads; several processes may append to one file.

    Args:
        file: where rows are kept; None keeps them in memory only.

    Raises:
        OSError: the file cannot be read or made.
    """

    def __init__(self, file: str | Path | None) -> None:
        self._file = Path(file) if file else None
        self._lock = Lock()
        self._scores: dict[str, float] = {}
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.touch()
            content = self._file.read_bytes()
            self._scores = dict(row for row in map(_parse_score, content.split(b"\n")) if row is not None)

    def __len__(self) -> int:
        return len(self._scores)

    def get(self, key: str) -> float | None:
        return self._scores.get(key)

    def put(self, key: str, score: float) -> None:
        """Keep a score.

        Raises:
            OSError: it could not be written, for example because the disk is full.
        """
        with self._lock:
            self._scores[key] = score
            if self._file is None:
                return
            append_line(self._file, json.dumps({"key": key, "score": score}))


def _parse_score(line: bytes) -> tuple[str, float] | None:
    """A row, or None for a line that was cut off: a cache may forget, and must not invent."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or not isinstance(row.get("key"), str) or not isinstance(row.get("score"), float):
        return None
    return (row["key"], row["score"]) if 0.0 <= row["score"] <= 1.0 else None


class BaselineCache:
    """Scores by question, in one JSONL file for each setting that they depend on. Several processes may add to one file.

    Args:
        folder: where the files are; made if absent.
        setting: everything the scores depend on (model, prompt, judge, sampling); must be JSON.
    """

    def __init__(self, folder: Path, setting: dict) -> None:
        self.path = folder / f"{_digest(setting)}.jsonl"
        self._scores: dict[str, list[float | None]] = {key: row["scores"] for key, row in read_baselines(self.path).items()}

    def __len__(self) -> int:
        return len(self._scores)

    def get(self, question: str, reference: str) -> list[float | None] | None:
        return self._scores.get(question_key(question, reference))

    def put(self, question: str, reference: str, answers: list[tuple[str, float | None]]) -> None:
        """Keep the (text, score) pairs of a question, unless a score failed: then it is to be tried again."""
        key, scores = question_key(question, reference), [score for _, score in answers]
        if None not in scores:
            self._scores[key] = scores
            row = {"key": key, "question": question, "scores": scores, "texts": [text for text, _ in answers]}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            append_line(self.path, json.dumps(row))

    def remember(self, question: str, reference: str, scores: list[float | None]) -> None:
        """Scores that another process has put into the file."""
        if None not in scores:
            self._scores[question_key(question, reference)] = scores


def read_baselines(file: Path) -> dict[str, dict]:
    """The rows of a cache, {key, question, scores, texts}, by `question_key`; none of a file that does not exist."""
    if not file.exists():
        return {}
    rows = map(_parse_baseline, file.read_text(encoding="utf-8", errors="replace").split("\n"))
    return {row["key"]: row for row in rows if row is not None}


def baseline_files(saved: dict) -> list[str]:
    """The names of a run's caches in its config.json: one for each version of the rules it was judged by."""
    names = saved.get("baselines") or []
    return [names] if isinstance(names, str) else list(names)


def question_key(question: str, reference: str) -> str:
    return _digest([question, reference])


def _parse_baseline(line: str) -> dict | None:
    """A row, or None for a line that was cut off while it was being written."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and {"key", "scores", "texts"} <= row.keys() else None


def _digest(value) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=12).hexdigest()
