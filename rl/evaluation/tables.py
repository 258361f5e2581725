"""The tables of evaluations: rows methods, columns benchmarks, average, generated tokens per answer.

`build` makes one JSON-able dictionary of the records of one or several evaluations; `markdown` shows it, on a terminal as well,
and `csv_text` writes one line for each cell. Accuracies are in per cent; a dash is a number that does not exist.
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
from rl.evaluation.scores import LEVEL, RESAMPLES, SCORES, in_order, summarise
from rl.files import write_whole

WIDTH = 100  # columns of a terminal


def text_table(head: list[str], rows: list[list[str]], width: int = WIDTH) -> str:
    """Return a Markdown table with columns of equal width, so that it reads well on a terminal, too.

    Columns beyond `width` go into further tables with the same first column. There a row of dashes is left out.
    """
    widths = [max(map(len, column)) + 1 for column in zip(head, *rows, strict=True)]
    blocks, room = [], 0
    for i, needed in enumerate(widths[1:], start=1):
        if needed + 1 > room:
            blocks.append([0])
            room = width - widths[0] - 2
        blocks[-1].append(i)
        room -= needed + 1
    tables = []
    for block in blocks:
        shown = [row for row in rows if len(blocks) == 1 or any(row[i].strip("-") for i in block[1:])]
        lines = [[f"{row[0]:<{widths[0]}}", *(f"{row[i]:>{widths[i]}}" for i in block[1:])] for row in [head, *shown]]
        lines.insert(1, ["-" * widths[0], *("-" * (widths[i] - 1) + ":" for i in block[1:])])
        tables.append("\n".join(f"|{'|'.join(line)}|" for line in lines))
    return "\n\n".join(tables)


@cache
def paper_figures() -> dict[str, dict[str, dict[str, float]]]:
    """Read the paper's figures (arXiv 2508.12903): accuracy in per cent, by model, method and benchmark, with their average.

    Its answers were scored by a judge (Qwen2.5-32B-Instruct), greedily drawn, at most 1,500 new tokens. Rows that are a method
    here have its name; the others are the paper's own words.
    """
    content = json.loads(Path(__file__).with_name("paper_figures.json").read_text(encoding="utf-8"))
    columns, models = content["columns"], content["models"]
    return {m: {name: dict(zip(columns, row, strict=True)) for name, row in rows.items()} for m, rows in models.items()}


def paper_model(name: str, models: list[str]) -> str:
    """Return the paper's model to compare with: the one that is named, or for "paper" the one that `models` are variants of.

    Raises:
        ValueError: no such model, or none that `models` resemble.
    """
    known = paper_figures()
    if name in known:
        return name
    similar = [paper for paper in known for model in models if paper.casefold() in model.casefold()]
    if name != "paper" or not similar:
        of_ours = f"none of the paper's models is called like {' or '.join(models)}"
        whose = of_ours if name == "paper" else f"the paper has no figures of {name!r}"
        raise ValueError(f"{whose}; say --compare with one of {', '.join(known)}")
    return max(similar, key=len)


def build(folders: list[Path], compare: str | None = None) -> dict:
    """Compute everything the tables show.

    Args:
        folders: evaluations; with several, their rows stand below each other, A, B, and so on.
        compare: "paper", or a model of the paper, whose figures stand below ours; None: none.

    Returns:
        benchmarks: name -> kind, in the order of the columns. rows: {label, folder, method, cells: benchmark -> cell, average}.
        paper: row label -> ten figures and their average. compare: the paper's model.
    """
    # a row for each evaluation and method
    settings = {str(folder): load_settings(folder) for folder in folders}
    kinds: dict[str, str] = {}
    rows = []
    for number, folder in enumerate(folders):
        records, of_folder = read_records(folder), settings[str(folder)]["benchmarks"]
        for name, kind in of_folder.items():
            if kinds.setdefault(name, kind) != kind:
                raise ValueError(f"{name} is of kind {kind} in {folder}, and of kind {kinds[name]} elsewhere")
        for method, answers in records.items():
            label = METHODS[method].title if len(folders) == 1 else f"{letter(number)} {METHODS[method].title}"
            if cells := {name: summarise(answers[name], kind) for name, kind in of_folder.items() if answers.get(name)}:
                rows.append({"label": label, "folder": str(folder), "method": method, "cells": cells})
    # averages over the columns
    names = in_order(kinds)
    for row in rows:
        row["average"] = {key: _average(_values(row, names, key)) for key in (*SCORES, *of_samples(rows), "tokens")}
    model = paper_model(compare, [one["model"] for one in settings.values()]) if compare else None
    return {
        "benchmarks": {name: kinds[name] for name in names}, "rows": rows,
        "paper": paper_figures()[model] if model else {}, "compare": model, "settings": settings,
    }  # fmt: skip


def letter(number: int) -> str:
    """Return A, B, ... Z, AA, AB, ... for 0, 1, ..."""
    return (letter(number // 26 - 1) if number >= 26 else "") + ascii_uppercase[number % 26]


def benchmark_title(name: str) -> str:
    """Return the title of a benchmark; a file of your own has its name for one."""
    return BENCHMARKS[name].title if name in BENCHMARKS else name


def of_samples(rows: list[dict]) -> list[str]:
    """Return the names of the numbers that only several samples have: pass@k and maj@k."""
    return list(dict.fromkeys(key for row in rows for cell in row["cells"].values() for key in cell if "@" in key))


def _values(row: dict, names: list[str], key: str) -> list[float | None]:
    """Return one number of each cell of a row."""
    return [row["cells"].get(name, {}).get(key) for name in names]


def _average(values: list[float | None]) -> float | None:
    """Return the mean over columns; None of a row with a hole."""
    return fmean(values) if values and None not in values else None


def _line(label: str, numbers: list[float | None], tokens: float | None = None, scale: float = 100.0) -> list[str]:
    """Return a row as it is shown: shares in per cent, tokens without decimals."""
    shown = ["-" if number is None else f"{scale * number:.1f}" for number in numbers]
    return [label, *shown, "-" if tokens is None else f"{tokens:.0f}"]


def sections(table: dict) -> dict[str, list[list[str]]]:
    """Return rows by heading: for each way of scoring, pass@k and maj@k of several samples, and the paper's other methods."""
    names, rows, paper, model = list(table["benchmarks"]), table["rows"], table["paper"], table["compare"]
    found: dict[str, list[list[str]]] = {}

    def of_paper(label: str, figures: dict[str, float]) -> list[str]:
        # the paper's average stands beside ours only where both are over the same ten benchmarks
        average = figures["average"] if {*names, "average"} == figures.keys() else None
        return _line(label, [*(figures.get(name) for name in names), average], scale=1.0)

    # accuracies, with standard errors and the paper's figures
    for score, heading in (SCORES | {key: "by rule" for key in of_samples(rows)}).items():
        lines = []
        for row in rows:
            shares, errors = _values(row, names, score), _values(row, names, f"{score}_se")
            if score == "accuracy" or any(share is not None for share in shares):
                lines.append(_line(row["label"], [*shares, row["average"][score]], row["average"]["tokens"]))
                lines += [_line("  ± s.e.", [*errors, None])] if any(error is not None for error in errors) else []
                lines += [of_paper(f"  {model}", paper[row["method"]])] if score in SCORES and row["method"] in paper else []
        if lines:
            found[f"{'accuracy' if score in SCORES else score} in %, {heading}"] = lines
    if others := [name for name in paper if name not in {row["method"] for row in rows}]:
        titles = {name: METHODS[name].title if name in METHODS else name for name in others}
        found[f"accuracy in %, {model} in the paper, not run here"] = [of_paper(titles[n], paper[n]) for n in others]
    return found


