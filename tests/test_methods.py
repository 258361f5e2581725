"""The paper's methods: what each turn is given, what goes back, and which answer counts."""

from functools import partial

import pytest
from conftest import SHARED, needs_tokenizers
from evaluation import reader_tokenizer, scripted, write_sums
from evaluation import run as run_method
from transformers import AutoTokenizer

from data.prompts import PromptRenderer, Prompts
from rl.evaluation.methods import (
    HOLDS,
    REVIEW,
    REVIEW_WRONG,
    Turn,
    answer_text,
    says_it_holds,
    without_thinking,
)
from rl.evaluation.scores import summarise


@pytest.fixture
def run(tmp_path):
    """Runs methods on three sums, in one output folder."""
    return partial(run_method, write_sums(tmp_path, 3), tmp_path / "out")


def turn(response: str, prompt: str = "p", finish_reason: str = "stop") -> Turn:
    return Turn(prompt=prompt, response=response, tokens=5, finish_reason=finish_reason)


def answer_sums(prompt: str, sample: int) -> str:
    """Right for 0 + 1, wrong for the others; reviews mend 1 + 1 and leave the rest."""
    if REVIEW in prompt or REVIEW_WRONG in prompt:
        return "Answer: 2" if "1 + 1?" in prompt else HOLDS
    return "<think>hm</think>Answer: 1" if "PLAIN" in prompt else "<think>a<refine>b</refine></think><answer>1</answer>"


VANILLA, REFINED = "<|system|>PLAIN<|end|><|user|>0 + 1?", "<|system|>REFINE<|end|><|user|>0 + 1?"


@pytest.mark.parametrize(
    ("method", "calls", "turns", "scores", "answer_turns", "prompt"),
    [
        ("vanilla", [3], [1, 1, 1], [1.0, 0.0, 0.0], [0, 0, 0], VANILLA),
        ("self-refine", [3, 3], [2, 2, 2], [1.0, 1.0, 0.0], [0, 1, 0], VANILLA),
        ("self-refine-oracle", [3, 2], [1, 2, 2], [1.0, 1.0, 0.0], [0, 1, 0], VANILLA),
        ("pasr-prompt", [3], [1, 1, 1], [1.0, 0.0, 0.0], [0, 0, 0], REFINED),
        ("pasr", [3], [1, 1, 1], [1.0, 0.0, 0.0], [0, 0, 0], REFINED),
    ],
)
def test_turns_of_a_method(run, monkeypatch, method, calls, turns, scores, answer_turns, prompt):
    """Bug guarded: several calls for a turn, right answers reviewed by the oracle, a review that wipes the answer out."""
    asked = scripted(monkeypatch, answer_sums)
    records = run(method)
    assert [len(call) for call in asked] == calls
    assert [len(record.turns) for record in records] == turns
    assert [record.scores["rule"] for record in records] == scores
    assert [record.answer_turn for record in records] == answer_turns
    assert records[0].turns[0]["prompt"].startswith(prompt)
    assert all(record.tokens == sum(len(turn["response"]) + 1 for turn in record.turns) for record in records)
    assert summarise(records, "number")["review_missing"] == 0.0


def test_a_review_sees_vanillas_answer(run, monkeypatch):
    """Bug guarded: a first turn that is paid for twice; a review without the first answer, or with its thinking."""
    calls = scripted(monkeypatch, answer_sums)
    vanilla, records = run("vanilla"), run("self-refine")
    assert [len(call) for call in calls] == [3, 3]
    assert [record.turns[0] for record in records] == [record.turns[0] for record in vanilla]
    second = records[1].turns[1]["prompt"]
    assert f"<|assistant|>Answer: 1<|end|><|user|>{REVIEW}<|end|><|assistant|>" in second
    assert "<think>" not in second
    assert REVIEW_WRONG in run("self-refine-oracle")[1].turns[1]["prompt"]


def test_temperatures_of_the_paper(run, monkeypatch):
    """Bug guarded: first turns of Self-Refine drawn at another temperature than vanilla, under --paper-decoding."""
    calls = scripted(monkeypatch, answer_sums)
    run("self-refine", paper_decoding=True)
    run("self-refine-oracle", paper_decoding=True)
    assert [{r.temperature for r in call} for call in calls] == [{0.0}, {0.9}, {0.0}, {0.6}]


def test_every_draw_has_a_key_of_its_own(run, monkeypatch):
    """Bug guarded: two samples or two turns that share their uniforms; a draw that depends on what else is drawn."""
    calls = scripted(monkeypatch, answer_sums)
    run("self-refine", temperature=1.0, samples=2)
    run("pasr", temperature=1.0, samples=2)
    keys = [(r.seed_key, i) for call in calls for r in call for i in range(r.num_samples)]
    assert len(keys) == len(set(keys)) == 3 * 2 + 3 * 2 + 3 * 2


def test_a_review_that_does_not_fit_leaves_the_answer(run, monkeypatch):
    calls = scripted(monkeypatch, answer_sums)
    records = run("self-refine", max_new_tokens=40, context=150)
    assert [len(call) for call in calls] == [3]
    assert [len(record.turns) for record in records] == [1, 1, 1]
    assert summarise(records, "number")["review_missing"] == 1.0


@pytest.mark.parametrize(
    ("said", "holds"),
    [
        (HOLDS, True),
        ("the solution is right", True), ("**The solution is right.**", True),
        ("<think>hm</think>\n\nThe solution is right.", True), ("The solution is right. Answer: 5", False),
        ("The solution is not right.", False), ("", False),
    ],
)  # fmt: skip
def test_when_a_review_holds(said, holds):
    """Bug guarded: a review with a new answer thrown away because it also praises the old one."""
    assert says_it_holds(turn(said)) is holds


def test_thinking_that_the_template_opened_is_no_answer():
    """Bug guarded: native thinking opened in the prompt and never closed, scored as the answer."""
    assert answer_text(turn("it is 72", "... <think>\n", "length"), "plain") == ""
    assert answer_text(turn("hm</think>72", "... <think>\n"), "plain") == "72"
    assert without_thinking(turn("<think>endless", "p", "length")) == "<think>endless"


def test_answer_pairs_in_plain_answers():
    """Bug guarded: a trained model that writes <answer> in plain mode as well scored 0 for its tags; hedging by two pairs."""
    assert answer_text(turn("<think>hm</think><answer>72</answer>"), "plain") == "72"
    two = "<answer>72</answer><answer>73</answer>"
    assert answer_text(turn(two), "plain") == two
    assert answer_text(turn(two), "refine") == ""


def test_dialogue_without_a_chat_template():
    renderer = PromptRenderer(reader_tokenizer(None), Prompts(plain="PLAIN"))
    text = renderer.text("q", "plain", [("a", "again")])
    assert text == "PLAIN\n\nUser: q\n\nAssistant: a\n\nUser: again\n\nAssistant:"


@needs_tokenizers
@pytest.mark.parametrize("name", ["qwen2.5", "qwen3"])
def test_dialogue_in_real_templates(name):
    """Bug guarded: an answer that a template drops, or thinking shown to the next turn. Qwen3's strips it itself."""
    renderer = PromptRenderer(AutoTokenizer.from_pretrained(SHARED / "tokenizers" / name), Prompts())
    said = turn("<think>secret</think>\n\nFirst answer.")
    text = renderer.text("q", "plain", [(without_thinking(said), REVIEW)])
    assert "First answer.<|im_end|>\n<|im_start|>user\nGo through" in text
    assert "secret" not in text
    assert text.endswith("<|im_start|>assistant\n")
