"""Answers on disk: the records of an evaluation, its settings, and the rollouts of a run.

OUT/settings.json                        everything an answer depends on; a later evaluation in this folder must agree
OUT/records/BENCHMARK.METHOD.jsonl       one line for each answer, with its turns and scores, appended as answers end
RUN/rollouts/step_000001.jsonl           the responses of a training step (rl/run/folder.py writes them)
"""

import fcntl
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path

from model.checkpoint import read_json
from rl.evaluation.methods import METHODS, Turn
from rl.files import append_line, files_by_step, write_whole
from rl.judging.cache import question_key, read_baselines
from rl.run.console import wrapped

MAY_GROW = ("benchmarks", "data")  # settings that a later evaluation may add to; it may also add a judge


@dataclass
class AnswerRecord:
    """One answer to one question.

    Attributes:
        id, sample: the question within its benchmark, and the number of the answer to it.
        turns: each prompt with the response to it; none if the model could not be given the question.
        answer: what the rule took for the answer; None if it found none.
        answer_turn: index of the turn that the answer comes from: a review that finds nothing wrong leaves the one before.
        tokens: generated in all turns.
        scores: "rule" and "judge", in [0, 1] or None (no judge, or its score failed); for DROP also "exact". Of a rollout:
            "accuracy".
        unreadable: why the model could not be given the question, or "".
        rules: `rules_version` of the rules that scored it.
    """

    benchmark: str
    method: str
    id: str
    sample: int
    question: str
    reference: str
    turns: list[Turn]
    answer: str | None
    answer_turn: int
    tokens: int
    scores: dict[str, float | None] = field(default_factory=dict)
    unreadable: str = ""
    rules: str = ""

    @property
    def response(self) -> str:
        """The response that the answer comes from, tags included; "" if the model could not be given the question."""
        return self.turns[self.answer_turn]["response"] if self.turns else ""

    @classmethod
    def parse(cls, line: bytes) -> "AnswerRecord":
        """Read a line of a record file.

        Raises:
            ValueError, TypeError, AttributeError: it is no record.
        """
        record = cls(**json.loads(line.decode()))
        is_whole = all(turn.keys() == Turn.__annotations__.keys() for turn in record.turns)
        if not isinstance(record.scores, dict) or not isinstance(record.turns, list) or not is_whole:
            raise TypeError("scores or turns are malformed")
        return record

    @property
    def key(self) -> tuple[str, str, int]:
        """Benchmark, question and sample: a plain and a refined answer with the same key are a pair."""
        return self.benchmark, self.id, self.sample


class RecordFile:
    """The records of one benchmark and method.

    Args:
        folder: folder of the evaluation.
        mend: take a last line that was cut off out of the file. Only for the process that holds the folder, because another
            one may be writing.

    Raises:
        ValueError: a line that is no record (the last one may be cut off: it is left out).
    """

    def __init__(self, folder: Path, benchmark: str, method: str, *, mend: bool = True) -> None:
        self.path = folder / "records" / f"{benchmark}.{method}.jsonl"
        self.records: dict[tuple[str, int], AnswerRecord] = {}
        content = self.path.read_bytes() if self.path.exists() else b""
        *lines, cut_off = content.split(b"\n")  # bytes, because a line may be cut within a character
        for number, line in enumerate(lines, start=1):
            try:
                record = AnswerRecord.parse(line)
            except (ValueError, TypeError, AttributeError) as error:
                problem = f"{self.path}, line {number} is no record of an answer ({error}); mend or remove it"
                raise ValueError(problem) from error
            self.records[record.id, record.sample] = record
        if cut_off and mend:
            print(f"{self.path}: the last line was cut off; that question is asked again")
            write_whole(self.path, "".join(line.decode() + "\n" for line in lines))

    def append(self, record: AnswerRecord) -> None:
        """Add a line to the file, to which other ranks add theirs."""
        self.records[record.id, record.sample] = record
        append_line(self.path, to_lines([record]).removesuffix("\n"))

    def rewrite(self, order: list[tuple[str, int]]) -> None:
        """Write the whole file again, in the order of these (id, sample).

        Raises:
            ValueError: an answer to a question that is not in `order`.
        """
        if foreign := self.records.keys() - set(order):
            raise ValueError(f"{self.path} has answers to {min(foreign)[0]!r}, which is not asked here; remove its lines")
        self.records = {key: self.records[key] for key in order if key in self.records}
        write_whole(self.path, to_lines(self.records.values()))


