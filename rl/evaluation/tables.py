"""The table of an evaluation: rows methods, columns benchmarks, average, generated tokens per answer.

`build` makes one JSON-able dictionary of the records of one or several evaluations; `terminal`, `markdown` and `csv_text` show
it. Accuracies are in per cent; a dash is a number that does not exist.
"""

import csv
import io
import json
import textwrap
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from string import ascii_uppercase

from data.benchmarks import BENCHMARKS
from rl.evaluation.methods import METHODS
from rl.evaluation.paper_figures import BENCHMARK_ORDER, PAPER
from rl.evaluation.records import AnswerRecord, RecordFile, load_settings
from rl.evaluation.scores import summarise
from rl.files import write_whole

WIDTH = 100  # columns of a terminal table
PER_BLOCK = 10  # benchmarks side by side
SCORES = {"accuracy": "scored by rule", "judge": "scored by the judge"}


@dataclass(frozen=True)
class Line:
    """One row of numbers under a heading; average and tokens may be absent. Without values it heads the rows below it."""

    label: str
    values: list[float | None]
    average: float | None = None
    tokens: float | None = None

    def is_of_other_columns(self, part: slice) -> bool:
        """Whether it has numbers, but none in these columns."""
        known = [value is not None for value in self.values]
        return any(known) and not any(known[part])


def read_folder(folder: Path) -> dict[tuple[str, str], list[AnswerRecord]]:
    """The records of an evaluation by (benchmark, method).

    Raises:
        ValueError: no evaluation there, or a broken file.
    """
    known = load_settings(folder)["benchmarks"]
    found = {}
    for benchmark in known:
        for method in METHODS:
            if (folder / "records" / f"{benchmark}.{method}.jsonl").is_file():
                found[benchmark, method] = list(RecordFile(folder, benchmark, method, mend=False).records.values())
    if not found:
        raise ValueError(f"{folder} holds no records")
    return found


def build(folders: list[Path], compare: str | None = None) -> dict:
    """Everything the tables show.

    Args:
        folders: evaluations; with several, their rows stand below each other, A, B, and so on.
        compare: a model of PAPER whose figures stand below ours; None: none.

    Returns:
        benchmarks: name -> kind, in the order of the columns. rows: {label, folder, method, cells: benchmark -> cell, average}.
        paper: row label -> ten figures and their average. compare: the paper's model.
    """
    kinds: dict[str, str] = {}
    rows = []
    for letter, folder in zip(ascii_uppercase, folders, strict=False):
        settings, records = load_settings(folder), read_folder(folder)
        for name, kind in settings["benchmarks"].items():
            if kinds.setdefault(name, kind) != kind:
                raise ValueError(f"{name} is of kind {kind} in {folder}, and of kind {kinds[name]} elsewhere")
        for method in METHODS.values():
            cells = {b: summarise(rs, settings["benchmarks"][b]) for (b, m), rs in records.items() if m == method.name and rs}
            if cells:
                label = method.title if len(folders) == 1 else f"{letter} {method.title}"
                rows.append({"label": label, "folder": str(folder), "method": method.name, "cells": cells})
    names = [name for name in BENCHMARKS if name in kinds] + [name for name in kinds if name not in BENCHMARKS]
    for row in rows:
        row["average"] = {
            score: _average([row["cells"].get(name, {}).get(score) for name in names]) for score in (*SCORES, "tokens")
        }
    paper = {}
    if compare is not None:
        paper = {label: dict(zip((*BENCHMARK_ORDER, "average"), row, strict=True)) for label, row in PAPER[compare].items()}
    settings = {str(folder): load_settings(folder) for folder in folders}
    return {
        "benchmarks": {n: kinds[n] for n in names}, "rows": rows, "paper": paper, "compare": compare, "settings": settings,
    }  # fmt: skip


def _average(values: list[float | None]) -> float | None:
    """The mean over columns; of a row with a hole there is none."""
    return fmean(values) if values and None not in values else None


