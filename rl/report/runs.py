"""Reads back what a run has left behind so far. A run may still be writing, or have been killed in the middle of a line."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from data.division import read_trials
from rewards.format import TAG
from rewards.refine import refine_reward


@dataclass
class RunRecord:
    """What the report knows of a run.

    Attributes:
        config: every flag; empty if config.json is missing.
        origin: git hash and versions.
        metrics: one dict a step, by rising step; a missing value is None.
        evaluations: {step: metrics} of eval/, and those named eval/... in metrics.jsonl.
        first_answers, last_answers: answers of the first and the last evaluation, by "decoding/mode"; empty without two.
        summary: of a finished run; else empty.
        unreadable: lines of metrics.jsonl that were left out.
    """

    path: Path
    name: str
    config: dict = field(default_factory=dict)
    origin: dict = field(default_factory=dict)
    metrics: list[dict] = field(default_factory=list)
    evaluations: dict[int, dict] = field(default_factory=dict)
    first_answers: dict[str, list[dict]] = field(default_factory=dict)
    last_answers: dict[str, list[dict]] = field(default_factory=dict)
    summary: dict = field(default_factory=dict)
    unreadable: int = 0

    @property
    def steps(self) -> list[int]:
        return [row["step"] for row in self.metrics]

    @property
    def is_demo(self) -> bool:
        """Whether it trained on the embedded task, in which every intermediate result can be checked."""
        return bool(self.config) and self.config.get("model") is None

    def column(self, name: str) -> list[float]:
        """A metric at every step; not a number where it is missing."""
        return [_number(row.get(name)) for row in self.metrics]

    def evaluated(self, name: str) -> tuple[list[int], list[float]]:
        """(steps, values) of a metric of the evaluations."""
        found = [(step, _number(metrics.get(name))) for step, metrics in self.evaluations.items()]
        known = [(step, value) for step, value in found if value == value]
        return [step for step, _ in known], [value for _, value in known]

    def names(self) -> set[str]:
        """Every metric name that occurs."""
        return {name for row in [*self.metrics, *self.evaluations.values()] for name in row}

    def rollout_files(self) -> dict[int, Path]:
        return _by_step(self.path.glob("rollouts/step_*.jsonl"))


def load_run(path: Path | str) -> RunRecord:
    """Read a run folder.

    Raises:
        ValueError: it is none.
    """
    path = Path(path)
    if not (path / "config.json").exists() and not (path / "metrics.jsonl").exists():
        raise ValueError(f"{path} is no run folder: it has neither config.json nor metrics.jsonl")
    run = RunRecord(path, path.resolve().name)
    written = _read_json(path / "config.json")
    run.config, run.origin = _dict_in(written, "config"), {k: v for k, v in written.items() if k != "config"}
    run.summary = _read_json(path / "summary.json")
    rows, run.unreadable = readable_lines(path / "metrics.jsonl")
    by_step = {row["step"]: row for row in rows if isinstance(row.get("step"), int)}
    run.metrics = [by_step[step] for step in sorted(by_step)]
    _load_evaluations(run)
    return run


def _load_evaluations(run: RunRecord) -> None:
    for step, file in _by_step(run.path.glob("eval/step_*.json")).items():
        content = _read_json(file)
        if not content:
            continue
        run.evaluations[step] = _dict_in(content, "metrics")
        answers = _dict_in(content, "answers")
        run.first_answers = run.first_answers or answers
        run.last_answers = answers
    if len(run.evaluations) < 2:
        run.first_answers = run.last_answers = {}
    for row in run.metrics:
        if benchmarks := {name: value for name, value in row.items() if name.startswith("eval/")}:
            run.evaluations[row["step"]] = run.evaluations.get(row["step"], {}) | benchmarks


def readable_lines(file: Path) -> tuple[list[dict], int]:
    """The JSON objects of a JSONL file, and how many lines are none. A missing file has no lines."""
    if not file.exists():
        return [], 0
    rows, unreadable = [], 0
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        row = _parse(line)
        if isinstance(row, dict):
            rows.append(row)
        elif line.strip():
            unreadable += 1
    return rows, unreadable


def _read_json(file: Path) -> dict:
    content = _parse(file.read_text(encoding="utf-8", errors="replace")) if file.exists() else None
    return content if isinstance(content, dict) else {}


def _dict_in(content: dict, name: str) -> dict:
    return content[name] if isinstance(content.get(name), dict) else {}


def _parse(text: str):
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None  # cut off while it was written: callers count it or go without


def _by_step(files) -> dict[int, Path]:
    numbered = {int(file.stem.removeprefix("step_")): file for file in files if file.stem.removeprefix("step_").isdecimal()}
    return dict(sorted(numbered.items()))


def _number(value) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


MAX_STEPS = 10  # of a run
MAX_RESPONSES = 24  # of a step
MAX_CHARACTERS = 4000  # of a response
MAX_PIECES = 100  # of a response: its tags and what is between them
SHORTEST_PIECE = 40  # characters that stay of a piece whose middle is left out
OUTCOMES = ("fixed", "harmed", "useless", "malformed", "not refined", "not scored")


@dataclass(frozen=True)
class Segment:
    """A piece of a response. kind: "text", "tag", "refine" (inside a refinement) or "answer"."""

    kind: str
    text: str


@dataclass(frozen=True)
class Shown:
    """A response of the report.

    Attributes:
        record: its line in rollouts/.
        outcome: one of OUTCOMES.
        count: how often the same text was drawn for the same question.
        path: the embedded task's trials as (quotient, is right); () for other tasks.
    """

    step: int
    record: dict
    outcome: str
    segments: tuple[Segment, ...]
    count: int = 1
    path: tuple[tuple[int, bool], ...] = ()


@dataclass(frozen=True)
class SampledStep:
    """The responses shown of a step, and how many of each outcome all of its responses have."""

    step: int
    total: int
    counts: dict[str, int]
    shown: list[Shown]


def outcome_of(record: dict, config: dict) -> str:
    """What a refine-prompt response's refinements were good for.

    malformed: Eq. 4 is -1, whatever else it may be.
    not refined: well formed, without a refinement.
    On the embedded task, whose every trial can be checked:
        fixed: the first trial is wrong, the answer right. harmed: the reverse. useless: neither.
    On other tasks nobody knows what the answer would have been without the refinement; it is compared with the plain answers
    to the same question, as in Eq. 6 (whatever --refine-reward pays):
        fixed: its score beats r̄ by more than zeta. harmed: it falls short by more than zeta. useless: it does neither.
    not scored: the judge failed, or there is no r̄ to compare with.
    """
    if record.get("format") == -1.0:
        return "malformed"
    if not record.get("refinements"):
        return "not refined"
    accuracy, baseline = record.get("accuracy"), record.get("baseline")
    if accuracy is None:
        return "not scored"
    if config and config.get("model") is None:
        trials = read_trials(record["question"], record["text"])
        if not trials:
            return "useless"
        change = (accuracy == 1.0) - trials[0].is_right
    elif baseline is None:
        return "not scored"
    else:
        reward = refine_reward(accuracy, baseline, zeta=config.get("zeta", 0.0), refined=True)
        change = {1.0: 1, -0.5: 0, -1.0: -1}[reward]
    return {1: "fixed", 0: "useless", -1: "harmed"}[change]


def sampled_steps(run: RunRecord, max_steps: int = MAX_STEPS) -> list[SampledStep]:
    """Responses of at most `max_steps` steps, spread evenly over the run, the first and the last among them."""
    files = run.rollout_files()
    steps = [_sample_step(step, files[step], run.config) for step in spread(list(files), max_steps)]
    return [step for step in steps if step.total]


def spread(items: list, count: int) -> list:
    """At most `count` of the items at even distances, with both ends."""
    if len(items) <= count:
        return items
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)] if count > 1 else items[-1:]


def _sample_step(step: int, file: Path, config: dict) -> SampledStep:
    rows = [row for row in readable_lines(file)[0] if row.get("mode") == "refine" and isinstance(row.get("text"), str)]
    outcomes = [outcome_of(row, config) for row in rows]
    copies = Counter((row.get("id"), row["text"]) for row in rows)
    first = {(row.get("id"), row["text"]): i for i, row in reversed(list(enumerate(rows)))}
    distinct = sorted(first.values())
    chosen = [distinct[place] for place in choose([outcomes[i] for i in distinct], MAX_RESPONSES)]
    shown = [
        Shown(
            step=step,
            record=rows[i],
            outcome=outcomes[i],
            segments=shorten(segments(rows[i]["text"]), MAX_CHARACTERS),
            count=copies[rows[i].get("id"), rows[i]["text"]],
            path=_trial_path(rows[i], config),
        )
        for i in chosen
    ]
    return SampledStep(step, len(rows), dict(Counter(outcomes)), shown)


def choose(outcomes: list[str], count: int) -> list[int]:
    """Places of `count` responses, in order: the outcomes take turns, so that rare ones are not missed."""
    queues = [[i for i, outcome in enumerate(outcomes) if outcome == name] for name in OUTCOMES]
    turns = [(turn, place) for queue in queues for turn, place in enumerate(queue)]
    return sorted(place for _, place in sorted(turns)[:count])


def _trial_path(record: dict, config: dict) -> tuple[tuple[int, bool], ...]:
    if not config or config.get("model") is not None:
        return ()
    return tuple((trial.quotient, trial.is_right) for trial in read_trials(record["question"], record["text"]))


def segments(text: str) -> tuple[Segment, ...]:
    """A response cut at its tags, well formed or not; an unclosed pair runs to the end."""
    pieces, place, inside = [], 0, "text"
    for match in TAG.finditer(text):
        if match.start() > place:
            pieces.append(Segment(inside, text[place : match.start()]))
        closing, name = match.groups()
        pieces.append(Segment("tag", match.group()))
        if name in ("refine", "answer"):
            inside = "text" if closing else name
        place = match.end()
    if place < len(text):
        pieces.append(Segment(inside, text[place:]))
    return tuple(pieces)


def shorten(pieces: tuple[Segment, ...], limit: int) -> tuple[Segment, ...]:
    """Leave out the middle of long pieces, so that about `limit` characters stay; says how many are missing."""
    if sum(len(piece.text) for piece in pieces) <= limit:
        return pieces
    kept = pieces[:MAX_PIECES]
    longest = limit
    while longest > SHORTEST_PIECE and sum(min(len(piece.text), longest) for piece in kept) > limit:
        longest = longest * 3 // 4
    shorter = [Segment(piece.kind, _without_middle(piece.text, longest)) for piece in kept]
    if len(kept) < len(pieces):
        shorter.append(Segment("text", f" … [{len(pieces) - len(kept):,} more pieces left out]"))
    return tuple(shorter)


def _without_middle(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]} … [{len(text) - 2 * half:,} characters left out] … {text[-half:]}"
