"""Answers that were written down, read back: the records of an evaluation, or the rollouts of a training run."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from model.checkpoint import read_json
from rl.baselines import baseline_files, question_key, read_baselines
from rl.evaluation.answer_records import RecordFile

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