def sections(table: dict) -> list[tuple[str, list[Line]]]:
    """Headings with their rows: one for each way of scoring, then pass@k and maj@k where there are several samples."""
    names, found = list(table["benchmarks"]), []
    for score, heading in SCORES.items():
        lines = []
        for row in table["rows"]:
            cells = [row["cells"].get(name, {}) for name in names]
            values = [_percent(cell.get(score)) for cell in cells]
            if all(value is None for value in values) and score != "accuracy":
                continue
            lines.append(Line(row["label"], values, _percent(row["average"][score]), row["average"]["tokens"]))
            errors = [_percent(cell.get(f"{score}_se")) for cell in cells]
            if any(error is not None for error in errors):
                lines.append(Line("  ± s.e.", errors))
            if row["method"] in table["paper"]:
                lines.append(_paper_line(f"  {table['compare']}", table["paper"][row["method"]], names))
        shown = {row["method"] for row in table["rows"]}
        if lines and table["paper"]:
            extra = {label: row for label, row in table["paper"].items() if label not in shown}
            titles = {name: method.title for name, method in METHODS.items()}
            lines.append(Line(f"{table['compare']} in the paper, not run here:", []))
            lines += [_paper_line(titles.get(label, label), row, names) for label, row in extra.items()]
        if lines:
            found.append((f"accuracy in %, {heading}", lines))
    return found + _several_sample_sections(table, names)


def _several_sample_sections(table: dict, names: list[str]) -> list[tuple[str, list[Line]]]:
    ks = sorted({int(k) for row in table["rows"] for cell in row["cells"].values() for k in cell.get("pass_at") or {}})
    found = []
    for k in ks[1:]:  # pass@1 is the accuracy
        values = lambda row, k=k: [(row["cells"].get(n, {}).get("pass_at") or {}).get(str(k)) for n in names]  # noqa: E731
        found.append((f"pass@{k} in %, by rule", [_line(row["label"], values(row)) for row in table["rows"]]))
    if ks:
        lines = [_line(row["label"], [row["cells"].get(n, {}).get("majority") for n in names]) for row in table["rows"]]
        found.append((f"maj@{ks[-1]} in %, by rule", lines))
    return found


def _line(label: str, shares: list[float | None]) -> Line:
    return Line(label, [_percent(share) for share in shares], _percent(_average(shares)))


def _paper_line(label: str, figures: dict[str, float], names: list[str]) -> Line:
    """The paper's average is over its ten benchmarks: it stands beside ours only where these are the same ten."""
    same = set(names) == set(BENCHMARK_ORDER)
    return Line(label, [figures.get(name) for name in names], figures["average"] if same else None)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def title_of(name: str) -> str:
    return BENCHMARKS[name].title if name in BENCHMARKS else name


def terminal(table: dict) -> str:
    """Plain text of at most WIDTH columns; more than PER_BLOCK benchmarks go into further blocks."""
    names = list(table["benchmarks"])
    text = []
    for heading, lines in sections(table):
        for start in range(0, len(names), PER_BLOCK):
            part, last = slice(start, start + PER_BLOCK), start + PER_BLOCK >= len(names)
            head = "".join(f"{title_of(name)[:6]:>7}" for name in names[part]) + (f"{'avg':>6}{'tokens':>7}" if last else "")
            text += ["", f"{heading[:WIDTH]}", " " * 17 + head]
            for line in lines:
                if line.is_of_other_columns(part):
                    continue
                numbers = "".join(f"{_shown(value):>7}" for value in line.values[part])
                numbers += f"{_shown(line.average):>6}{_shown(line.tokens, 0):>7}" if last else ""
                text.append(f"{line.label[:17]:17}{numbers}".rstrip() if line.values else line.label[:WIDTH])
    wrapped = [textwrap.fill(note, WIDTH, subsequent_indent="  ") for note in notes(table)]
    return "\n".join([*text, "", *wrapped]).strip("\n")


