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
    mixed_rules,
    pair_up,
    paired_difference,
    pass_at_k,
    question_means,
    render_differences,
    standard_error,
    summarise,
)  # fmt: skip


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
    records = [record("a", 1.0, 0), record("a", 0.0, 1, answer="6"), record("b", 0.0, 0, tokens=30), record("b", 0.0, 1)]
    cell = summarise(records, "number")
    assert cell["accuracy"] == 0.25
    assert cell["accuracy_se"] == pytest.approx(0.25)  # questions .5 and 0: sd .3536, over sqrt 2
    assert cell["pass_at"] == {"1": 0.25, "2": 0.5}
    assert cell["majority"] == 0.5
    assert cell["tokens"] == 15
    assert (cell["questions"], cell["samples"]) == (2, 2)


def test_samples_that_are_still_missing():
    """Bug guarded: a table of an evaluation that is under way asks for more draws than a question has."""
    cell = summarise([record("a", 1.0, 0), record("a", 0.0, 1), record("b", 0.0, 0)], "number")
    assert (cell["samples"], cell["pass_at"]) == (2, {"1": 0.25})


def test_passes_of_readings_are_exact():
    """Bug guarded: pass@k that takes a part of the answer for it, or none for a summary's degrees."""
    records = [record("a", 1.0, 0), record("a", 0.9, 1)]
    for r, exact in zip(records, (0.0, 1.0), strict=True):
        r.scores["exact"] = exact
    assert summarise(records, "drop")["pass_at"] == {"1": 0.5, "2": 1.0}
    records[1].scores["exact"] = 0.0
    assert summarise(records, "drop")["pass_at"] == {"1": 0.0, "2": 0.0}
    assert summarise(records, "summary")["pass_at"] is None


def test_standard_error_is_over_questions():
    """Bug guarded: samples of one question taken for independent ones."""
    values = [0.0, 0.5, 1.0, 1.0]
    mean = sum(values) / 4
    assert standard_error(values) == pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in values) / 3 / 4))
    assert standard_error([1.0]) is None


def test_what_is_left_out_of_a_cell():
    """Bug guarded: a failed judge's score that counts as 0; tokens of a question that the model could not be given."""
    cell = summarise([record("a", 1.0, tokens=8, judge=0.0), record("c", 1.0, tokens=8), unreadable("b")], "number")
    assert (cell["accuracy"], cell["tokens"], cell["unreadable"]) == (pytest.approx(2 / 3), 8, 1), "unreadable counts as wrong"
    assert (cell["judge"], cell["judge_failed"]) == (0.0, 2)
    assert cell["other_rules"] == 2, "what was not asked was scored by no rules"
    assert summarise([unreadable("b")], "number")["accuracy"] is None
    assert "wellformed" not in cell
    refined = summarise([record("a", 1.0, method="pasr")], "number")
    assert (refined["wellformed"], refined["refined"]) == (1.0, 1.0)


def test_paired_differences():
    """Bug guarded: unpaired intervals, a flipped sign, benchmarks weighted by size, another interval each time."""
    same = {str(i): float(i % 2) for i in range(50)}
    assert paired_difference([(same, same)]) == {"difference": 0.0, "low": 0.0, "high": 0.0, "questions": 50}
    better = {id: min(1.0, score + (int(id) % 5 == 0)) for id, score in same.items()}
    found = paired_difference([(same, better)])
    assert found["difference"] == pytest.approx(0.1)
    assert 0 < found["low"] < 0.1 < found["high"] < 0.25
    assert found == paired_difference([(same, better)])
    assert paired_difference([(better, same)])["difference"] == pytest.approx(-0.1)
    few = ({"a": 0.0}, {"a": 1.0})
    found = paired_difference([(same, same), few])
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
    return write_evaluation(tmp_path / "full", rows)


def test_table_with_the_papers_figures(full):
    """Bug guarded: a figure in the wrong column, an average over a part set beside one over ten, lines that wrap."""
    table = tables.build([full], "Qwen2.5-7B")
    text = tables.terminal(table)
    lines = text.splitlines()
    assert all(len(line) <= 100 for line in lines)
    ours = next(line for line in lines if line.startswith("PASR "))
    assert ours.split()[1:] == ["50.0"] * 10 + ["50.0", "10"]
    theirs = lines[lines.index(ours) + 2].split()
    assert theirs == ["Qwen2.5-7B", *(f"{x:.1f}" for x in tables.paper_figures()["Qwen2.5-7B"]["pasr"].values()), "-"]
    rest = lines[lines.index("Qwen2.5-7B in the paper, not run here:") + 1 :]
    assert rest[1].split()[:2] == ["Self-Refine+", "89.6"]
    assert "| PASR | 50.0 |" in tables.markdown(table)
    rows = list(csv.DictReader(io.StringIO(tables.csv_text(table))))
    assert len(rows) == 20
    assert rows[0]["accuracy"] == "0.5"
    json.dumps(table)


