"""Numbers of an evaluation: pass@k and votes against counting, intervals against known cases, and what the tables show."""

import csv
import io
import itertools
import json
import math

import pytest
from evaluation import record, unreadable, write_evaluation

from data.benchmarks import BENCHMARKS
from rl.evaluation import tables
from rl.evaluation.methods import METHODS
from rl.evaluation.scores import (
    differences,
    majority_score,
    pair_up,
    paired_difference,
    pass_at_k,
    standard_error,
    summarise,
)


@pytest.mark.parametrize(("n", "c"), [(1, 0), (1, 1), (4, 1), (5, 2), (6, 6), (6, 3)])
def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_one(n, c):
    """Bug guarded: 1 - (1 - c/n)^k, which is biased. Counted over all draws of k answers out of n."""
    right = [True] * c + [False] * (n - c)
    for k in range(1, n + 1):
        draws = list(itertools.combinations(right, k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-12)


def test_majority_vote():
    """Bug guarded: votes for "no answer", ties that depend on hashing, a vote counted by spelling."""
    assert majority_score(["5", "6", "5.0"], [1.0, 0.0, 1.0], lambda a: str(float(a))) == 1.0
    assert majority_score([None, None, "6"], [0.0, 0.0, 1.0], str) == 1.0
    assert majority_score(["5", "6"], [0.0, 1.0], str) == 0.0
    assert majority_score([None], [0.0], str) == 0.0


def test_a_cell():
    """Bug guarded: samples of one question taken for independent ones; more draws asked for than a question has so far."""
    records = [record("a", 1.0, 0), record("a", 0.0, 1, answer="6"), record("b", 0.0, 0, tokens=30), record("b", 0.0, 1)]
    cell = summarise(records, "number")
    wanted = {"accuracy": 0.25, "accuracy_se": 0.25, "pass@2": 0.5, "maj@2": 0.5, "tokens": 15, "questions": 2, "samples": 2}
    assert {name: cell[name] for name in wanted} == pytest.approx(wanted)  # questions .5 and 0: sd .3536, over sqrt 2
    assert "pass@2" not in summarise(records[:3], "number"), "a sample of b is still missing"
    values = [0.0, 0.5, 1.0, 1.0]
    assert standard_error(values) == pytest.approx(math.sqrt(sum((v - 0.625) ** 2 for v in values) / 3 / 4))
    assert standard_error([1.0]) is None


def test_passes_of_readings_are_exact():
    """Bug guarded: pass@k that takes a part of the answer for it, or one for a summary's degrees."""
    records = [record("a", 1.0, 0), record("a", 0.9, 1)]
    for exact in (1.0, 0.0):
        for r, value in zip(records, (0.0, exact), strict=True):
            r.scores["exact"] = value
        assert summarise(records, "drop")["pass@2"] == exact
    assert not [key for key in summarise(records, "summary") if "@" in key]


def test_what_is_left_out_of_a_cell():
    """Bug guarded: a failed judge's score that counts as 0; tokens of a question that the model could not be given."""
    cell = summarise([record("a", 1.0, tokens=8, judge=0.0), record("c", 1.0, tokens=8), unreadable("b")], "number")
    assert (cell["accuracy"], cell["tokens"], cell["unreadable"]) == (pytest.approx(2 / 3), 8, 1), "unreadable counts as wrong"
    assert (cell["judge"], cell["judge_failed"]) == (0.0, 2)
    assert cell["other_rules"] == 2, "what was not asked was scored by no rules"
    assert summarise([unreadable("b")], "number")["accuracy"] is None
    assert "wellformed" not in cell
    refined = summarise([record("a", 1.0, method="pasr")], "number")
    assert (refined["wellformed"], refined["refined"], refined["judge_failed"]) == (1.0, 1.0, 0)


def test_paired_differences():
    """Bug guarded: unpaired intervals, a flipped sign, benchmarks weighted by size, another interval each time."""
    same = {str(i): float(i % 2) for i in range(50)}
    assert paired_difference([(same, same)]) == {"difference": 0.0, "low": 0.0, "high": 0.0, "questions": 50}
    better = {id: min(1.0, score + (int(id) % 5 == 0)) for id, score in same.items()}
    found = paired_difference([(same, better)])
    assert found == paired_difference([(same, better)])
    assert found["difference"] == pytest.approx(0.1) == -paired_difference([(better, same)])["difference"]
    assert 0 < found["low"] < 0.1 < found["high"] < 0.25
    found = paired_difference([(same, same), ({"a": 0.0}, {"a": 1.0})])
    assert [found[key] for key in ("difference", "low", "high")] == pytest.approx([0.5] * 3), "benchmarks count alike"
    assert paired_difference([({"a": 1.0}, {"b": 1.0})])["difference"] is None


def test_bootstrap_interval_is_that_of_the_mean():
    """Bug guarded: quantiles of the gaps themselves. For many questions it is mean +- 1.96 standard errors."""
    zeros = {str(i): 0.0 for i in range(400)}
    gaps = {str(i): float(i % 4 == 0) for i in range(400)}
    found, error = paired_difference([(zeros, gaps)]), standard_error(list(gaps.values()))
    assert found["low"] == pytest.approx(0.25 - 1.96 * error, abs=0.004)
    assert found["high"] == pytest.approx(0.25 + 1.96 * error, abs=0.004)


@pytest.fixture
def full(tmp_path):
    """All ten benchmarks, two methods."""
    rows = [record(f"{b}-{i}", float(i < 2), benchmark=b, method=m) for b in BENCHMARKS for m in ("vanilla", "pasr")
            for i in range(4)]  # fmt: skip
    return write_evaluation(tmp_path / "full", rows, model="Qwen/Qwen2.5-7B-Instruct")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_table_with_the_papers_figures(full):
    """Bug guarded: a figure in the wrong column, an average over a part set beside one over ten, lines that wrap."""
    table = tables.build([full], "paper")
    lines = tables.markdown(table).splitlines()
    assert all(len(line) <= 100 for line in lines)
    ours = next(line for line in lines if line.startswith("|PASR "))
    assert cells(ours) == ["PASR", *["50.0"] * 11, "10"]
    figures = tables.paper_figures()["Qwen2.5-7B"]["pasr"].values()
    assert cells(lines[lines.index(ours) + 2]) == ["Qwen2.5-7B", *(f"{x:.1f}" for x in figures), "-"]
    others = lines.index("### accuracy in %, Qwen2.5-7B in the paper, not run here")
    assert cells(lines[others + 5])[:2] == ["Self-Refine+", "89.6"]
    rows = list(csv.DictReader(io.StringIO(tables.csv_text(table))))
    assert len(rows) == 20
    assert rows[0]["accuracy"] == "0.5"
    json.dumps(table)


def test_the_papers_average_is_over_the_same_ten(tmp_path):
    """Bug guarded: the paper's average over ten beside ours over two."""
    two = write_evaluation(tmp_path / "two", [record(f"{b}-0", 1.0, benchmark=b) for b in ("gsm8k", "arc")])
    ours, *theirs = tables.sections(tables.build([two], "Qwen2.5-7B"))["accuracy in %, scored by rule"]
    assert ours[-2] == "100.0"
    assert {line[-2] for line in theirs} == {"-"}


def test_figures_of_the_paper():
    """Bug guarded: a slip of the pen in 19 rows of figures: each average is that of its row, but for rounding."""
    models = tables.paper_figures()
    rows = [(method, list(figures.values())) for rows in models.values() for method, figures in rows.items()]
    assert [len(rows) for rows in models.values()] == [8, 6, 5]
    assert not [row for _, (*row, average) in rows if abs(sum(row) / 10 - average) > 0.0501]
    assert all(method in METHODS or method.startswith("w/o") for method, _ in rows)
    assert models["Qwen3-8B"]["pasr"]["average"] == 69.1
    assert tables.paper_model("paper", ["Qwen/Qwen2.5-14B-Instruct"]) == "Qwen2.5-14B"
    for name, problem in (("paper", "called like llama or runs/a"), ("Qwen9", "no figures of 'Qwen9'")):
        with pytest.raises(ValueError, match=f"{problem}; say --compare with one of"):
            tables.paper_model(name, ["llama", "runs/a"])


def test_reading_leaves_a_running_evaluation_alone(full):
    """Bug guarded: --table that cuts off the line which another process is writing."""
    file = full / "records" / "gsm8k.vanilla.jsonl"
    with file.open("a") as stream:
        stream.write('{"benchmark": "gs')
    before = file.read_bytes()
    assert tables.build([full])["rows"][0]["cells"]["gsm8k"]["questions"] == 4
    assert file.read_bytes() == before


def test_more_benchmarks_than_fit_and_holes(tmp_path):
    """Bug guarded: columns beyond the terminal's; an average over other columns than the row above; a row of dashes."""
    rows = [record(f"b{b}-0", 1.0, benchmark=f"b{b}") for b in range(16)] + [record("b0-0", 1.0, benchmark="b0", method="pasr")]
    table = tables.build([write_evaluation(tmp_path / "e", rows)])
    text = tables.markdown(table)
    assert all(len(line) <= 100 for line in text.splitlines())
    assert all(f" {title}|" in text for title in [*(f"b{b}" for b in range(16)), "tokens"])
    assert table["rows"][1]["average"]["accuracy"] is None
    assert text.count("|vanilla ") == text.count("|PASR ") + 1 == 2


def test_any_number_of_evaluations(tmp_path):
    """Bug guarded: those after the 26th left out without a word, or two with one letter."""
    folders = [write_evaluation(tmp_path / str(n), [record("a", 1.0)]) for n in range(30)]
    table = tables.build(folders)
    assert [row["label"].split()[0] for row in table["rows"]][25:28] == ["Z", "AA", "AB"]
    assert len({row["label"] for row in table["rows"]}) == 30
    assert f"- AD: {folders[29]}" in tables.markdown(table)


def test_differences_of_two_evaluations(tmp_path):
    """Bug guarded: B and A swapped; a change of the rules that passes for a difference, or a warning without one."""
    one = write_evaluation(tmp_path / "one", [*(record(f"gsm8k-{i}", 0.0, tokens=10) for i in range(5)), unreadable("b")])
    two = write_evaluation(tmp_path / "two", [record(f"gsm8k-{i}", 1.0, tokens=14) for i in range(4)])
    found = differences(str(one), str(two))
    kept = [(f["score"], f["difference"], f["questions"]) for f in found["differences"]]
    assert kept == [("accuracy", 1.0, 4), ("tokens", 4.0, 4)]
    text = tables.difference_table(found)
    assert "| +100.0| [+100.0, +100.0] *|" in text
    assert "not all were scored by the same rules" not in text
    other = write_evaluation(tmp_path / "other", [record("gsm8k-0", 0.0, rules="then")])
    text = tables.difference_table(differences(str(two), str(other)))
    assert "| -100.0| [-100.0, -100.0] *|" in text
    assert "not all were scored by the same rules" in text


def test_what_cannot_be_compared_is_said(tmp_path):
    """Bug guarded: answers to different questions paired because their ids are the same."""
    one = write_evaluation(tmp_path / "one", [record("gsm8k-0", 0.0)])
    other = record("gsm8k-0", 0.0)
    other.question = "another"
    two = write_evaluation(tmp_path / "two", [other])
    three = write_evaluation(tmp_path / "three", [record("a", 0.0, method="pasr"), record("a", 0.0, method="self-refine")])
    four = write_evaluation(tmp_path / "four", [record("x", 0.0, benchmark="own")])
    for a, b, problem in (
        (one, two, "gsm8k-0 is another question"), (one, three, "share no method"), (one, four, "share no benchmark"),
        (f"{one}:pasr", three, "no records of 'pasr'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=problem):
            pair_up(str(a), str(b))
    assert pair_up(f"{one}:vanilla", f"{three}:pasr")[0][0] == "vanilla -> PASR"