def to_lines(records: Iterable[AnswerRecord]) -> str:
    """Return records as JSONL."""
    return "".join(json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records)


class OtherSettingsError(ValueError):
    """A folder holds answers made with other settings."""


class OutputFolder:
    """The folder of one evaluation of one model, locked by this process until it is closed.

    Args:
        path: made if absent.
        settings: everything an answer depends on, JSON. `benchmarks` and `data` are dictionaries by benchmark.

    Raises:
        OtherSettingsError: the folder holds answers made with other settings.
        ValueError: another process has locked it, or it cannot be written.
    """

    def __init__(self, path: Path, settings: dict) -> None:
        self.path = path
        try:
            (path / "records").mkdir(parents=True, exist_ok=True)
            self._lock = (path / ".lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another process is writing to {path}; wait for it, or choose another --out") from error
        except OSError as error:
            raise ValueError(f"cannot write to {path}: {error.strerror}. Choose another --out") from error
        file = path / "settings.json"
        self.settings = _join_settings(load_settings(path), settings, path) if file.exists() else settings
        write_whole(file, json.dumps(self.settings, indent=2, ensure_ascii=False) + "\n")

    def close(self) -> None:
        self._lock.close()


def open_next_to(path: Path, settings: dict) -> OutputFolder:
    """Return the folder `path`, or the first of path-2, path-3, ... that is new or holds answers made with these settings."""
    for number in count(1):
        candidate = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            return OutputFolder(candidate, settings)
        except OtherSettingsError as error:
            print(wrapped(f"{str(error).removesuffix('. Choose another --out')}: taking another folder"))


def load_settings(path: Path) -> dict:
    """Read the settings of a finished or interrupted evaluation.

    Raises:
        ValueError: the folder holds none.
    """
    try:
        settings = read_json(path / "settings.json")
    except ValueError as error:
        raise ValueError(f"{path} holds no evaluation: {error}") from error
    if not all(isinstance(settings.get(name), dict) for name in MAY_GROW):
        raise ValueError(f"{path} holds no evaluation: settings.json names no benchmarks and data")
    return settings


def _join_settings(saved: dict, now: dict, path: Path) -> dict:
    """Return both settings in one, if answers made with either belong together."""
    # what must be the same: everything, of benchmarks and data what both have, and of judges if there are two
    changes = [(k, saved.get(k), v) for k, v in now.items() if k not in (*MAY_GROW, "judge")]
    changes += [(f"{n} of {k}", saved[n][k], v) for n in MAY_GROW for k, v in now[n].items() if k in saved[n]]
    changes += [("judge", saved["judge"], now["judge"])] if saved.get("judge") and now["judge"] else []
    if found := [f"{name} was {old}, is {new}" for name, old, new in changes if old != new]:
        raise OtherSettingsError(f"{path} holds answers made with other settings: {'; '.join(found)}. Choose another --out")
    return now | {n: saved[n] | now[n] for n in MAY_GROW} | {"judge": now["judge"] or saved.get("judge")}


def methods_of(folder: Path) -> list[str]:
    """Return the methods that an evaluation has records of."""
    return sorted({file.stem.rpartition(".")[2] for file in (folder / "records").glob("*.*.jsonl")})