def markdown(table: dict) -> str:
    """Return a table for each section, with the notes as a list, in at most WIDTH columns."""
    head = ["", *map(benchmark_title, table["benchmarks"]), "avg", "tokens"]
    parts = [f"### {heading}\n\n{text_table(head, lines)}" for heading, lines in sections(table).items()]
    wrapped = [textwrap.fill(f"- {note}", WIDTH, subsequent_indent="  ", break_long_words=False) for note in notes(table)]
    return "\n\n".join([*parts, "\n".join(wrapped)]) + "\n"


def csv_text(table: dict) -> str:
    """Return one line for each cell, with all its numbers (shares, not per cent)."""
    rows = []
    for row in table["rows"]:
        for name, cell in row["cells"].items():
            rows.append({"folder": row["folder"], "method": row["method"], "benchmark": name} | cell)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


NOTES = (  # a number of a cell that is mentioned where it is above 0 (exact: where there is one), its text and its format
    ("unreadable", "questions that could not be asked (score 0; all of them: no number)",
     "{:.0f} of {questions} ({unreadable_reason})"),
    ("truncated", "answers cut off at --max-new-tokens", "{:.0%}"),
    ("no_answer", "answers in which the rule finds none", "{:.0%}"),
    ("review_missing", "answers whose review could not be asked (too long, or unreadable)", "{:.0%}"),
    ("other_rules", "answers scored by other rules than today's (evaluate again)", "{:.0f}"),
    ("judge_failed", "answers without a judge's score, left out of its mean", "{:.0f}"),
    ("exact", "scored by F1; exact match", "{:.1%}"),
)  # fmt: skip


