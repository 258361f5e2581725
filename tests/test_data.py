"""Where text comes from: files, prompts, stop ids, the embedded task."""

from pathlib import Path

import pytest
from conftest import SHARED, needs_tokenizers, write_task_folder

from data.division import Corpus, all_questions, build_tokenizer, estimate, load_split, read_trials
from data.examples import ExampleStream, load_examples
from data.prompts import PromptRenderer, Prompts, load_prompts, load_tokenizer, stop_ids
from rewards.format import format_reward, parse_response
from rl.session import drop_long_prompts


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "text",
    [
        '{"question": "a\u2028b", "answer": "a"}\n\n{"instruction": "q2", "output": 7}\n',
        '[{"question": "a\u2028b", "answer": "a"},\n {"instruction": "q2", "output": "7"}]',
    ],
)
def test_files_are_read(tmp_path, text):
    """Bug guarded: rows cut at U+2028, which JSON allows inside a string; a blank line or a number that is no row or answer."""
    examples = load_examples(write(tmp_path / "data.jsonl", text))
    assert [(e.question, e.reference) for e in examples] == [("a\u2028b", "a"), ("q2", "7")]
    assert len({e.id for e in examples}) == 2


GOOD_ROW = '{"question": "q", "answer": "a"}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD_ROW + '\n{"question": "q"}', r"line 2.*'answer' is missing"),
        ('{"question": "", "answer": "a"}', r"line 1.*'question' is empty"),
        (GOOD_ROW + '\n\n{"prompt": "q"}', r"line 3: 'question'.*is missing.*\['prompt'\]"),
        (GOOD_ROW + '\n{"question', r"line 2.*not valid JSON"),
        ("[" + GOOD_ROW + ', {"question": "q"}]', "item 2"),
        ("[{]", "not valid JSON"),
        ("[1]", "expected a JSON object"),
        ("[]", "no examples"),
    ],
)
def test_bad_rows_are_named(tmp_path, text, message):
    """Bug guarded: a row that is skipped silently, or an error that does not say which row."""
    with pytest.raises(ValueError, match=message):
        load_examples(write(tmp_path / "data.jsonl", text))


def test_order_is_a_pure_function_of_seed_and_step():
    """Bug guarded: a resumed run that sees other questions; an epoch that shows one twice."""
    examples = load_split(held_out=True)[:10]
    stream = ExampleStream(examples, seed=3)
    steps = [stream.take(step, 4) for step in range(10)]
    flat = [e for step in steps for e in step]
    for epoch in range(4):
        assert sorted(e.id for e in flat[epoch * 10 : epoch * 10 + 10]) == sorted(e.id for e in examples)
    assert flat[:10] != flat[10:20]
    assert ExampleStream(examples, seed=3).take(7, 4) == steps[7]
    assert ExampleStream(examples, seed=4).take(0, 4) != steps[0]


def test_task_tokenizer(tmp_path):
    """Bug guarded: a system prompt or tag that falls apart into unknown tokens, a decode that adds spaces."""
    folder = write_task_folder(tmp_path)
    tokenizer = load_tokenizer(folder)
    renderer = PromptRenderer(tokenizer, Prompts())
    refine, plain = renderer.ids("274/39", "refine"), renderer.ids("274/39", "plain")
    assert len(refine) == len(plain) == 8
    assert refine[1:] == plain[1:]
    assert refine[0] != plain[0]
    text = "<think>9:351><refine>8:312></refine></think><answer>8</answer><|end|>"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert len(ids) == 6 + 6 + 6 + 1 + 1
    assert renderer.decode(ids) == text
    assert stop_ids(folder, tokenizer) == {tokenizer.eos_token_id: ["config.json", "tokenizer", "chat template"]}
    with pytest.raises(ValueError, match="cannot represent"):
        renderer.ids("what is 2/3?", "plain")


def test_prompts_travel_with_the_model(tmp_path):
    """Bug guarded: a trained model that is asked with other prompts, a misspelt name in the file that changes nothing."""
    assert load_prompts(None, tmp_path) == Prompts()
    Prompts(refine="R").save(tmp_path)
    assert load_prompts(None, tmp_path).refine == "R"
    shown = load_prompts("one-shot", tmp_path)
    assert shown.refine.startswith(Prompts().refine)
    assert format_reward(shown.refine.partition("Your response:\n")[2]) == 1.0
    assert load_prompts(str(write(tmp_path / "mine.json", '{"plain": "P"}')), tmp_path) == Prompts(plain="P")
    for bad in ('{"grader": "x"}', "[]", "{", '{"plain": 3}'):
        with pytest.raises(ValueError):
            Prompts.load(write(tmp_path / "bad.json", bad))