def read_records(folder: Path, method: str | None = None) -> dict[str, dict[str, list[AnswerRecord]]]:
    """Read the records of an evaluation, all or those of one method, by method and benchmark.

    Raises:
        ValueError: there are none, or a line is no record; file and line are named.
    """
    records: dict[str, dict[str, list[AnswerRecord]]] = {}
    for file in sorted((folder / "records").glob(f"*.{method or '*'}.jsonl")):
        benchmark, _, name = file.stem.rpartition(".")
        if name in METHODS:  # a person may keep other files there
            of_file = RecordFile(folder, benchmark, name, mend=False).records
            records.setdefault(name, {})[benchmark] = list(of_file.values())
    if not records:
        of = f" of {method!r}" if method else ""
        raise ValueError(f"{folder / 'records'} has no records{of}; it has {methods_of(folder) or 'none at all'}")
    return {name: records[name] for name in METHODS if name in records}


def read_rollouts(run: Path, last_steps: int = 0) -> tuple[list[AnswerRecord], list[AnswerRecord]]:
    """Read the plain and the refine-prompt answers of a run's rollouts, as (plain, refined).

    Sample i of one mode is paired with sample i of the other mode for the same question and step: independent draws. A run with
    --plain-policy reference keeps no plain answers of its own. Then they are those of the initial policy (method "reference"),
    which are kept once for each question, beside the runs.

    Args:
        last_steps: only so many of the newest files; 0: all.

    Raises:
        ValueError: no rollouts, or a line that is none; file, line and key are named.
    """
    # the answers of the run
    answers: dict[str, list[AnswerRecord]] = {"plain": [], "refine": []}
    for file in rollout_files(run)[-last_steps:]:
        samples: Counter = Counter()
        for where, row in read_lines(file):
            try:
                mode, id = row["mode"], f"{file.stem}/{row['id']}"
                answers[mode].append(_rollout(mode, id, samples[mode, id], **{name: row[name] for name in ROLLOUT}))
                samples[mode, id] += 1
            except (KeyError, TypeError) as error:
                raise ValueError(f"{where}: not a rollout ({type(error).__name__}: {error})") from error
    if answers["plain"]:
        return answers["plain"], answers["refine"]
    # plain answers of the initial policy, if the run compared with it
    rows: dict[str, dict] = {}
    for file in read_json(run / "config.json").get("baselines", []):  # one for each version of the rules it was judged by
        rows |= read_baselines(run.parent / "baselines" / file)
    plain = []
    for id, question, reference in dict.fromkeys((r.id, r.question, r.reference) for r in answers["refine"]):
        row = rows.get(question_key(question, reference), {"texts": [], "scores": []})
        for sample, (text, score) in enumerate(zip(row["texts"], row["scores"], strict=True)):
            plain.append(_rollout("reference", id, sample, question, reference, text, 0, score))
    return plain, answers["refine"]


ROLLOUT = ("question", "reference", "text", "tokens", "accuracy")  # what is read of a line of rollouts/


def _rollout(
    method: str, id: str, sample: int, question: str, reference: str, text: str, tokens: int, accuracy: float | None
) -> AnswerRecord:
    turn = Turn(prompt="", response=text, tokens=tokens, finish_reason="")
    scores = {"accuracy": accuracy}
    return AnswerRecord("rollouts", method, id, sample, question, reference, [turn], None, 0, tokens, scores)


def rollout_files(run: Path) -> list[Path]:
    """Return the rollout files of a run, in order of their steps.

    Raises:
        ValueError: there are none.
    """
    if files := files_by_step(run / "rollouts", ".jsonl"):
        return list(files.values())
    raise ValueError(f"no rollouts in {run / 'rollouts'}: give the folder of a training run (runs/NAME)")


def read_lines(file: Path) -> Iterator[tuple[str, dict]]:
    """Yield each JSON object of a JSONL file, after the words that name its file and line.

    Raises:
        ValueError: a line is not JSON.
    """
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield f"{file}, line {number}", json.loads(line.decode())
            except (UnicodeDecodeError, json.JSONDecodeError) as error:
                raise ValueError(f"{file}, line {number}: not valid JSON ({error}); mend or remove it") from error
