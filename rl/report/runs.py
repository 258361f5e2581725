"""The content of a run folder, read back. The run may still be writing, or have been killed in the middle of a line."""

import json
from collections import Counter
from dataclasses import dataclass, field
from math import isnan, nan
from pathlib import Path

from data.division import read_trials
from rewards.format import TAG
from rewards.refine import refine_reward
from rl.files import files_by_step


@dataclass
class RunRecord:
    """The content of a run folder.

    Attributes:
        config: every flag; empty if config.json is missing.
        origin: the rest of config.json: git hash and versions.
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
        return is_demo(self.config)

    def column(self, name: str) -> list[float]:
        """Return a metric at every step; not a number where it is missing."""
        return [_number(row.get(name)) for row in self.metrics]

    def evaluated(self, name: str) -> tuple[list[int], list[float]]:
        """Return (steps, values) of a metric, or of the same quantity, in evaluations."""
        name = IN_EVALUATIONS.get(name, name)
        values = {step: _number(metrics.get(name)) for step, metrics in self.evaluations.items()}
        values = {step: value for step, value in values.items() if not isnan(value)}
        return list(values), list(values.values())

    def has(self, name: str) -> bool:
        """Return whether a metric has any value."""
        return bool(self.evaluated(name)[1]) or not all(map(isnan, self.column(name)))

    def mended_answers(self) -> list[tuple[dict, dict]]:
        """Return the greedy answers that were wrong before training and are right now, as (before, now)."""
        pairs = zip(self.first_answers.get("greedy/refine", []), self.last_answers.get("greedy/refine", []), strict=False)
        return [(old, new) for old, new in pairs if old["accuracy"] == 0.0 and new["accuracy"] == 1.0]


IN_EVALUATIONS = {  # metric of training steps: the same quantity of held-out questions
    "pasr/refined_accuracy": "greedy/refined_accuracy", "pasr/plain_accuracy": "greedy/plain_accuracy",
    "pasr/p_refine_wrong": "sampled/p_refine_wrong", "pasr/p_refine_right": "sampled/p_refine_right",
    "pasr/refine_frac": "sampled/refine_rate", "pasr/wellformed": "sampled/wellformed",
    "completions/mean_length": "sampled/tokens",
}  # fmt: skip


def is_demo(config: dict) -> bool:
    """Return whether the run trained on the embedded task, in which every intermediate result can be checked."""
    return bool(config) and config.get("model") is None


def load_run(path: Path | str) -> RunRecord:
    """Read a run folder.

    Raises:
        ValueError: the folder is no run folder.
    """
    path = Path(path)
    if not (path / "config.json").exists() and not (path / "metrics.jsonl").exists():
        raise ValueError(f"{path} is no run folder: it has neither config.json nor metrics.jsonl")

    # flags, versions, summary and the metrics of each step, of which the last line counts
    run = RunRecord(path, path.resolve().name)
    run.origin = _read_json(path / "config.json")
    run.config = _dict_in(run.origin, "config")
    run.summary = _read_json(path / "summary.json")
    rows, run.unreadable = readable_lines(path / "metrics.jsonl")
    by_step = {row["step"]: row for row in rows if isinstance(row.get("step"), int)}
    run.metrics = [by_step[step] for step in sorted(by_step)]

    # evaluations, in files of their own and among the metrics
    for step, file in files_by_step(path / "eval", ".json").items():
        if content := _read_json(file):
            run.evaluations[step], run.last_answers = _dict_in(content, "metrics"), _dict_in(content, "answers")
            run.first_answers = run.first_answers or run.last_answers
    if len(run.evaluations) < 2:
        run.first_answers = run.last_answers = {}
    for row in run.metrics:
        if names := [name for name in row if name.startswith("eval/")]:
            run.evaluations.setdefault(row["step"], {}).update({name: row.pop(name) for name in names})
    return run


def readable_lines(file: Path) -> tuple[list[dict], int]:
    """Read the JSON objects of a JSONL file, and count the lines that are none. A missing file has no lines."""
    lines = [line for line in _read_text(file).split("\n") if line.strip()]
    rows = [row for row in map(_parse, lines) if row is not None]
    return rows, len(lines) - len(rows)


def _read_json(file: Path) -> dict:
    return _parse(_read_text(file)) or {}


def _read_text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""


def _dict_in(content: dict, name: str) -> dict:
    return content[name] if isinstance(content.get(name), dict) else {}


def _parse(text: str) -> dict | None:
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        return None  # cut off while it was written: callers count it or go without
    return content if isinstance(content, dict) else None


def _number(value) -> float:
    return float(value) if isinstance(value, int | float) else nan


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


def outcome_of(record: dict, config: dict) -> str:
    """Return what the refinements of a refine-prompt response changed: one of OUTCOMES, which docs/metrics.md explains.

    On the embedded task every trial can be checked. On other tasks the answer without the refinement is not known: the score is
    compared with the plain answers to the same question, as in Eq. 6, whatever --refine-reward pays.
    """
    if record.get("format") == -1.0:
        return "malformed"
    if not record.get("refinements"):
        return "not refined"
    accuracy, baseline = record.get("accuracy"), record.get("baseline")
    if accuracy is None:
        return "not scored"
    if is_demo(config):
        trials = read_trials(record["question"], record["text"])
        change = (accuracy == 1.0) - trials[0].is_right if trials else 0
        return {1: "fixed", 0: "useless", -1: "harmed"}[change]
    if baseline is None:
        return "not scored"
    reward = refine_reward(accuracy, baseline, zeta=config.get("zeta", 0.0), refined=True)
    return {1.0: "fixed", -0.5: "useless", -1.0: "harmed"}[reward]


def sampled_steps(run: RunRecord, max_steps: int = MAX_STEPS) -> list[dict]:
    """Choose responses of at most `max_steps` steps, spread evenly over the run, the first and the last among them.

    Returns:
        For each step {"step", "total": number of responses, "counts": their number by outcome, "shown"}. A response that is
        shown is its line in rollouts/ with "outcome", "copies" (how often the text was drawn for the question), "segments" and
        "trials" (of the embedded task).
    """
    files = files_by_step(run.path / "rollouts", ".jsonl")
    steps = [_sample_step(step, files[step], run.config) for step in spread(list(files), max_steps)]
    return [step for step in steps if step["total"]]


def spread(items: list, count: int) -> list:
    """Return at most `count` of the items at even distances, with both ends."""
    if len(items) <= count:
        return items
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)] if count > 1 else items[-1:]


def _sample_step(step: int, file: Path, config: dict) -> dict:
    lines = [row for row in readable_lines(file)[0] if row.get("mode") == "refine"]
    rows = [row for row in lines if isinstance(row.get("text"), str) and isinstance(row.get("question"), str)]
    for row in rows:
        row["outcome"] = outcome_of(row, config)

    # each text once
    distinct: dict[tuple, dict] = {}
    for row in rows:
        distinct.setdefault((row.get("id"), row["text"]), row | {"copies": 0})["copies"] += 1
    responses = list(distinct.values())

    # those that are shown
    shown = [responses[i] for i in choose([response["outcome"] for response in responses], MAX_RESPONSES)]
    for response in shown:
        response["segments"] = shorten(segments(response["text"]), MAX_CHARACTERS)
        response["trials"] = read_trials(response["question"], response["text"]) if is_demo(config) else ()
    return {"step": step, "total": len(rows), "counts": dict(Counter(row["outcome"] for row in rows)), "shown": shown}


def choose(outcomes: list[str], count: int) -> list[int]:
    """Return the positions of `count` responses, in order. The outcomes take turns, so that rare ones are not missed."""
    queues = [[i for i, outcome in enumerate(outcomes) if outcome == name] for name in OUTCOMES]
    turns = [(turn, position) for queue in queues for turn, position in enumerate(queue)]
    return sorted(position for _, position in sorted(turns)[:count])


def segments(text: str) -> tuple[Segment, ...]:
    """Cut a response at its tags, well formed or not; an unclosed pair runs to the end."""
    pieces, position, inside = [], 0, "text"
    for match in TAG.finditer(text):
        if match.start() > position:
            pieces.append(Segment(inside, text[position : match.start()]))
        closing, name = match.groups()
        pieces.append(Segment("tag", match.group()))
        if name in ("refine", "answer"):
            inside = "text" if closing else name
        position = match.end()
    if position < len(text):
        pieces.append(Segment(inside, text[position:]))
    return tuple(pieces)


def shorten(pieces: tuple[Segment, ...], limit: int) -> tuple[Segment, ...]:
    """Leave out the middle of long pieces, so that about `limit` characters stay, and say how many are missing."""
    total = sum(len(piece.text) for piece in pieces)
    if total <= limit:
        return pieces
    shorter = []
    for kind, text in ((piece.kind, piece.text) for piece in pieces[:MAX_PIECES]):
        half = max(SHORTEST_PIECE, len(text) * limit // total) // 2
        if len(text) > 2 * half:
            text = f"{text[:half]} … [{len(text) - 2 * half:,} characters left out] … {text[-half:]}"
        shorter.append(Segment(kind, text))
    if len(pieces) > MAX_PIECES:
        shorter.append(Segment("text", f" … [{len(pieces) - MAX_PIECES:,} more pieces left out]"))
    return tuple(shorter)
