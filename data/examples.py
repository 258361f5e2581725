"""Questions with reference answers: read from JSON, JSONL or the hub, in an order that is a pure function of the seed."""

import hashlib
import json
import random
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet
from huggingface_hub import snapshot_download

KEYS = (("question", "answer"), ("instruction", "output"))
HUB = "hub:"  # begins the name of a data set on the hub


@dataclass(frozen=True)
class Example:
    """One question.

    Attributes:
        id: unique within its data set; part of the seed of every sample drawn for it.
        question: the user's text.
        reference: the answer it is judged against.
    """

    id: str
    question: str
    reference: str


def load_examples(source: str | Path) -> list[Example]:
    """Read objects with (question, answer) or (instruction, output).

    Args:
        source: a JSON list, or JSONL; or `hub:OWNER/NAME:CONFIG:SPLIT`, a data set on the hub.

    Raises:
        ValueError: it cannot be had, is not JSON, a row is without question or answer (it is named), or there are no rows.
    """
    if str(source).startswith(HUB):
        rows, stem = _hub_rows(str(source)), str(source).removeprefix(HUB)
    elif Path(source).is_file():
        rows, stem = read_rows(Path(source)), Path(source).stem
    else:
        raise ValueError(f"no data file at {source}")
    if not rows:
        raise ValueError(f"{source} holds no examples")
    return [_to_example(row, f"{source}, {place}", f"{stem}-{index}") for index, (place, row) in enumerate(rows)]


def _hub_rows(source: str) -> list[tuple[str, object]]:
    from data.examples import HubSplit  # late: pyarrow takes a while, and files need none

    parts = source.removeprefix(HUB).split(":")
    if len(parts) != 3 or not all(parts):
        raise ValueError(f"{source}: a data set on the hub is hub:OWNER/NAME:CONFIG:SPLIT, say hub:openai/gsm8k:main:train")
    return HubSplit(*parts).rows()


def read_rows(path: Path) -> list[tuple[str, object]]:
    """Every row with the words that say where it stands. A file that starts with `[` is one JSON list.

    Raises:
        ValueError: not UTF-8, or not JSON; the place is named.
    """
    text = read_text(path)
    if text.lstrip().startswith("["):
        return [(f"item {i}", row) for i, row in enumerate(parse_json(text, str(path)), start=1)]
    lines = [(f"line {number}", line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    return [(place, parse_json(line, f"{path}, {place}")) for place, line in lines]


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark.

    Raises:
        ValueError: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}): convert it to UTF-8") from error


def parse_json(text: str, place: str) -> object:
    """A value from JSON.

    Raises:
        ValueError: not JSON, or it holds half of a surrogate pair, which no tokenizer and no file can take; `place` is named.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        inside = f", line {error.lineno}" if "\n" in text else ""
        raise ValueError(f"{place}{inside}: not valid JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets nested thousands deep
        raise ValueError(f"{place}: cannot be read as JSON ({error})") from error
    if "\\ud" in text.lower():
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"{place}: holds half of a surrogate pair (such as \\ud83d alone); mend the text") from error
    return value


def _to_example(row: object, place: str, fallback_id: str) -> Example:
    if not isinstance(row, dict):
        raise ValueError(f"{place}: expected a JSON object, found {type(row).__name__}")
    for question_key, answer_key in KEYS:
        if question_key in row:
            question, answer = row[question_key], row.get(answer_key)
            if not isinstance(question, str) or not question.strip():
                raise ValueError(f"{place}: {question_key!r} is empty or not a text")
            if not isinstance(answer, (str, int, float)) or not str(answer).strip():
                raise ValueError(f"{place}: {answer_key!r} is missing or empty")
            return Example(str(row.get("id", fallback_id)), question.strip(), str(answer).strip())
    raise ValueError(f"{place}: needs 'question' and 'answer', or 'instruction' and 'output'; found {sorted(row)}")


def stable_seed(*parts: object) -> int:
    """A 63-bit seed from any values with a stable repr; the same on every machine and in every process."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def shuffled(examples: list[Example], seed: int, epoch: int) -> list[Example]:
    """The order of one epoch: a pure function of (seed, epoch)."""
    order = list(examples)
    random.Random(stable_seed("data order", seed, epoch)).shuffle(order)
    return order


class ExampleStream:
    """The training questions of any step, without state: epochs are shuffled one by one and laid end to end."""

    def __init__(self, examples: list[Example], seed: int) -> None:
        self.examples, self.seed = examples, seed
        self._epoch, self._order = -1, examples

    def take(self, step: int, count: int) -> list[Example]:
        """The `count` questions of step `step` (from 0)."""
        return [self._at(index) for index in range(step * count, (step + 1) * count)]

    def _at(self, index: int) -> Example:
        epoch, place = divmod(index, len(self.examples))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, shuffled(self.examples, self.seed, epoch)
        return self._order[place]


REVISION = "refs/convert/parquet"  # the hub's own branch: one layout for all data sets, and no loading script is run


@dataclass(frozen=True)
class HubSplit:
    """One split of a data set."""

    repository: str
    config: str
    split: str

    def __str__(self) -> str:
        return f"{self.repository} ({self.config}, {self.split})"

    def rows(self) -> list[tuple[str, dict]]:
        """Every row with the words that say where it stands; downloaded once, then from the hub's cache.

        Raises:
            ValueError: neither cached nor to be downloaded, or not readable as Parquet.
        """
        where = f"{self.config}/{self.split}/*.parquet"
        try:
            folder = snapshot_download(self.repository, repo_type="dataset", revision=REVISION, allow_patterns=where)
            files = sorted(Path(folder).glob(where))
            if not files:
                raise ValueError("it has no such configuration or split")
        except (OSError, ValueError) as error:  # every error of the hub and its connection is one of these
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise ValueError(
                f"{self} is not in the hub's cache and could not be downloaded: {reason}. Without network, give files of your "
                "own (train.py: --data, evaluate.py: --data-dir); a data set with terms of use needs them accepted on its "
                "page, and HF_TOKEN set"
            ) from error
        rows = [row for file in files for row in _read(file)]
        return [(f"row {i}", row) for i, row in enumerate(rows)]


def _read(file: Path) -> list[dict]:
    try:
        return pyarrow.parquet.read_table(file).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{file} is no readable Parquet file: {error}") from error
