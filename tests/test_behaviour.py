"""Behaviour analyses: counted by hand on small cases, and honest about what cannot be told."""

import json
import socket
import sys
import xml.etree.ElementTree as ElementTree
from functools import partial

import pytest
from evaluation import record, response, unreadable, write_evaluation

import evaluate
import rl.judging.judge
from rewards.http_judge import HttpJudge
from rewards.judge import RuleScorer
from rewards.refinements import answer_change, find_refinements
from rl.config import Config
from rl.evaluation import behaviour_report
from rl.evaluation.behaviour import analyse, share_of, wilson
from rl.evaluation.methods import Turn
from rl.evaluation.records import read_records
from rl.judging.cache import BaselineCache
from rl.judging.judge import JudgeSpec


def counts_of(part: dict) -> dict[str, int]:
    return {name: share["count"] for name, share in part["shares"].items()}


@pytest.mark.parametrize(
    ("count", "of", "wanted"),
    [(5, 10, (0.236593, 0.763407)), (0, 10, (0.0, 0.277533)), (10, 10, (0.722467, 1.0)), (235, 384, (0.562360, 0.659380))],
)
def test_wilson_interval(count, of, wanted):
    """Bug guarded: the plain normal interval, which has no width at 0 of 10. Figures: scipy.stats.binomtest."""
    assert wilson(count, of) == pytest.approx(wanted, abs=2e-6)


def test_an_interval_holds_its_share():
    """Bug guarded: an end that rounding puts beyond the share: whiskers of negative length, which matplotlib refuses."""
    for of in range(1, 600):
        for count in (0, 1, of - 1, of):
            low, high = wilson(count, of)
            assert 0 <= low <= count / of <= high <= 1
    assert wilson(0, 0) == (0.0, 1.0)
    assert share_of([])["share"] is None, "a share of nothing is not zero"


def test_place_and_length_of_refinements():
    """Bug guarded: places counted from the wrong end, tags of one refinement in the text around another, a lost space."""
    text = response("ab<refine>cd</refine>ef<refine> ab cd </refine>gh")
    first, second = find_refinements(f"\n {text} \n")
    assert (first.before, first.body, first.after) == ("ab", "cd", "ef  ab cd  gh")
    assert (second.before, second.body, second.after) == ("ab cd ef", "ab cd", "gh")
    assert first.begin == pytest.approx(len("<think>ab") / len(text))
    assert first.share == pytest.approx(len("<refine>cd</refine>") / len(text))
    assert (first.characters, second.characters) == (2, 5)
    assert (first.repeats, second.repeats) == (False, True)
    assert find_refinements(text.removesuffix("</answer>")) == []


@pytest.mark.parametrize(
    ("think", "answer", "wanted"),
    [
        ("9:351><refine>8:312></refine>", "8", "new"),
        ("9:351><refine>8:312></refine>", "9", "written before"),
        ("It is 7. <refine>Check: 7.</refine>", "7.0", "kept"),
        ("First 7, no, 8. <refine>7 after all</refine>", "7", "written before"),
        ("<refine>it must be 7</refine>", "7", "new"),
        ("17 and 70 <refine>r</refine>", "It is 7 apples.", "new"),
        ("1,234 <refine>r</refine>", "$1234", "kept"),
        ("It is 7 <refine>no, 8</refine> so 7 <refine>8</refine>", "8", "new"),
        ("B looks right <refine>but C</refine>", "C", "new"),
        ("B, or C <refine>yes</refine>", "(C) both", "kept"),
        ("C, or B <refine>yes</refine>", "C", "written before"),
        ("ABC <refine>yes</refine>", "B", "new"),
        ("It is 7", "7", None),
        ("It is Rome <refine>no</refine>", "Paris", None),
        ("It is 1 <refine>no</refine>", r"\frac{1}{2}", None),
        ("It is 1 <refine>no</refine>", "1/2", None),
        ("It is 1 <refine>no</refine>", "between 1 and 2", None),
        (r"It is 5 <refine>no</refine>", r"\boxed{5}", "kept"),
    ],
)
def test_what_became_of_the_answer(think, answer, wanted):
    """Bug guarded: 7 found in 17, an operand taken for the draft, 7.0 for another number than 7, prose compared."""
    assert answer_change(response(think, answer)) == wanted


