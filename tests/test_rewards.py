"""Eq. 4-7 on text: every way in which a response can be malformed, every edge of the tie band."""

import re
from pathlib import Path

import pytest
from samples import rewarded

from rewards import accuracy
from rewards.accuracy import numbers, score_by_rule
from rewards.format import (
    answer_body,
    format_reward,
    has_both_pairs,
    keeps_order,
    parse_response,
    plain_answer,
    refines_inside_think,
)
from rewards.judge import parse_score
from rewards.refine import baseline_accuracy, refine_reward
from rl.metrics import is_plain_wellformed

WELL_FORMED = {
    "plain": "<think>a</think><answer>b</answer>",
    "white space": "\n <think>a</think>\n\n<answer> b </answer>\n",
    "one refinement": "<think>a<refine>r</refine>c</think><answer>b</answer>",
    "two refinements": "<think><refine>r</refine><refine>s</refine></think><answer>b</answer>",
    "empty thinking": "<think></think><answer>b</answer>",
    "empty refinement": "<think><refine></refine></think><answer>b</answer>",
    "comparison signs": "<think>1 < 2 > 0 <b> </refinement></think><answer>x<y</answer>",
}

# response, and which of C1, C2, C3 it breaks
MALFORMED = {
    "nothing": ("", "C1 C3"),
    "text only": ("the answer is b", "C1 C3"),
    "no answer pair": ("<think>a</think>", "C1 C3"),
    "no think pair": ("<answer>b</answer>", "C1 C3"),
    "doubled think pair": ("<think>a</think><think>a</think><answer>b</answer>", "C1 C3"),
    "doubled answer pair": ("<think>a</think><answer>b</answer><answer>c</answer>", "C1 C3"),
    "unclosed think": ("<think>a<answer>b</answer>", "C1 C3"),
    "unclosed answer": ("<think>a</think><answer>b", "C1 C3"),
    "unclosed refine": ("<think>a<refine>r</think><answer>b</answer>", "C2"),
    "unopened refine": ("<think>a</refine></think><answer>b</answer>", "C2"),
    "reversed refine": ("<think></refine>r<refine></think><answer>b</answer>", "C2"),
    "nested refine": ("<think><refine><refine>r</refine></refine></think><answer>b</answer>", "C2"),
    "refine before think": ("<refine>r</refine><think>a</think><answer>b</answer>", "C2 C3"),
    "refine after think": ("<think>a</think><refine>r</refine><answer>b</answer>", "C2 C3"),
    "refine in answer": ("<think>a</think><answer><refine>r</refine>b</answer>", "C2"),
    "refine across the border": ("<think>a<refine>r</think>s</refine><answer>b</answer>", "C2 C3"),
    "answer in refine": ("<think>a<refine>r<answer>b</answer></refine></think>", "C2 C3"),
    "answer before think": ("<answer>b</answer><think>a</think>", "C3"),
    "answer inside think": ("<think>a<answer>b</answer></think>", "C3"),
    "reversed answer": ("<think>a</think></answer>b<answer>", "C1 C3"),
    "text before": ("so <think>a</think><answer>b</answer>", "C3"),
    "text between": ("<think>a</think>so<answer>b</answer>", "C3"),
    "text after": ("<think>a</think><answer>b</answer>.", "C3"),
    "empty answer": ("<think>a</think><answer></answer>", "C1"),
    "blank answer": ("<think>a</think><answer> \n</answer>", "C1"),
}


@pytest.mark.parametrize("text", WELL_FORMED.values(), ids=WELL_FORMED.keys())
def test_wellformed_responses(text):
    """Bug guarded: a leading newline that scores -1 (released code)."""
    assert format_reward(text) == 1.0
    assert parse_response(text) is not None


@pytest.mark.parametrize(("text", "broken"), MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_responses(text, broken):
    """Bug guarded: the and/or slip of the released code, by which doubled, unclosed, reversed and empty pairs score +1."""
    assert format_reward(text) == -1.0
    assert parse_response(text) is None
    conditions = {"C1": has_both_pairs(text), "C2": refines_inside_think(text), "C3": keeps_order(text)}
    assert [name for name, holds in conditions.items() if not holds] == broken.split()


def test_parsed_parts():
    response = parse_response(" <think> a <refine> r\n1 </refine> c <refine>s</refine></think> <answer> b </answer>")
    assert response.refinements == ("r\n1", "s")
    assert response.answer == "b"
    assert response.think.startswith("a <refine>")


def test_judged_bodies():
    """Bug guarded: judging the thinking, paying for one of several answers, an answer hidden behind native thinking."""
    assert answer_body("no think <answer> 7 </answer>") == "7"
    assert answer_body("<answer>1</answer><answer>2</answer>") == ""
    assert answer_body("</answer>1<answer>") == ""
    assert answer_body("7") == ""
    assert plain_answer("<think>it is 8</think>\n7") == "7"
    assert plain_answer("7") == "7"
    assert plain_answer("<think>so 6 * 7 = 42") == "", "unfinished thinking is no answer"


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("7", True), ("<think>hm</think>7", True), ("hm</think>7", True), ("<think>a</think><answer>7</answer>", True),
        ("", False), ("<think>hm</think>", False), ("<think>7", False), ("<refine>r</refine>7", False),
        ("<think>a<refine>r</refine></think><answer>7</answer>", False), ("<answer>7", False),
    ],
)  # fmt: skip
def test_plain_wellformed(text, good):
    """Bug guarded: sandbagged plain answers without any refine tag, which a tag count does not see."""
    assert is_plain_wellformed(text) is good


