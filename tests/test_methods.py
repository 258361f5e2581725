"""The paper's methods: what each turn is given, what goes back, and which answer counts."""

import json
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
    parse_methods,
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


def test_vanilla_is_one_turn_for_all_questions_in_one_call(run, monkeypatch):
    calls = scripted(monkeypatch, answer_sums)
    records = run("vanilla")
    assert [len(call) for call in calls] == [3]
    assert [record.scores["rule"] for record in records] == [1.0, 0.0, 0.0]
    assert records[0].turns[0]["prompt"].startswith("<|system|>PLAIN<|end|><|user|>0 + 1?")
    assert records[0].answer == "1"
    assert records[0].tokens == len("<think>hm</think>Answer: 1") + 1


def test_self_refine_reviews_every_answer(run, monkeypatch):
    """Bug guarded: a review that never sees the first answer, or a "right as it is" that wipes the answer out."""
    calls = scripted(monkeypatch, answer_sums)
    vanilla, records = run("vanilla"), run("self-refine")
    assert [len(call) for call in calls] == [3, 3], "the first turn is vanilla's answer, and not paid for again"
    assert [record.turns[0] for record in records] == [record.turns[0] for record in vanilla]
    assert [record.scores["rule"] for record in records] == [1.0, 1.0, 0.0]
    assert [record.answer_turn for record in records] == [0, 1, 0]
    second = records[1].turns[1]["prompt"]
    assert f"<|assistant|>Answer: 1<|end|><|user|>{REVIEW}<|end|><|assistant|>" in second
    assert "<think>" not in second
    assert records[1].tokens == sum(turn["tokens"] for turn in records[1].turns)


def test_the_oracle_sends_back_only_what_is_wrong(run, monkeypatch):
    """Bug guarded: right answers reviewed as well, or their tokens counted."""
    calls = scripted(monkeypatch, answer_sums)
    records = run("self-refine-oracle")
    assert [len(call) for call in calls] == [3, 2]
    assert [len(record.turns) for record in records] == [1, 2, 2]
    assert summarise(records, "number")["review_missing"] == 0.0
    assert REVIEW_WRONG in records[1].turns[1]["prompt"]
    assert [record.scores["rule"] for record in records] == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("method", ["pasr-prompt", "pasr"])
def test_pasr_uses_the_refine_prompt_and_the_answer_body(run, monkeypatch, method):
    scripted(monkeypatch, answer_sums)
    records = run(method)
    assert records[0].turns[0]["prompt"].startswith("<|system|>REFINE")
    assert [record.scores["rule"] for record in records] == [1.0, 0.0, 0.0]


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


def test_methods_on_the_command_line():
    assert [m.name for m in parse_methods("pasr, vanilla")] == ["vanilla", "pasr"]
    for text, problem in (("vanila", "no method is called 'vanila'"), (" ,", "no method is named")):
        with pytest.raises(ValueError, match=problem):
            parse_methods(text)


def test_records_are_what_was_agreed(run, monkeypatch, tmp_path):
    """Bug guarded: a field that the behaviour analyses read is renamed."""
    scripted(monkeypatch, answer_sums)
    run("self-refine")
    row = json.loads((tmp_path / "out" / "records" / "sums.self-refine.jsonl").read_text().splitlines()[0])
    wanted = {"benchmark", "method", "id", "sample", "question", "reference", "turns", "answer", "tokens", "scores"}
    assert wanted <= set(row)
    assert set(row["turns"][0]) == {"prompt", "response", "tokens", "finish_reason"}
    assert {"rule", "judge"} <= set(row["scores"])