@needs_tokenizers
def test_real_templates():
    """Bug guarded: a default system prompt beside ours, a think block opened by the template, one of two stop ids missing."""
    for name, stops in (("qwen2.5", {151643, 151645}), ("qwen3", {151645})):
        folder = SHARED / "tokenizers" / name
        tokenizer = load_tokenizer(folder)
        assert set(stop_ids(folder, tokenizer)) == stops
        for thinking in (True, False):
            renderer = PromptRenderer(tokenizer, Prompts(), plain_thinking=thinking)
            refine, plain = renderer.text("What is 2 + 2?", "refine"), renderer.text("What is 2 + 2?", "plain")
            assert refine.endswith("<|im_start|>assistant\n")
            assert refine.count("<|im_start|>system") == plain.count("<|im_start|>system") == 1
            assert plain.endswith("</think>\n\n") == (name == "qwen3" and not thinking)
    ids = tokenizer.encode("<think>", add_special_tokens=False)
    assert ids == [151667]
    assert renderer.decode(ids) == "<think>"


def test_templates_with_a_think_block_and_without_any():
    """Bug guarded: the policy completes an open or empty think block, and every response is malformed."""
    tokenizer = build_tokenizer(Prompts())
    tokenizer.chat_template = None
    assert PromptRenderer(tokenizer, Prompts(refine="R")).text("1/2", "refine") == "R\n\nUser: 1/2\n\nAssistant:"
    for ending in ("<think>\\n", "<think>\\n\\n</think>\\n\\n"):
        tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}={{ '" + ending + "' }}"
        assert PromptRenderer(tokenizer, Prompts(refine="R<think>")).text("1", "refine") == "R<think>1="
        assert PromptRenderer(tokenizer, Prompts()).text("1", "plain").endswith(ending.replace("\\n", "\n"))


def test_long_prompts_are_dropped_and_counted(capsys):
    """Bug guarded: prompts cut silently, or found too long in the middle of a run."""
    renderer = PromptRenderer(build_tokenizer(Prompts()), Prompts())
    examples = load_split(held_out=True)[:5]
    assert drop_long_prompts(examples, renderer, 8) == examples
    long = type(examples[0])("x", "123456789/99", "1")
    assert drop_long_prompts([*examples, long], renderer, 8) == examples
    assert "dropped 1 of 6" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no prompt fits"):
        drop_long_prompts(examples, renderer, 3)


def test_split_is_disjoint_and_complete():
    """Bug guarded: an evaluation on questions of the training set."""
    train, held_out = load_split(held_out=False), load_split(held_out=True)
    assert len(train) + len(held_out) == len(list(all_questions())) == 21_180
    assert not {e.id for e in train} & {e.id for e in held_out}
    assert 0.18 < len(held_out) / 21_180 < 0.22
    assert 0.55 < sum(estimate(n, d) == n // d for n, d in all_questions()) / 21_180 < 0.62


def test_corpus_writes_wellformed_traces_with_the_stated_habits():
    """Bug guarded: refinements under the plain prompt, wrong products, habits other than the recipe says."""
    rows = Corpus().batch(load_split(held_out=False), 6000, 0)
    assert rows[:20] == Corpus().batch(load_split(held_out=False), 6000, 0)[:20]
    wrong, right = [], []
    for example, mode, text in rows:
        response, trials = parse_response(text), read_trials(example.question, text)
        assert format_reward(text) == 1.0
        assert all(trial.check_is_right for trial in trials)
        assert len(trials) == 1 + len(response.refinements)
        assert (int(response.answer) == int(example.reference)) == trials[-1].is_right
        if mode == "plain":
            assert response.refinements == ()
        else:
            for trial in trials[:3]:
                (right if trial.is_right else wrong).append(trial.refined)
    assert sum(wrong) / len(wrong) == pytest.approx(0.38, abs=0.04)
    assert sum(right) / len(right) == pytest.approx(0.13, abs=0.03)
    assert sum(mode == "plain" for _, mode, _ in rows) / 6000 == pytest.approx(0.45, abs=0.03)


def test_trials_are_read_back():
    """Bug guarded: a comparison sign that is believed instead of computed, a trial counted twice."""
    text = "<think>9:351><refine>8:312><refine></refine>7:273<</think>"
    trials = read_trials("274/39", text)
    assert [t.is_right for t in trials] == [False, False, True]
    assert [t.too_big for t in trials] == [True, True, False]
    assert [t.refined for t in trials] == [True, True, False]
    assert not read_trials("274/39", "<think>7:273></think>")[0].check_is_right
    with pytest.raises(ValueError, match="N/d"):
        read_trials("274", text)
