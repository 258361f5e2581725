"""Questions with reference answers, from JSON, JSONL or the hub, in an order that is a pure function of the seed."""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download

KEYS = (("question", "answer"), ("instruction", "output"))  # the second with an optional `input`, as in Alpaca
HUB = "hub:"  # begins the name of a data set on the hub
REVISION = "refs/convert/parquet"  # the hub's own branch: one layout for all data sets, and no loading script is run


@dataclass(frozen=True)
class Example:
    """One question with its reference answer."""

    id: str  # unique within its data set; part of the seed of every sample drawn for it
    question: str
    reference: str  # answers are judged against it


class Row:
    """The fields of one row, read with ValueErrors that name the file and row (`source`) and the key."""

    def __init__(self, fields: object, source: str) -> None:
        if not isinstance(fields, dict):
            raise ValueError(f"{source}: expected a JSON object, found {type(fields).__name__}")
        self.fields, self.source = fields, source

    def error(self, key: str, problem: str) -> ValueError:
        return ValueError(f"{self.source}: {key!r} {problem}; the row has the keys {sorted(self.fields)}")

    def text(self, key: str, *, may_be_empty: bool = False) -> str:
        """Return a text without space around it; a number becomes its text."""
        value = self.fields.get(key)
        if value is None:
            raise self.error(key, "is missing")
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise self.error(key, f"is no text but {type(value).__name__}")
        if not may_be_empty and not str(value).strip():
            raise self.error(key, "is empty")
        return str(value).strip()

    def texts(self, key: str) -> list[str]:
        """Return a list of texts, at least one."""
        value = self.fields.get(key)
        if not isinstance(value, Sequence) or isinstance(value, str) or not value:
            raise self.error(key, "is missing, empty or no list")
        return [Row({key: entry}, self.source).text(key) for entry in value]

    def row(self, key: str) -> "Row":
        """Return a nested object."""
        if not isinstance(self.fields.get(key), dict):
            raise self.error(key, "is missing or no object")
        return Row(self.fields[key], f"{self.source}, in {key!r}")

    def example(self, fallback_id: str, *, may_be_empty: bool = False) -> Example:
        """Return the question with its reference answer, under the names of KEYS."""
        question, answer = next((keys for keys in KEYS if keys[0] in self.fields), (None, None))
        if question is None:
            raise self.error("question", "with 'answer', or 'instruction' with 'output', is missing")
        text = self.text(question, may_be_empty=may_be_empty)
        if question == "instruction" and str(self.fields.get("input") or "").strip():
            text += f"\n\n{self.text('input')}"
        return Example(str(self.fields.get("id", fallback_id)), text, self.text(answer, may_be_empty=may_be_empty))


def load_examples(source: str | Path) -> list[Example]:
    """Read rows of (question, answer) or (instruction, output), the second with an optional `input`.

    Args:
        source: a JSON list, or JSONL; or `hub:OWNER/NAME:CONFIG:SPLIT`, a data set on the hub.

    Raises:
        ValueError: it cannot be had, is not JSON, a row is without question or answer (it is named), or there are no rows.
    """
    if str(source).startswith(HUB):
        stem = str(source).removeprefix(HUB)
        parts = stem.split(":")
        if len(parts) != 3 or not all(parts):
            raise ValueError(f"{source}: a data set on the hub is hub:OWNER/NAME:CONFIG:SPLIT, say hub:openai/gsm8k:main:train")
        rows = HubSplit(*parts).rows()
    elif Path(source).is_file():
        rows, stem = read_rows(Path(source)), Path(source).stem
    else:
        raise ValueError(f"no data file at {source}")
    if not rows:
        raise ValueError(f"{source} holds no examples")
    return [Row(row, f"{source}, {where}").example(f"{stem}-{index}") for index, (where, row) in enumerate(rows)]


def read_rows(path: Path) -> list[tuple[str, object]]:
    """Read ("line N" or "item N", row) pairs of a UTF-8 file. A file that starts with `[` is one JSON list."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}): convert it to UTF-8") from error
    if text.lstrip().startswith("["):
        return [(f"item {i}", row) for i, row in enumerate(_parse_json(text, str(path)), start=1)]
    lines = [(f"line {number}", line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    return [(where, _parse_json(line, f"{path}, {where}")) for where, line in lines]


def _parse_json(text: str, where: str) -> object:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        inside = f", line {error.lineno}" if "\n" in text else ""
        raise ValueError(f"{where}{inside}: not valid JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets nested thousands deep
        raise ValueError(f"{where}: cannot be read as JSON ({error})") from error
    if "\\ud" in text.lower():  # no tokenizer and no file can take half of a surrogate pair
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"{where}: holds half of a surrogate pair (such as \\ud83d alone); mend the text") from error
    return value


@dataclass(frozen=True)
class HubSplit:
    """One split of a data set on the hub."""

    repository: str
    config: str
    split: str

    def __str__(self) -> str:
        return f"{self.repository} ({self.config}, {self.split})"

    def rows(self) -> list[tuple[str, dict]]:
        """Return ("row N", row) pairs; the files are downloaded once, then read from the hub's cache."""
        pattern = f"{self.config}/{self.split}/*.parquet"
        try:
            folder = snapshot_download(self.repository, repo_type="dataset", revision=REVISION, allow_patterns=pattern)
            files = sorted(Path(folder).glob(pattern))
            if not files:
                raise ValueError("it has no such configuration or split")
        except (OSError, ValueError) as error:  # every error of the hub and its connection is one of these
            raise download_error(
                str(self), error, "give files of your own (train.py: --data, evaluate.py: --data-dir); a data set with terms "
                "of use needs them accepted on its page, and HF_TOKEN set"
            ) from error  # fmt: skip
        return [(f"row {i}", row) for i, row in enumerate(row for file in files for row in _read_parquet(file))]


def download_error(name: str, error: Exception, advice: str) -> ValueError:
    """Make the error of a file that the hub did not give, with what to do without network."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return ValueError(f"{name} is not in the hub's cache and could not be downloaded: {reason}. Without network, {advice}")


def _read_parquet(file: Path) -> list[dict]:
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(file).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{file} is no readable Parquet file: {error}") from error


def stable_seed(*parts: object) -> int:
    """Return a 63-bit seed from values with a stable repr; the same on every machine and in every process."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def shuffled(examples: list[Example], seed: int, epoch: int) -> list[Example]:
    """Return the examples in the order of one epoch: a pure function of (seed, epoch)."""
    order = list(examples)
    random.Random(stable_seed("data order", seed, epoch)).shuffle(order)
    return order


class ExampleStream:
    """The training questions of any step, without state: epochs are shuffled one by one and laid end to end."""

    def __init__(self, examples: list[Example], seed: int) -> None:
        self.examples, self.seed = examples, seed
        self._epoch, self._order = -1, examples

    def take(self, step: int, count: int) -> list[Example]:
        """Return the `count` questions of step `step` (from 0)."""
        return [self._at(index) for index in range(step * count, (step + 1) * count)]

    def _at(self, index: int) -> Example:
        epoch, offset = divmod(index, len(self.examples))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, shuffled(self.examples, self.seed, epoch)
        return self._order[offset]
