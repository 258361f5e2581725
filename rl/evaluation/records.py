"""What an evaluation leaves behind: settings.json and one line for each answer, appended as answers end.

OUT/settings.json                        what was asked of which model, and how; a later run must agree
OUT/records/BENCHMARK.METHOD.jsonl       every answer with its turns and scores
"""

import fcntl
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path

from model.checkpoint import read_json
from rl.files import append_line, write_whole
from rl.judging.cache import baseline_files, question_key, read_baselines
from rl.run.console import wrapped

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


SCORES = ("judge", "rule")  # of a record, in order of preference


@dataclass(frozen=True)
class Answer:
    """One answer to one question.

    Attributes:
        benchmark, id, sample: plain and refined answers with the same three belong together.
        text: the response, tags included; None if the question could not be asked.
        tokens: generated for it, over all turns; None where they were not kept.
        score: in [0, 1]; None where scoring failed.
    """

    benchmark: str
    id: str
    sample: int
    question: str
    text: str | None
    tokens: int | None
    score: float | None

    @property
    def key(self) -> tuple[str, str, int]:
        return self.benchmark, self.id, self.sample


def methods_of(folder: Path) -> list[str]:
    """The methods that an evaluation has records of."""
    return sorted({file.stem.rpartition(".")[2] for file in (folder / "records").glob("*.*.jsonl")})


def read_records(folder: Path, method: str, score: str) -> list[Answer]:
    """Every answer of a method in an evaluation's folder.

    Args:
        score: "rule" or "judge"; where a record lacks it the answer has no score, whatever the other one says.

    Raises:
        ValueError: no records of the method, or a line that is none; file and line are named.
    """
    files = sorted((folder / "records").glob(f"*.{method}.jsonl"))
    if not files:
        raise ValueError(f"{folder / 'records'} has no records of {method!r}; it has {methods_of(folder) or 'none at all'}")
    answers = []
    for file in files:
        for record in RecordFile(folder, file.stem.rpartition(".")[0], method, mend=False).records.values():
            text = record.turns[record.answer_turn]["response"] if record.turns else None
            key = record.benchmark, record.id, record.sample
            answers.append(Answer(*key, record.question, text, record.tokens, record.scores.get(score)))
    return answers


def read_rollouts(run: Path, last_steps: int = 0) -> tuple[list[Answer], list[Answer]]:
    """The plain and the refine-prompt answers of a run's rollouts, as (plain, refined).

    Sample i of one mode is paired with sample i of the other mode for the same question and step: independent draws. A run with
    --plain-policy reference keeps no plain answers of its own: then they are those of the initial policy, which are kept once
    a question, beside the runs.

    Args:
        last_steps: only so many of the newest files; 0: all.

    Raises:
        ValueError: no rollouts, or a line that is none; file, line and key are named.
    """
    answers: dict[str, list[Answer]] = {"plain": [], "refine": []}
    asked: dict[str, tuple[str, str]] = {}
    for file in rollout_files(run)[-last_steps:]:
        seen: Counter = Counter()
        for place, row in read_lines(file):
            try:
                mode, name = row["mode"], f"{file.stem}/{row['id']}"
                asked[name] = row["question"], row["reference"]
                number, seen[mode, name] = seen[mode, name], seen[mode, name] + 1
                answers[mode].append(
                    Answer("rollouts", name, number, row["question"], row["text"], row["tokens"], row["accuracy"])
                )
            except (KeyError, TypeError) as error:
                raise ValueError(f"{place}: not a rollout ({type(error).__name__}: {error})") from error
    return answers["plain"] or _reference_answers(run, asked), answers["refine"]


def _reference_answers(run: Path, asked: dict[str, tuple[str, str]]) -> list[Answer]:
    """The initial policy's plain answers to {id: (question, reference)}; none of a run that compares with its own."""
    rows: dict[str, dict] = {}
    for file in baseline_files(read_json(run / "config.json")):
        rows |= read_baselines(run.parent / "baselines" / file)
    found = []
    for id, (question, reference) in asked.items():
        row = rows.get(question_key(question, reference), {"texts": [], "scores": []})
        answers = enumerate(zip(row["texts"], row["scores"], strict=True))
        found += [Answer("rollouts", id, number, question, text, None, score) for number, (text, score) in answers]
    return found


def rollout_files(run: Path) -> list[Path]:
    """The rollout files of a run, in order of their steps.

    Raises:
        ValueError: there are none.
    """
    files = sorted(f for f in (run / "rollouts").glob("step_*.jsonl") if f.stem.removeprefix("step_").isdecimal())
    if not files:
        raise ValueError(f"no rollouts in {run / 'rollouts'}: give the folder of a training run (runs/NAME)")
    return files


def read_lines(file: Path) -> Iterator[tuple[str, dict]]:
    """Each JSON object of a JSONL file, with the words that say where it stands.

    Raises:
        ValueError: a line is not JSON.
    """
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield f"{file}, line {number}", json.loads(line.decode())
            except (UnicodeDecodeError, json.JSONDecodeError) as error:
                raise ValueError(f"{file}, line {number}: not valid JSON ({error}); mend or remove it") from error