def markdown(table: dict) -> str:
    """GitHub tables, one for each section, with the notes as a list."""
    titles, text = [title_of(name) for name in table["benchmarks"]], []
    for heading, lines in sections(table):
        text += [f"### {heading}", "", f"| | {' | '.join(titles)} | avg | tokens |", "|---|" + "---|" * (len(titles) + 2)]
        for line in lines:
            numbers = [_shown(value) for value in line.values or [None] * len(titles)] + [
                _shown(line.average),
                _shown(line.tokens, 0),
            ]
            text.append(f"| {line.label.strip()} | {' | '.join(numbers)} |")
        text.append("")
    return "\n".join([*text, *(f"- {note}" for note in notes(table))]) + "\n"


def csv_text(table: dict) -> str:
    """One line for each cell, with all its numbers (shares, not per cent)."""
    rows = [
        {"folder": row["folder"], "method": row["method"], "benchmark": name} | _flat(cell)
        for row in table["rows"]
        for name, cell in row["cells"].items()
    ]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _flat(cell: dict) -> dict:
    passes = {f"pass@{k}": value for k, value in (cell.get("pass_at") or {}).items()}
    return {key: value for key, value in cell.items() if key != "pass_at"} | passes


def notes(table: dict) -> list[str]:
    """What a reader has to know to read the numbers: how they were drawn and scored, and what is odd about them."""
    found = ["tokens: generated per answer, all turns; mean over the benchmarks. -: no number. s.e.: over questions"]
    several = len(table["settings"]) > 1
    for letter, (folder, settings) in zip(ascii_uppercase, table["settings"].items(), strict=False):
        drawn = f"T = {settings['temperature']:g}, {settings['samples']} samples" if settings["temperature"] else "greedy"
        paper = ", second turns at the paper's temperatures" if settings["paper_decoding"] else ""
        limit = f", at most {settings['limit']} questions each (seed {settings['seed']})" if settings["limit"] else ""
        who = f"{letter}: {folder}, {settings['model']}" if several else settings["model"]
        found.append(f"{who}: {drawn}{paper}, at most {settings['max_new_tokens']} new tokens{limit}")
    for row in table["rows"]:
        cells = {title_of(name): cell for name, cell in row["cells"].items()}
        reasons = sorted({cell["unreadable_reason"] for cell in cells.values() if cell["unreadable"]})
        found += _note(
            row,
            "questions that could not be asked (score 0; all of them: no number)",
            cells,
            "unreadable",
            "{:.0f} of {questions}",
        )
        found += [f"{row['label']}: why they could not: {'; '.join(reasons)}"] if reasons else []
        found += _note(row, "answers cut off at --max-new-tokens", cells, "truncated")
        found += _note(row, "answers in which the rule finds none", cells, "no_answer")
        found += _note(row, "answers whose review could not be asked (too long, or unreadable)", cells, "review_missing")
        found += _note(row, "answers scored by other rules than today's (evaluate again)", cells, "other_rules", "{:.0f}")
        judged = {title: cell for title, cell in cells.items() if cell["judge"] is not None}
        found += _note(row, "answers without a judge's score, left out of its mean", judged, "judge_failed", "{:.0f}")
        found += _note(row, "scored by F1; exact match", cells, "exact", "{:.1%}", least=-1)
    if table["paper"]:
        found.append(f"{table['compare']}: the paper's figures, judged by Qwen2.5-32B-Instruct, on all questions")
    return found


def _note(row: dict, what: str, cells: dict[str, dict], key: str, form: str = "{:.0%}", least: float = 0.0) -> list[str]:
    """A line about the cells of a row in which a number is above `least`; none if there are none."""
    shown = [f"{t} {form.format(c[key], **c)}" for t, c in cells.items() if c[key] is not None and c[key] > least]
    return [f"{row['label']}: {what}: {', '.join(shown)}"] if shown else []


def _shown(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def save(table: dict, folder: Path) -> None:
    """table.md, table.csv and table.json."""
    write_whole(folder / "table.md", markdown(table))
    write_whole(folder / "table.csv", csv_text(table))
    write_whole(folder / "table.json", json.dumps(table, indent=2, ensure_ascii=False) + "\n")