def notes(table: dict) -> list[str]:
    """Return what a reader has to know: how answers were drawn and scored, and what is odd about them."""
    # how each evaluation was drawn
    found = ["tokens: generated per answer, all turns; mean over the benchmarks. -: no number. s.e.: over questions"]
    for number, (folder, settings) in enumerate(table["settings"].items()):
        drawn = f"T = {settings['temperature']:g}, {settings['samples']} samples" if settings["temperature"] else "greedy"
        paper = ", second turns at the paper's temperatures" if settings["paper_decoding"] else ""
        limit = f", at most {settings['limit']} questions each (seed {settings['seed']})" if settings["limit"] else ""
        who = f"{letter(number)}: {folder}, {settings['model']}" if len(table["settings"]) > 1 else settings["model"]
        found.append(f"{who}: {drawn}{paper}, at most {settings['max_new_tokens']} new tokens{limit}")
    # what is odd about each row
    for row in table["rows"]:
        cells = {benchmark_title(name): cell for name, cell in row["cells"].items()}
        for key, text, form in NOTES:
            shown = [
                f"{title} {form.format(cell[key], **cell)}" for title, cell in cells.items()
                if cell[key] is not None and (cell[key] > 0 or key == "exact")
            ]  # fmt: skip
            found += [f"{row['label']}: {text}: {', '.join(shown)}"] if shown else []
    if table["paper"]:
        found.append(f"{table['compare']}: the paper's figures, judged by Qwen2.5-32B-Instruct, on all questions")
    return found


def difference_table(found: dict) -> str:
    """Return what `differences` found as one table, accuracies in points."""
    rows = []
    for entry in found["differences"]:
        scale, numbers = 1 if entry["score"] == "tokens" else 100, ["-", "no common question"]
        if entry["difference"] is not None:
            difference, low, high = (scale * entry[key] for key in ("difference", "low", "high"))
            numbers = [f"{difference:+.1f}", f"[{low:+.1f}, {high:+.1f}]{' *' if low > 0 or high < 0 else '  '}"]
        what = [f"{entry['method']}: {SCORES.get(entry['score'], entry['score'])}", benchmark_title(entry["benchmark"])]
        rows.append([*what, str(entry["questions"]), *numbers])
    table = text_table(["", "benchmark", "questions", "B - A", f"{LEVEL:.0%} interval  "], rows)
    text = [f"A: {found['a']}", f"B: {found['b']}", "", table, "", "*: the interval does not contain 0"]
    text += [f"accuracy in points, tokens per answer; intervals of {RESAMPLES:,} bootstrap samples of common questions"]
    mixed = "note: not all were scored by the same rules; the command that made an evaluation also scores its answers anew"
    return "\n".join([*text, *([mixed] if found["mixed_rules"] else [])])


def save(table: dict, folder: Path) -> str:
    """Write table.md, table.csv and table.json, and return the first of them."""
    text = markdown(table)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "table.md", text)
    write_whole(folder / "table.csv", csv_text(table))
    write_whole(folder / "table.json", json.dumps(table, indent=2, ensure_ascii=False) + "\n")
    return text
