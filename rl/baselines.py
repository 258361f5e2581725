"""r̄ under --plain-policy reference: the scores of the initial policy's plain answers, sampled and judged once a question.

They are kept on disk and reused by later epochs and runs. The policy cannot lower a baseline that it does not write.
"""

import hashlib
import json
import os
from pathlib import Path

import jsonlines


class BaselineCache:
    """Scores by question, in one JSONL file for each setting that they depend on.

    Args:
        folder: where the files are; made if absent.
        setting: everything the scores depend on (model, prompt, judge, sampling); must be JSON.
    """

    def __init__(self, folder: Path, setting: dict) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{_digest(setting)}.jsonl"
        self._scores: dict[str, list[float | None]] = {}
        if self.path.exists():
            cut_half_line(self.path)
            with jsonlines.open(self.path) as rows:
                self._scores = {row["key"]: row["scores"] for row in rows}

    def __len__(self) -> int:
        return len(self._scores)

    def get(self, question: str, reference: str) -> list[float | None] | None:
        return self._scores.get(_digest([question, reference]))

    def put(self, question: str, reference: str, answers: list[tuple[str, float | None]]) -> None:
        """Keep the (text, score) pairs of a question, unless a score failed: then it is to be tried again."""
        key, scores = _digest([question, reference]), [score for _, score in answers]
        if None not in scores:
            self._scores[key] = scores
            with jsonlines.open(self.path, mode="a") as file:
                file.write({"key": key, "question": question, "scores": scores, "texts": [text for text, _ in answers]})


def cut_half_line(path: Path) -> None:
    """Remove a last line that was cut off while being written, so that the next one does not continue it."""
    content = path.read_bytes()
    os.truncate(path, content.rfind(b"\n") + 1)


def _digest(value) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=12).hexdigest()
