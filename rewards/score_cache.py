"""Scores that a judge has given already, in memory and in a JSONL file that survives kills and is shared by runs."""

import hashlib
import json
from pathlib import Path
from threading import Lock


def cache_key(model: str, prompt: str, extra_body: dict) -> str:
    """A digest of everything a score depends on."""
    text = json.dumps([model, prompt, extra_body], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


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
        self._cut_off = False  # the last line ends without a line break: a process was killed while writing it
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.touch()
            content = self._file.read_bytes()
            self._cut_off = bool(content) and not content.endswith(b"\n")
            self._scores = dict(row for row in map(_read_row, content.split(b"\n")) if row is not None)

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
            line = json.dumps({"key": key, "score": score}) + "\n"
            with self._file.open("ab") as file:
                file.write(("\n" * self._cut_off + line).encode())  # one write, so that processes do not mix their lines
            self._cut_off = False


def _read_row(line: bytes) -> tuple[str, float] | None:
    """A row, or None for a line that was cut off: a cache may forget, and must not invent."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or not isinstance(row.get("key"), str) or not isinstance(row.get("score"), float):
        return None
    return (row["key"], row["score"]) if 0.0 <= row["score"] <= 1.0 else None
