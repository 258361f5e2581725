"""What an evaluation leaves behind: settings.json and one line for each answer, appended as answers end.

OUT/settings.json                        what was asked of which model, and how; a later run must agree
OUT/records/BENCHMARK.METHOD.jsonl       every answer with its turns and scores
"""

import fcntl
import json
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path

from rewards.score_cache import append_line
from rl.run_folder import write_whole
from rl.terminal import wrapped

MAY_GROW = ("benchmarks", "data", "judge")  # settings that a later run may add to


@dataclass
class AnswerRecord:
    """One answer to one question.

    Attributes:
        id, sample: of the question within its benchmark, and of the answer to it.
        turns: {"prompt", "response", "tokens", "finish_reason"} of each turn; none if the question could not be asked.
        answer: what the rule took for the answer; None if it found none.
        answer_turn: index of the turn that the answer comes from: a review that finds nothing wrong leaves the one before.
        tokens: generated in all turns.
        scores: "rule" and "judge", in [0, 1] or None (no judge, or no score to be had); for DROP also "exact".
        unreadable: why the question could not be asked, or "".
        rules: `rules_version` of the rules that scored it.
    """

    benchmark: str
    method: str
    id: str
    sample: int
    question: str
    reference: str
    turns: list[dict]
    answer: str | None
    answer_turn: int
    tokens: int
    scores: dict[str, float | None] = field(default_factory=dict)
    unreadable: str = ""
    rules: str = ""


class RecordFile:
    """The records of one benchmark and method.

    Args:
        folder: of the evaluation.
        mend: take a last line that was cut off out of the file. Only for who holds the folder: another process may be writing.

    Raises:
        ValueError: a line that is no record (the last one may be cut off: it is left out).
    """

    def __init__(self, folder: Path, benchmark: str, method: str, *, mend: bool = True) -> None:
        self.path = folder / "records" / f"{benchmark}.{method}.jsonl"
        self.records: dict[tuple[str, int], AnswerRecord] = {}
        content = self.path.read_bytes() if self.path.exists() else b""
        *lines, cut_off = content.split(b"\n")  # bytes: what was cut off may end within a character
        for number, line in enumerate(lines, start=1):
            record = self._parse(line, number)
            self.records[record.id, record.sample] = record
        if cut_off and mend:  # a kill while it was written
            print(f"{self.path}: the last line was cut off; that question is asked again")
            write_whole(self.path, "".join(line.decode() + "\n" for line in lines))

    def _parse(self, line: bytes, number: int) -> AnswerRecord:
        try:
            record = AnswerRecord(**json.loads(line.decode()))
            if not isinstance(record.scores, dict) or not isinstance(record.turns, list):
                raise TypeError("scores or turns are malformed")
            return record
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.path}, line {number} is no record of an answer ({error}); mend or remove it") from error

    def append(self, record: AnswerRecord) -> None:
        """Add a line to the file, to which other ranks add theirs."""
        self.records[record.id, record.sample] = record
        append_line(self.path, json.dumps(asdict(record), ensure_ascii=False))

    def rewrite(self, order: list[str]) -> None:
        """Write everything anew, in the order of the questions.

        Raises:
            ValueError: an answer to another question.
        """
        places = {id: place for place, id in enumerate(order)}
        if strange := {id for id, _ in self.records} - places.keys():
            raise ValueError(f"{self.path} has answers to {sorted(strange)[0]!r}, which is not asked here; remove its lines")
        self.records = dict(sorted(self.records.items(), key=lambda entry: (places[entry[0][0]], entry[0][1])))
        lines = [json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in self.records.values()]
        write_whole(self.path, "".join(lines))


class OtherSettingsError(ValueError):
    """A folder holds answers made with other settings."""


class OutputFolder:
    """The folder of one evaluation of one model, held by this process.

    Args:
        path: made if absent.
        settings: everything an answer depends on, JSON. `benchmarks` and `data` are dictionaries by benchmark.

    Raises:
        OtherSettingsError: the folder holds answers made with other settings.
        ValueError: it belongs to another process, or cannot be written.
    """

    def __init__(self, path: Path, settings: dict) -> None:
        self.path = path
        try:
            (path / "records").mkdir(parents=True, exist_ok=True)
            self._lock = (path / ".lock").open("w")  # held until it is closed
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another process is writing to {path}; wait for it, or choose another --out") from error
        except OSError as error:
            raise ValueError(f"cannot write to {path}: {error.strerror}. Choose another --out") from error
        file = path / "settings.json"
        self.is_continued = file.exists()
        if self.is_continued:
            settings = _joined(load_settings(path), settings, path)
        self.settings = settings
        write_whole(file, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")

    def close(self) -> None:
        self._lock.close()


def open_next_to(path: Path, settings: dict) -> OutputFolder:
    """The folder `path`, or the first of path-2, path-3, ... that is new or holds answers made with these settings."""
    for number in count(1):
        candidate = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            return OutputFolder(candidate, settings)
        except OtherSettingsError as error:
            print(wrapped(f"{str(error).removesuffix('. Choose another --out')}: taking another folder"))


def load_settings(path: Path) -> dict:
    """The settings of a finished or interrupted evaluation.

    Raises:
        ValueError: the folder holds none.
    """
    try:
        settings = json.loads((path / "settings.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} holds no evaluation: settings.json cannot be read ({error})") from error
    if not isinstance(settings, dict) or not all(isinstance(settings.get(name), dict) for name in ("benchmarks", "data")):
        raise ValueError(f"{path} holds no evaluation: settings.json names no benchmarks and data")
    return settings


def _joined(saved: dict, now: dict, path: Path) -> dict:
    """Both settings in one, if answers made with either belong together."""
    differences = [f"{k} was {saved.get(k)}, is {v}" for k, v in now.items() if k not in MAY_GROW and saved.get(k) != v]
    for name in ("benchmarks", "data"):
        both = saved.get(name, {}).keys() & now[name].keys()
        differences += [
            f"{name} of {k} was {saved[name][k]}, is {now[name][k]}" for k in both if saved[name][k] != now[name][k]
        ]
    if saved.get("judge") and now["judge"] and saved["judge"] != now["judge"]:
        differences.append(f"judge was {saved['judge']}, is {now['judge']}")
    if differences:
        raise OtherSettingsError(
            f"{path} holds answers made with other settings: {'; '.join(differences)}. Choose another --out"
        )
    joined = now | {name: saved.get(name, {}) | now[name] for name in ("benchmarks", "data")}
    return joined | {"judge": now["judge"] or saved.get("judge")}