def test_mean_of_equal_scores_is_a_tie():
    """Bug guarded: the mean of eight 0.7 is not exactly 0.7."""
    assert refine_reward(0.7, baseline_accuracy([0.7] * 8), zeta=0.0, refined=True) == -0.5


REFINED, UNREFINED = WELL_FORMED["one refinement"], WELL_FORMED["plain"]
UNCLOSED = MALFORMED["unclosed refine"][0]


@pytest.mark.parametrize(
    ("text", "accuracy", "baseline", "mode", "total"),
    [
        (REFINED, 1.0, 0.5, "compare", 3.0), (REFINED, 0.0, 0.5, "compare", 0.0), (REFINED, 0.5, 0.5, "compare", 1.0),
        (REFINED, 1.0, 0.0, "single", 3.0), (REFINED, 0.0, None, "presence", 2.0), (REFINED, 1.0, None, "none", 2.0),
        (UNREFINED, 1.0, 0.5, "compare", 2.0), (UNREFINED, 0.0, None, "presence", 1.0), (UNCLOSED, 1.0, 0.0, "compare", 0.0),
        (UNCLOSED, 1.0, None, "presence", 0.0),
    ],
)  # fmt: skip
def test_total_reward(text, accuracy, baseline, mode, total):
    """Bug guarded: refine reward for a malformed response, -0.5 for a response that did not refine, a wrong sum."""
    assert rewarded(text, accuracy, baseline, refine_reward=mode, zeta=0.05).reward == total


SCORES = {"1": 1.0, "0": 0.0, " 0.75\n": 0.75, ".5": 0.5, "1.0": 1.0, "1e-1": 0.1, "0.": 0.0, "1.": 1.0}
NO_SCORES = ["", "8/10", "0.2 out of 1", "1.5", "-0.1", "-0", "nan", "inf", "1,0", "Score: 1", "1 2", "٠", "1_0", "0x1"]


@pytest.mark.parametrize(("reply", "score"), [*SCORES.items(), ("1e400", None), *((reply, None) for reply in NO_SCORES)])
def test_the_whole_reply_is_a_score(reply, score):
    """Bug guarded: taking the last number of a reply turns "8/10" into 1.0 (released code)."""
    assert parse_score(reply) == score


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It is 42.", "42"), ("$1,234.50", "1234.50"), ("7 or 8", "8"), ("-3", "-3"), ("\N{MINUS SIGN}3", "-3"),
        ("10-5", "5"), ("x = .5", "0.5"), ("12,34", "34"), ("1,000,000 people", "1000000"), ("none", None),
    ],
)  # fmt: skip
def test_numbers(text, number):
    """Bug guarded: separators, signs between operands, a full stop taken for decimals."""
    assert [float(found) for found in numbers(text)[-1:]] == ([] if number is None else [float(number)])


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("so 18", "9 eggs are $18.\n#### 18", 1.0), ("18.0 dollars", "#### 18", 1.0), ("$1,800", "#### 1800", 1.0),
        ("80", "#### 18", 0.0), ("180", "18", 0.0), ("Paris", "Paris", 1.0), (" paris. ", "Paris", 1.0),
        ("Paris or Rome", "Paris", 0.0), ("", "0", 0.0), ("   ", "", 0.0), ("nan", "nan", 1.0),
    ],
)  # fmt: skip
def test_score_by_rule(answer, reference, score):
    """Bug guarded: substring matches, empty answers that score, numbers compared as text."""
    assert score_by_rule(answer, reference) == score


def test_a_change_of_any_rule_changes_the_version(monkeypatch):
    """Bug guarded: scores kept on disk that are taken for those of a rule which has been changed since."""
    folder, found = Path(accuracy.__file__).parent, {"accuracy.py"}
    for _ in range(5):
        sources = "\n".join((folder / name).read_text() for name in found)
        found |= {f"{name}.py" for name in re.findall(r"^\s*from rewards\.(\w+) import", sources, re.MULTILINE)}
    assert found | {"format.py", "judge.py"} == set(accuracy.SOURCES), "and what takes answers out, and asks the rules"
    before = accuracy.rules_version.__wrapped__()
    assert before == accuracy.rules_version.__wrapped__()
    monkeypatch.setattr(accuracy, "version", lambda name: "another")
    assert accuracy.rules_version.__wrapped__() != before
    monkeypatch.undo()
    monkeypatch.setattr(accuracy, "LIBRARIES", ("no-such-library", "sympy"))
    assert accuracy.rules_version.__wrapped__() != before, "a machine that lacks a library has a version, too"
    monkeypatch.undo()
    read = Path.read_bytes
    for name in accuracy.SOURCES:
        monkeypatch.setattr(Path, "read_bytes", lambda path, name=name: read(path) + b"#" * (path.name == name))
        assert accuracy.rules_version.__wrapped__() != before, name
