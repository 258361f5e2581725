"""Reads back what a run has left behind so far. A run may still be writing, or have been killed in the middle of a line."""

import json
from dataclasses import dataclass, field
from pathlib import Path


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
