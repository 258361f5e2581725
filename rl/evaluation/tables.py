"""The table of an evaluation: rows methods, columns benchmarks, average, generated tokens per answer.

`build` makes one JSON-able dictionary of the records of one or several evaluations, `sections` the lines of numbers that
`terminal` and `markdown` show, `csv_text` one line for each cell. Accuracies are in per cent; a dash is a number that does not
exist.
"""

import csv
import io
import json
import textwrap
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from string import ascii_uppercase

from data.benchmarks import BENCHMARKS
from rl.evaluation.methods import METHODS
from rl.evaluation.records import load_settings, read_evaluation
from rl.evaluation.scores import SCORES, benchmark_title, summarise
from rl.files import write_whole

WIDTH = 100  # columns of a terminal table
PER_BLOCK = 10  # benchmarks side by side


@cache
def paper_figures() -> dict[str, dict[str, dict[str, float]]]:
    """Read the paper's figures (arXiv 2508.12903): accuracy in per cent, by model, method and benchmark, with their average.

    Its answers were scored by a judge (Qwen2.5-32B-Instruct), greedily drawn, at most 1,500 new tokens. Rows that are a method
    here have its name; the others are the paper's own words.
    """
    content = json.loads(Path(__file__).with_name("paper_figures.json").read_text(encoding="utf-8"))
    columns, models = content["columns"], content["models"]
    return {m: {name: dict(zip(columns, row, strict=True)) for name, row in rows.items()} for m, rows in models.items()}


def paper_model(name: str, model: str) -> str:
    """Return the paper's model to compare with: the one that is named, or for "paper" the one that `model` is a variant of.

    Raises:
        ValueError: no such model, or none that `model` resembles.
    """
    models = paper_figures()
    if name in models:
        return name
    similar = [known for known in models if known.casefold() in model.casefold()]
    if name != "paper" or not similar:
        whose = f"{model!r} is none of the paper's models" if name == "paper" else f"the paper has no figures of {name!r}"
        raise ValueError(f"{whose}; say --compare with one of {', '.join(models)}")
    return max(similar, key=len)


def build(folders: list[Path], compare: str | None = None) -> dict:
    """Compute everything the tables show.

    Args:
        folders: evaluations; with several, their rows stand below each other, A, B, and so on.
        compare: a model of the paper whose figures stand below ours; None: none.

    Returns:
        benchmarks: name -> kind, in the order of the columns. rows: {label, folder, method, cells: benchmark -> cell, average}.
        paper: row label -> ten figures and their average. compare: the paper's model.
    """
    # a row for each evaluation and method
    kinds: dict[str, str] = {}
    rows = []
    for letter, folder in zip(ascii_uppercase, folders, strict=False):
        settings, records = load_settings(folder), read_evaluation(folder)
        for name, kind in settings["benchmarks"].items():
            if kinds.setdefault(name, kind) != kind:
                raise ValueError(f"{name} is of kind {kind} in {folder}, and of kind {kinds[name]} elsewhere")
        for method in METHODS.values():
            cells = {b: summarise(rs, settings["benchmarks"][b]) for (b, m), rs in records.items() if m == method.name and rs}
            if cells:
                label = method.title if len(folders) == 1 else f"{letter} {method.title}"
                rows.append({"label": label, "folder": str(folder), "method": method.name, "cells": cells})
    # averages over the columns
    names = [name for name in BENCHMARKS if name in kinds] + [name for name in kinds if name not in BENCHMARKS]
    for row in rows:
        row["average"] = {score: _average(_values(row, names, score)) for score in (*SCORES, "tokens")}
    return {
        "benchmarks": {name: kinds[name] for name in names}, "rows": rows,
        "paper": paper_figures()[compare] if compare else {}, "compare": compare,
        "settings": {str(folder): load_settings(folder) for folder in folders},
    }  # fmt: skip


def _values(row: dict, names: list[str], key: str) -> list[float | None]:
    """Return one number of each cell of a row."""
    return [row["cells"].get(name, {}).get(key) for name in names]