def test_the_papers_average_is_over_the_same_ten(tmp_path):
    """Bug guarded: the paper's average over ten beside ours over two."""
    two = write_evaluation(tmp_path / "two", [record(f"{b}-0", 1.0, benchmark=b) for b in ("gsm8k", "arc")])
    lines = dict(tables.sections(tables.build([two], "Qwen2.5-7B")))["accuracy in %, scored by rule"]
    assert lines[0][1][-2] == 100.0
    assert {numbers[-2] for _, numbers in lines[1:] if numbers} == {None}


def test_figures_of_the_paper():
    """Bug guarded: a slip of the pen in 19 rows of figures: each average is that of its row, but for rounding."""
    models = tables.paper_figures()
    rows = [(method, list(figures.values())) for rows in models.values() for method, figures in rows.items()]
    assert [len(rows) for rows in models.values()] == [8, 6, 5]
    assert not [row for _, (*row, average) in rows if abs(sum(row) / 10 - average) > 0.0501]
    assert all(method in METHODS or method.startswith("w/o") for method, _ in rows)
    assert models["Qwen3-8B"]["pasr"]["average"] == 69.1
    assert tables.paper_model("paper", "Qwen/Qwen2.5-14B-Instruct") == "Qwen2.5-14B"
    for name, model in (("paper", "llama"), ("Qwen9", "Qwen3-8B")):
        with pytest.raises(ValueError, match="say --compare with one of"):
            tables.paper_model(name, model)


def test_reading_leaves_a_running_evaluation_alone(full):
    """Bug guarded: --table that cuts off the line which another process is writing."""
    file = full / "records" / "gsm8k.vanilla.jsonl"
    with file.open("a") as stream:
        stream.write('{"benchmark": "gs')
    before = file.read_bytes()
    assert tables.build([full])["rows"][0]["cells"]["gsm8k"]["questions"] == 4
    assert file.read_bytes() == before


def test_more_than_ten_benchmarks_and_holes(tmp_path):
    rows = [record(f"b{b}-0", 1.0, benchmark=f"b{b}") for b in range(12)] + [record("b0-0", 1.0, benchmark="b0", method="pasr")]
    table = tables.build([write_evaluation(tmp_path / "e", rows)])
    text = tables.terminal(table)
    assert all(len(line) <= 100 for line in text.splitlines())
    assert "b11" in text
    pasr = table["rows"][1]
    assert pasr["average"]["accuracy"] is None, "an average over other columns than the row above"
    rows = [line for line in text.splitlines() if line.startswith("PASR ")]
    assert len(rows) == 1, "a row of dashes says nothing"


def test_differences_of_two_evaluations(tmp_path):
    one = write_evaluation(tmp_path / "one", [record(f"gsm8k-{i}", 0.0, tokens=10) for i in range(5)])
    two = write_evaluation(tmp_path / "two", [record(f"gsm8k-{i}", 1.0, tokens=14) for i in range(4)])
    found = differences(str(one), str(two))
    assert [(f["score"], f["difference"], f["questions"]) for f in found] == [("accuracy", 1.0, 4), ("tokens", 4.0, 4)]
    text = render_differences(found, "one", "two")
    assert "+100.0  [+100.0, +100.0]  *" in text
    assert "-100.0  [-100.0, -100.0]  *" in render_differences(differences(str(two), str(one)), "two", "one")
    assert question_means([record("a", None)], "rule") == {}


def test_rules_of_two_evaluations(tmp_path):
    """Bug guarded: a difference that a change of the rules has made; a warning because of what was never scored."""
    one = write_evaluation(tmp_path / "one", [record("a", 0.0, rules="now"), unreadable("b")])
    two = write_evaluation(tmp_path / "two", [record("a", 1.0, rules="now")])
    three = write_evaluation(tmp_path / "three", [record("a", 1.0, rules="then")])
    assert not mixed_rules(str(one), str(two))
    assert mixed_rules(str(one), str(three))


def test_what_cannot_be_compared_is_said(tmp_path):
    """Bug guarded: answers to different questions paired because their ids are the same."""
    one = write_evaluation(tmp_path / "one", [record("gsm8k-0", 0.0)])
    other = record("gsm8k-0", 0.0)
    other.question = "another"
    two = write_evaluation(tmp_path / "two", [other])
    with pytest.raises(ValueError, match="gsm8k-0 is another question"):
        pair_up(str(one), str(two))
    three = write_evaluation(tmp_path / "three", [record("a", 0.0, method="pasr"), record("a", 0.0, method="self-refine")])
    with pytest.raises(ValueError, match="share no method"):
        pair_up(str(one), str(three))
    with pytest.raises(ValueError, match="has no answers of pasr"):
        pair_up(f"{one}:pasr", str(three))
    assert pair_up(f"{one}:vanilla", f"{three}:pasr")[0][0] == "vanilla -> PASR"
    four = write_evaluation(tmp_path / "four", [record("x", 0.0, benchmark="own")])
    with pytest.raises(ValueError, match="share no benchmark"):
        pair_up(str(one), str(four))
