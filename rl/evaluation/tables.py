"""The table of an evaluation: rows methods, columns benchmarks, average, generated tokens per answer.

`build` makes one JSON-able dictionary of the records of one or several evaluations, `sections` the lines of numbers that
`terminal` and `markdown` show, `csv_text` one line for each cell. Accuracies are in per cent; a dash is a number that does not
exist.
"""

import csv
import io
import json
import textwrap
from functools import cache
from pathlib import Path
from statistics import fmean
from string import ascii_uppercase

from data.benchmarks import BENCHMARKS
from rl.evaluation.methods import METHODS
from rl.evaluation.records import load_settings, read_records
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
        settings, records = load_settings(folder), read_records(folder)
        for name, kind in settings["benchmarks"].items():
            if kinds.setdefault(name, kind) != kind:
                raise ValueError(f"{name} is of kind {kind} in {folder}, and of kind {kinds[name]} elsewhere")
        for method in METHODS.values():
            found = {b: records[b, method.name] for b in settings["benchmarks"] if records.get((b, method.name))}
            cells = {benchmark: summarise(answers, settings["benchmarks"][benchmark]) for benchmark, answers in found.items()}
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


Line = tuple[str, list[float | None]]  # label; a number for each column, average, tokens. No numbers: it heads the next lines


def _line(label: str, shares: list[float | None], average: float | None = None, tokens: float | None = None) -> Line:
    return label, [*map(_percent, shares), _percent(average), tokens]


def _paper_line(label: str, figures: dict[str, float], names: list[str]) -> Line:
    """Return a row of the paper. Its average stands beside ours only where both are over the same ten benchmarks."""
    is_same = {*names, "average"} == figures.keys()
    return label, [*(figures.get(name) for name in names), figures["average"] if is_same else None, None]


def sections(table: dict) -> list[tuple[str, list[Line]]]:
    """Return headings with their lines: one for each way of scoring, then pass@k and maj@k where there are several samples."""
    names, rows, paper, model = list(table["benchmarks"]), table["rows"], table["paper"], table["compare"]
    found = []
    # accuracies, with standard errors and the paper's figures
    for score, heading in SCORES.items():
        lines = []
        for row in rows:
            shares, errors = _values(row, names, score), _values(row, names, f"{score}_se")
            if score == "accuracy" or any(share is not None for share in shares):
                lines.append(_line(row["label"], shares, row["average"][score], row["average"]["tokens"]))
                lines += [_line("  ± s.e.", errors)] if any(error is not None for error in errors) else []
                lines += [_paper_line(f"  {model}", paper[row["method"]], names)] if row["method"] in paper else []
        if lines and paper:
            others = [name for name in paper if name not in {row["method"] for row in rows}]
            lines.append((f"{model} in the paper, not run here:", []))
            titles = {name: METHODS[name].title if name in METHODS else name for name in others}
            lines += [_paper_line(titles[name], paper[name], names) for name in others]
        if lines:
            found.append((f"accuracy in %, {heading}", lines))
    # several samples; pass@1 is the accuracy
    passes = [[value or {} for value in _values(row, names, "pass_at")] for row in rows]
    ks = sorted({int(k) for of_row in passes for of_cell in of_row for k in of_cell})
    shares = {f"pass@{k}": [[of_cell.get(str(k)) for of_cell in of_row] for of_row in passes] for k in ks[1:]}
    if ks:
        shares[f"maj@{ks[-1]}"] = [_values(row, names, "majority") for row in rows]
    for name, of_rows in shares.items():
        lines = [_line(row["label"], of_row, _average(of_row)) for row, of_row in zip(rows, of_rows, strict=True)]
        found.append((f"{name} in %, by rule", lines))
    return found


def _texts(numbers: list[float | None]) -> list[str]:
    """Return the numbers of a line as they are shown, the last one (tokens) without decimals."""
    return ["-" if n is None else f"{n:.1f}" for n in numbers[:-1]] + ["-" if n is None else f"{n:.0f}" for n in numbers[-1:]]


def terminal(table: dict) -> str:
    """Return plain text of at most WIDTH columns; more than PER_BLOCK benchmarks go into further blocks."""
    titles, text = [benchmark_title(name)[:6] for name in table["benchmarks"]], []
    for heading, lines in sections(table):
        for start in range(0, len(titles), PER_BLOCK):
            # the columns of a block; average and tokens end the last one
            part = slice(start, start + PER_BLOCK if start + PER_BLOCK < len(titles) else None)
            widths = ([7] * len(titles) + [6, 7])[part]
            head = "".join(f"{title:>{width}}" for title, width in zip([*titles, "avg", "tokens"][part], widths, strict=True))
            text += ["", heading[:WIDTH], " " * 17 + head]
            for label, numbers in lines:
                columns = numbers[: len(titles)]
                if any(n is not None for n in columns) and all(n is None for n in columns[part]):
                    continue  # all its numbers stand in other blocks
                shown = "".join(f"{n:>{width}}" for n, width in zip(_texts(numbers)[part], widths, strict=False))
                text.append(f"{label[:17]:17}{shown}".rstrip() if numbers else label[:WIDTH])
    wrapped = [textwrap.fill(note, WIDTH, subsequent_indent="  ") for note in notes(table)]
    return "\n".join([*text, "", *wrapped]).strip("\n")


def markdown(table: dict) -> str:
    """Return GitHub tables, one for each section, with the notes as a list."""
    titles, text = [*map(benchmark_title, table["benchmarks"]), "avg", "tokens"], []
    for heading, lines in sections(table):
        text += [f"### {heading}", "", f"| | {' | '.join(titles)} |", "|---|" + "---|" * len(titles)]
        text += [f"| {label.strip()} | {' | '.join(_texts(n or [None] * len(titles)))} |" for label, n in lines]
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
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "table.md", markdown(table))
    write_whole(folder / "table.csv", csv_text(table))
    write_whole(folder / "table.json", json.dumps(table, indent=2, ensure_ascii=False) + "\n")