def test_transitions_counted_by_hand():
    """Bug guarded: swapped directions, other samples' or benchmarks' partners, failed scores taken for wrong answers."""
    scores = {"a": 1.0, "b": 0.0, "c": 0.0, "d": 1.0, "e": None, "f": 1.0}
    plain = [record(id, score) for id, score in scores.items()]
    plain += [record("a", 0.0, sample=1), record("a", 0.0, benchmark="arc")]
    kept, fixed = response("1", "1"), response("1<refine>2</refine>", "2")
    refined = [
        record("a", 0.9, text=kept),  # right -> right
        record("b", 0.2, text="malformed <refine>"),  # wrong -> wrong
        record("c", 0.5, text=fixed),  # wrong -> right: from one half on
        record("d", 0.49, text=kept),  # right -> wrong
        record("e", 1.0, text=fixed),  # its partner has no score
        record("f", None, text=fixed),
        record("g", 1.0, text=fixed),  # no partner
        record("a", 1.0, sample=1, text=response("1<refine>1</refine>", "1")),  # wrong -> right
        record("a", 0.0, benchmark="arc", text=kept),  # wrong -> wrong
    ]
    found = analyse(plain, refined, "rule")
    assert counts_of(found["transitions"]) == {"right->right": 1, "wrong->wrong": 2, "wrong->right": 2, "right->wrong": 1}
    assert list(found["transitions"]["counts"].values()) == [6, 5, 2, 3]
    assert list(counts_of(found["whether"]).values()) == [8, 5, 2, 0]
    assert [share["of"] for share in found["whether"]["shares"].values()] == [9, 9, 4, 2]
    assert counts_of(found["how_many"])["1"] == 5
    assert counts_of(found["effect"]) == {"new": 4, "written before": 0, "kept": 1}
    assert [share["of"] for share in found["worth"]["shares"].values()] == [5, 4, 4]
    assert counts_of(found["worth"])["refinements that only repeat"] == 1
    assert found["when"]["bins"] == [0, 5, 0, 0, 0, 0, 0, 0, 0, 0]
    assert found["how_long"]["numbers"]["tokens, by its share of the text"]["mean"] < 10
    assert "coherence" not in found


def test_how_many_when_and_what_cannot_be_told():
    """Bug guarded: two refinements counted as many, a late one in an early bin, answers in words counted as compared."""
    words, one = response("It is Rome <refine>no</refine>", "Paris"), "<refine>r</refine>"
    texts = [response("7"), words, response(f"7{one}7{one}"), response(f"7{one}7{one}8{one}"), response(f"7{one * 4}")]
    found = analyse([], [record(str(n), 1.0, text=text) for n, text in enumerate(texts)], "rule")
    assert counts_of(found["how_many"]) == {"0": 1, "1": 1, "2": 1, "3 or more": 2}
    assert list(found["effect"]["counts"].values()) == [1]
    assert sum(counts_of(found["effect"]).values()) == 3
    text = response("a" * 860 + one + "b" * 20)
    assert 0.9 < find_refinements(text)[0].begin < 1.0
    assert analyse([], [record("a", 1.0, text=text)], "rule")["when"]["bins"] == [0] * 9 + [1]


@pytest.fixture
def evaluation(tmp_path):
    """Records of three methods on two benchmarks, as evaluate.py leaves them."""
    refined, arc = response("8<refine>7</refine>"), {"benchmark": "arc"}
    reviewed = [record(id, 1.0, method="self-refine", text="7", **arc) for id in "12"]
    for r in reviewed:
        r.turns.append(Turn(prompt="p", response="all is well", tokens=3, finish_reason="stop"))
    reviewed[1].answer_turn = 1
    records = [
        record("1", 0.0, text="8", judge=1.0), record("2", 1.0, text="7"), record("1", 1.0, text="7", **arc), *reviewed,
        record("1", 1.0, method="pasr", text=refined, judge=0.0), record("2", 1.0, method="pasr", text=refined),
        record("1", 1.0, method="pasr", text=refined, **arc), unreadable("2", method="pasr", **arc),
    ]  # fmt: skip
    return write_evaluation(tmp_path / "evaluation", records, model="some/model")


def test_from_records_to_report(evaluation, tmp_path, capsys):
    """Bug guarded: a report that is no Markdown of 100 columns, a figure that is missing, a judge's score that is not used."""
    (evaluation / "analysis").mkdir()
    (evaluation / "analysis" / "kind.svg").write_text("of an earlier analysis, with a judge")
    assert evaluate.main(["--analyse", str(evaluation)]) == 0
    assert not (evaluation / "analysis" / "kind.svg").exists()
    shown = capsys.readouterr().out
    assert max(map(len, shown.split("written:")[0].splitlines())) <= 100
    found = json.loads((evaluation / "analysis" / "behaviour.json").read_text())
    assert found["source"]["refined"] == f"pasr of {evaluation}"
    assert sum(counts_of(found["transitions"]).values()) == counts_of(found["transitions"])["right->wrong"] == 1, "the judge's"
    assert found["source"]["left out"] == "1, of questions that could not be asked", "and are not malformed answers"
    assert found["whether"]["shares"]["well formed"]["of"] == 3
    reviewed = behaviour_report.analyse_folder(evaluation, refined="self-refine")
    assert list(counts_of(reviewed["transitions"]).values()) == [1, 0, 0, 0], "by rule, because the judge scored none of them"
    assert [r.response for r in read_records(evaluation)["self-refine"]["arc"]] == ["7", "all is well"]
    base = write_evaluation(tmp_path / "base", [record("1", 0.0, text="8", judge=0.0)])
    of_base = behaviour_report.analyse_folder(evaluation, plain_from=base)["transitions"]
    assert counts_of(of_base)["wrong->wrong"] == of_base["counts"]["pairs"] == 1
    assert (evaluation / "analysis" / "behaviour.md").read_text().startswith("# How the model refines")
    for name in found.keys() - {"source"}:
        assert ElementTree.parse(evaluation / "analysis" / f"{name}.svg").getroot().tag.endswith("svg")


