"""Scores that a judge has given already, in memory and in a JSONL file that survives kills and is shared by runs."""

import fcntl
import hashlib
import json
import os
from pathlib import Path
from threading import Lock


def cache_key(model: str, prompt: str, extra_body: dict) -> str:
    """A digest of everything a score depends on."""
    text = json.dumps([model, prompt, extra_body], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def append_line(file: Path, line: str) -> None:
    """Add a line to a file that several processes, on several machines, add to; a last line that was cut off is left behind.

    Raises:
        OSError: it could not be written, for example because the disk is full.
    """
    with file.open("a+b") as output:
        fcntl.flock(output, fcntl.LOCK_EX)  # until it is closed, which is after the line has been written
        if output.seek(0, os.SEEK_END):
            output.seek(-1, os.SEEK_END)
            if output.read(1) != b"\n":
                output.write(b"\n")
        output.write(line.encode() + b"\n")
        output.flush()


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
            append_line(self._file, json.dumps({"key": key, "score": score}))


def _read_row(line: bytes) -> tuple[str, float] | None:
    """A row, or None for a line that was cut off: a cache may forget, and must not invent."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or not isinstance(row.get("key"), str) or not isinstance(row.get("score"), float):
        return None
    return (row["key"], row["score"]) if 0.0 <= row["score"] <= 1.0 else None