def _average(values: list[float | None]) -> float | None:
    """Return the mean over columns; None of a row with a hole."""
    return fmean(values) if values and None not in values else None


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _shown(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


@dataclass(frozen=True)
class Line:
    """One row of numbers under a heading; average and tokens may be absent. Without values it heads the rows below it."""

    label: str
    values: list[float | None]
    average: float | None = None
    tokens: float | None = None

    @classmethod
    def of_shares(cls, label: str, shares: list[float | None]) -> "Line":
        return cls(label, [_percent(share) for share in shares], _percent(_average(shares)))

    @classmethod
    def of_paper(cls, label: str, figures: dict[str, float], names: list[str]) -> "Line":
        """Return a row of the paper. Its average stands beside ours only where both are over the same ten benchmarks."""
        is_same = {*names, "average"} == figures.keys()
        return cls(label, [figures.get(name) for name in names], figures["average"] if is_same else None)

    def texts(self, columns: slice = slice(None)) -> list[str]:
        """Return the numbers of some columns, the average and the tokens, as they are shown."""
        return [*map(_shown, self.values[columns]), _shown(self.average), _shown(self.tokens, 0)]


def sections(table: dict) -> list[tuple[str, list[Line]]]:
    """Return headings with their lines: one for each way of scoring, then pass@k and maj@k where there are several samples."""
    names, rows, paper, model = list(table["benchmarks"]), table["rows"], table["paper"], table["compare"]
    found = []
    # accuracies, with standard errors and the paper's figures
    for score, heading in SCORES.items():
        lines = []
        for row in rows:
            values = [_percent(value) for value in _values(row, names, score)]
            if score != "accuracy" and not any(value is not None for value in values):
                continue
            lines.append(Line(row["label"], values, _percent(row["average"][score]), row["average"]["tokens"]))
            errors = [_percent(error) for error in _values(row, names, f"{score}_se")]
            if any(error is not None for error in errors):
                lines.append(Line("  ± s.e.", errors))
            if row["method"] in paper:
                lines.append(Line.of_paper(f"  {model}", paper[row["method"]], names))
        if lines and paper:
            others = {name: figures for name, figures in paper.items() if name not in {row["method"] for row in rows}}
            lines.append(Line(f"{model} in the paper, not run here:", []))
            titles = {name: METHODS[name].title if name in METHODS else name for name in others}
            lines += [Line.of_paper(titles[name], figures, names) for name, figures in others.items()]
        if lines:
            found.append((f"accuracy in %, {heading}", lines))
    # several samples; pass@1 is the accuracy
    passes = [[value or {} for value in _values(row, names, "pass_at")] for row in rows]
    ks = sorted({int(k) for of_row in passes for of_cell in of_row for k in of_cell})
    for k in ks[1:]:
        shares = [[of_cell.get(str(k)) for of_cell in of_row] for of_row in passes]
        lines = [Line.of_shares(row["label"], of_row) for row, of_row in zip(rows, shares, strict=True)]
        found.append((f"pass@{k} in %, by rule", lines))
    if ks:
        lines = [Line.of_shares(row["label"], _values(row, names, "majority")) for row in rows]
        found.append((f"maj@{ks[-1]} in %, by rule", lines))
    return found


def terminal(table: dict) -> str:
    """Return plain text of at most WIDTH columns; more than PER_BLOCK benchmarks go into further blocks."""
    titles, text = [benchmark_title(name)[:6] for name in table["benchmarks"]], []
    for heading, lines in sections(table):
        for start in range(0, len(titles), PER_BLOCK):
            part, is_last = slice(start, start + PER_BLOCK), start + PER_BLOCK >= len(titles)
            widths = [7] * len(titles[part]) + ([6, 7] if is_last else [])  # zip below drops average and tokens before the last
            columns = zip([*titles[part], "avg", "tokens"], widths, strict=False)
            text += ["", heading[:WIDTH], " " * 17 + "".join(f"{title:>{width}}" for title, width in columns)]
            for line in lines:
                here = [value is not None for value in line.values[part]]
                if any(value is not None for value in line.values) and not any(here):
                    continue  # all its numbers stand in other blocks
                numbers = "".join(f"{number:>{width}}" for number, width in zip(line.texts(part), widths, strict=False))
                text.append(f"{line.label[:17]:17}{numbers}".rstrip() if line.values else line.label[:WIDTH])
    wrapped = [textwrap.fill(note, WIDTH, subsequent_indent="  ") for note in notes(table)]
    return "\n".join([*text, "", *wrapped]).strip("\n")


def markdown(table: dict) -> str:
    """Return GitHub tables, one for each section, with the notes as a list."""
    titles, text = [benchmark_title(name) for name in table["benchmarks"]], []
    for heading, lines in sections(table):
        text += [f"### {heading}", "", f"| | {' | '.join(titles)} | avg | tokens |", "|---|" + "---|" * (len(titles) + 2)]
        for line in lines:
            numbers = line.texts() if line.values else ["-"] * (len(titles) + 2)
            text.append(f"| {line.label.strip()} | {' | '.join(numbers)} |")
        text.append("")
    return "\n".join([*text, *(f"- {note}" for note in notes(table))]) + "\n"


def csv_text(table: dict) -> str:
    """Return one line for each cell, with all its numbers (shares, not per cent)."""
    rows = []
    for row in table["rows"]:
        for name, cell in row["cells"].items():
            numbers = {key: value for key, value in cell.items() if key != "pass_at"}
            passes = {f"pass@{k}": value for k, value in (cell.get("pass_at") or {}).items()}
            rows.append({"folder": row["folder"], "method": row["method"], "benchmark": name} | numbers | passes)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


NOTES = (  # a number of a cell that is mentioned where it is above 0 (exact: where there is one), its text and its format
    ("unreadable", "questions that could not be asked (score 0; all of them: no number)", "{:.0f} of {questions}"),
    ("truncated", "answers cut off at --max-new-tokens", "{:.0%}"),
    ("no_answer", "answers in which the rule finds none", "{:.0%}"),
    ("review_missing", "answers whose review could not be asked (too long, or unreadable)", "{:.0%}"),
    ("other_rules", "answers scored by other rules than today's (evaluate again)", "{:.0f}"),
    ("judge_failed", "answers without a judge's score, left out of its mean", "{:.0f}"),
    ("exact", "scored by F1; exact match", "{:.1%}"),
)


def notes(table: dict) -> list[str]:
    """Return what a reader has to know: how answers were drawn and scored, and what is odd about them."""
    # how each evaluation was drawn
    found = ["tokens: generated per answer, all turns; mean over the benchmarks. -: no number. s.e.: over questions"]
    for letter, (folder, settings) in zip(ascii_uppercase, table["settings"].items(), strict=False):
        drawn = f"T = {settings['temperature']:g}, {settings['samples']} samples" if settings["temperature"] else "greedy"
        paper = ", second turns at the paper's temperatures" if settings["paper_decoding"] else ""
        limit = f", at most {settings['limit']} questions each (seed {settings['seed']})" if settings["limit"] else ""
        who = f"{letter}: {folder}, {settings['model']}" if len(table["settings"]) > 1 else settings["model"]
        found.append(f"{who}: {drawn}{paper}, at most {settings['max_new_tokens']} new tokens{limit}")
    # what is odd about each row
    for row in table["rows"]:
        cells = {benchmark_title(name): cell for name, cell in row["cells"].items()}
        for key, text, form in NOTES:
            least = -1 if key == "exact" else 0
            shown = [
                f"{title} {form.format(cell[key], **cell)}" for title, cell in cells.items()
                if cell[key] is not None and cell[key] > least and not (key == "judge_failed" and cell["judge"] is None)
            ]  # fmt: skip
            found += [f"{row['label']}: {text}: {', '.join(shown)}"] if shown else []
            reasons = sorted({cell["unreadable_reason"] for cell in cells.values() if cell["unreadable"]})
            if key == "unreadable" and reasons:
                found.append(f"{row['label']}: why they could not: {'; '.join(reasons)}")
    if table["paper"]:
        found.append(f"{table['compare']}: the paper's figures, judged by Qwen2.5-32B-Instruct, on all questions")
    return found


def save(table: dict, folder: Path) -> None:
    """Write table.md, table.csv and table.json."""
    write_whole(folder / "table.md", markdown(table))
    write_whole(folder / "table.csv", csv_text(table))
    write_whole(folder / "table.json", json.dumps(table, indent=2, ensure_ascii=False) + "\n")