def test_an_analysis_without_matplotlib(evaluation, monkeypatch, capsys):
    """Bug guarded: numbers that are lost, or a traceback behind them, because nothing can be drawn."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(behaviour_report, "find_spec", lambda name: None)
    assert evaluate.main(["--analyse", str(evaluation)]) == 0
    assert "behaviour.md without figures (pip install matplotlib)" in capsys.readouterr().out
    assert sorted(file.name for file in (evaluation / "analysis").iterdir()) == ["behaviour.json", "behaviour.md"]


def test_self_is_the_model_that_answered(evaluation, monkeypatch):
    """Bug guarded: --judge self refused, or taken for a folder called self."""
    judges = []
    monkeypatch.setattr(behaviour_report, "make_scorers", lambda spec, *_, **__: judges.append(spec.name) or {})
    for judge in ("self", "rules"):
        behaviour_report.analyse_folder(evaluation, JudgeSpec.of(Config(judge=judge), evaluation))
    assert judges == ["some/model"]


def test_a_judge_that_is_away_is_an_error_before_anything_is_asked(evaluation, monkeypatch):
    """Bug guarded: an analysis that asks hundreds of times, and reports that all of them failed."""
    monkeypatch.setattr(rl.judging.judge, "HttpJudge", partial(HttpJudge, backoff=0.001, max_retries=1))
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/v1"
        with pytest.raises(ValueError, match="does not answer"):
            behaviour_report.analyse_folder(evaluation, JudgeSpec.of(Config(judge=url, judge_model="m"), evaluation))


def test_an_evaluation_that_is_running_can_be_analysed(evaluation):
    """Bug guarded: a half-written last line taken for a broken file."""
    file = evaluation / "records" / "arc.pasr.jsonl"
    file.write_text(file.read_text() + '{"benchmark": "a')
    assert [len(records) for records in read_records(evaluation)["pasr"].values()] == [2, 2]


def test_rollouts_are_paired_with_the_references_answers(tmp_path):
    """Bug guarded: no transitions of a run with --plain-policy reference, whose plain answers stand beside the runs."""
    run, cache = tmp_path / "run", BaselineCache(tmp_path / "baselines", {"model": "m"})
    cache.put("q", "7", [("8", 0.0), ("7", 1.0)])
    (run / "rollouts").mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"config": {}, "baselines": [cache.path.name]}))
    row = {"id": "1", "question": "q", "reference": "7", "mode": "refine", "text": response("7"), "tokens": 5, "accuracy": 1.0}
    rows = [row, row, row, row | {"id": "2", "question": "asked of nobody"}]
    for step in (1, 2):
        (run / "rollouts" / f"step_00000{step}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    analysis = behaviour_report.analyse_folder(run)
    assert analysis["source"]["plain answers"] == "the initial policy's"
    found = analysis["transitions"]
    assert counts_of(found) == {"right->right": 2, "wrong->wrong": 0, "wrong->right": 2, "right->wrong": 0}
    assert list(found["counts"].values()) == [4, 2, 0, 4]


def test_report_of_an_analysis_with_judge_and_without_refinements():
    """Bug guarded: a division by no refinements, a figure of kinds without a kind."""
    found = analyse([], [record("a", 1.0, text=response("1"))], "rule", {name: RuleScorer() for name in ("coherence", "kind")})
    assert {"coherence", "kind"} <= found.keys()
    text = behaviour_report.summary(found)
    assert "refinements: 0" in text
    assert "none to count" in text
    for part in found.values():
        behaviour_report.draw(part)


def test_mistakes_are_named(evaluation, tmp_path):
    with pytest.raises(ValueError, match="neither records/"):
        behaviour_report.analyse_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no records of 'pasr-prompt'"):
        read_records(evaluation, "pasr-prompt")
    file = evaluation / "records" / "arc.pasr.jsonl"
    file.write_text('{"benchmark": "arc"}\n')
    with pytest.raises(ValueError, match=r"arc\.pasr\.jsonl, line 1 is no record of an answer"):
        behaviour_report.analyse_folder(evaluation)
