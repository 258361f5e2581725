"""The in-process judge: exact, indifferent to company and order, unable to misread; and the preflight that tests any judge."""

import random
from itertools import pairwise

import pytest
import torch
from conftest import SHARED, make_model, needs_tokenizers
from samples import character_tokenizer

from data.prompts import load_tokenizer
from model.attention import PackedAttention
from rewards.judge import Judgement
from rewards.judge_prompts import GRADE_PROMPT
from rl.judging.judge import CASES, preflight, preflight_warning
from rl.judging.local_judge import GRADES, LocalJudge, chunk_groups, shared_length

TEMPLATE = "Task: {question}\nReference: {reference}\nAnswer: {answer}\nOne digit, 0 to 9."
ITEMS = [
    Judgement("What is 6 * 7?", "42", "42"),
    Judgement("What is 6 * 7?", "42", "It is 42, since 6 * 6 is 36 and one more 6 makes 42."),
    Judgement("Name a fruit.", "apple", "pear {reference}"), Judgement("What is 6 * 7?", "42", "41"),
    Judgement("Name a fruit.", "apple", "a brick"), Judgement("What is 6 * 7?", "forty-two", "42"),
    Judgement("What is 6 * 7?", "42", "42"),
]  # fmt: skip


def make_judge(family: str, dtype=torch.float64, **options) -> LocalJudge:
    tokenizer = character_tokenizer()
    model = make_model(family, dtype, vocab_size=len(tokenizer), num_hidden_layers=2)
    return LocalJudge(model, tokenizer, **{"prompt_template": TEMPLATE, **options})


def scores_of(judge: LocalJudge, items: list[Judgement]) -> list[float | None]:
    futures = [judge.submit(item) for item in items]
    judge.finish()
    return [future.result(timeout=0) for future in futures]


@torch.no_grad()
def score_by_hand(judge: LocalJudge, item: Judgement) -> float:
    """The definition: the whole prompt alone, and a softmax over the ten digits written out."""
    ids = judge.tokenizer.encode(judge.render(item), add_special_tokens=False)
    logits = judge.model.logits(judge.model(torch.tensor([ids])))[0, -1]
    weights = [logits[judge.tokenizer.convert_tokens_to_ids(grade)].exp() for grade in GRADES]
    return float(sum(weight * grade / 9 for grade, weight in enumerate(weights)) / sum(weights))


def test_score_equals_the_definition(family):
    """Bug guarded: the grade read one position off, a suffix that sees another answer, grades mapped in the wrong order."""
    judge = make_judge(family)
    scores = scores_of(judge, ITEMS)
    assert scores == pytest.approx([score_by_hand(judge, item) for item in ITEMS], abs=1e-9, rel=0)
    assert len(set(scores)) == len(ITEMS) - 1, "equal scores prove nothing"


def test_independent_of_company_order_and_chunks(family):
    """Bug guarded: a score that depends on what else was judged, so that a resumed run judges otherwise."""
    judge = make_judge(family)
    wanted = scores_of(judge, ITEMS)
    shuffled = list(range(len(ITEMS)))
    random.Random(0).shuffle(shuffled)
    again = scores_of(judge, [ITEMS[n] for n in shuffled])
    assert again == [wanted[n] for n in shuffled], "another order must give the same bits"
    assert [scores_of(judge, [item])[0] for item in ITEMS] == pytest.approx(wanted, abs=1e-9, rel=0)
    for batch_tokens in (1, 150, 400):
        small = make_judge(family, batch_tokens=batch_tokens)
        assert scores_of(small, ITEMS) == pytest.approx(wanted, abs=1e-9, rel=0)


def test_prompts_are_computed_once_per_question():
    """Bug guarded: a prefix that is not shared, an answer scored twice: a judge as expensive as its longest way."""
    judge, seen = make_judge("qwen3"), []
    forward = judge.model.forward
    judge.model.forward = lambda ids, *rest, **more: seen.append(ids.numel()) or forward(ids, *rest, **more)
    answers = [f"{n} is the answer" for n in range(10, 20)]
    scores_of(judge, [Judgement("Q" * 300, "R", answer) for answer in answers for _ in range(3)])
    assert len(seen) == 1
    assert 300 < seen[0] < 400 + 60 * len(answers)


def test_chunks_hold_every_prompt_and_keep_to_the_limit():
    """Bug guarded: a prompt lost or doubled where a group is cut, a chunk over the memory that was asked for."""
    draw = random.Random(0)
    groups = [{(g,) * 20 + tuple(draw.choices(range(9), k=draw.randint(1, 40))) for _ in range(7)} for g in range(5)]
    groups.append({(9,) * 200})
    for limit in (30, 64, 100, 1000):
        chunks = chunk_groups(groups, limit)
        assert sorted(p for chunk in chunks for part in chunk for p in part) == sorted(p for group in groups for p in group)
        for chunk in chunks:
            tokens = sum(sum(map(len, part)) - shared_length(part) * (len(part) - 1) for part in chunk)
            assert tokens <= limit or sum(map(len, chunk)) == 1


@pytest.mark.parametrize("groups", [[(7, [3, 1, 12]), (1, [1]), (30, [2, 2]), (0, [4, 1])], [(0, [3])]])
def test_packed_attention_equals_the_full_forward(family, groups):
    """Bug guarded: a suffix that attends to a neighbour, a wrong position, padding that is seen."""
    model, generator = make_model(family), torch.Generator().manual_seed(0)
    row, whole = [], []
    for prefix, suffixes in groups:
        first, *rest = (torch.randint(0, 97, (n,), generator=generator) for n in (prefix, *suffixes))
        row += [first, *rest]
        whole += [torch.cat((first, suffix)) for suffix in rest]
    attention = PackedAttention(groups, torch.device("cpu"))
    with torch.no_grad():
        hidden_TE = model(torch.cat(row)[None], attention.positions_1T, cache=attention)[0]
        wanted = [model(ids[None])[0, -1] for ids in whole]
    torch.testing.assert_close(hidden_TE[attention.ends], torch.stack(wanted), atol=1e-9, rtol=0)


def test_flash_layout_names_the_keys_of_each_sequence():
    """Bug guarded: on a GPU, a suffix given another group's prefix or its own keys in the wrong place."""
    attention = PackedAttention([(3, [2, 1]), (0, [1]), (2, [1])], torch.device("cpu"))
    keys, cu_q, cu_k, longest_q, longest_k = attention._flash_layout
    begins = cu_k.tolist()
    sequences = [keys[a:b].tolist() for a, b in pairwise(begins)]
    assert sequences == [[0, 1, 2], [0, 1, 2, 3, 4], [0, 1, 2, 5], [6], [7, 8, 9]]
    assert cu_q.tolist() == [0, 3, 5, 6, 7, 10]
    assert (longest_q, longest_k) == (3, 5)


def test_tokenizers_that_cannot_write_a_grade_are_refused():
    """Bug guarded: p(first half of a grade) taken for a grade, a digit that melts into the prompt, <unk> as a grade."""
    model = make_model("qwen3", vocab_size=128)
    for tokenizer, grade in ((character_tokenizer(["\n0"]), "0"), (character_tokenizer(without="7"), "7")):
        with pytest.raises(ValueError, match=f"grade '{grade}' as one token"):
            LocalJudge(model, tokenizer, prompt_template=TEMPLATE)


def test_templates_without_a_placeholder_are_refused():
    """Bug guarded: a judge that grades every answer without seeing it."""
    for name in ("question", "reference", "answer"):
        with pytest.raises(ValueError, match=name):
            make_judge("qwen3", prompt_template=GRADE_PROMPT.replace(f"{{{name}}}", ""))


def test_stats_and_failures():
    """Bug guarded: NaN from a broken model in a mean, a failure that is not counted, stats that count twice."""
    judge = make_judge("qwen3")
    assert judge.take_stats() == {"judge/calls": 0, "judge/failed": 0}
    judge.finish()
    scores_of(judge, ITEMS)
    assert judge.take_stats() == {"judge/calls": len(ITEMS), "judge/failed": 0}
    long = Judgement("Q", "R", "A" * judge.model.config.max_position_embeddings)
    assert scores_of(judge, [long, ITEMS[0]])[0] is None
    assert f"where the judge reads {judge.model.config.max_position_embeddings}" in judge.last_failure
    judge.model.lm_head.weight.data.fill_(torch.nan)
    assert scores_of(judge, ITEMS[:2]) == [None, None]
    assert "not finite" in judge.last_failure
    assert judge.take_stats() == {"judge/calls": 4, "judge/failed": 3}


def test_a_think_block_that_the_template_opens_is_closed():
    """Bug guarded: a grade read where a thinking model begins to think."""
    template = "{{ messages[0].content }}<assistant><think>\n"
    judge = make_judge("qwen3")
    judge.tokenizer = character_tokenizer(chat_template=template)
    assert judge.render(ITEMS[0]).endswith("<assistant><think>\n\n</think>\n\n")


@needs_tokenizers
@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("qwen2.5", "what lies between.<|im_end|>\n<|im_start|>assistant\n"),
        ("qwen3", "what lies between.<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"),
    ],
)
def test_real_tokenizers(name, ending):
    """Bug guarded: a real template that leaves a think block open, a real vocabulary in which a digit joins its neighbour."""
    tokenizer = load_tokenizer(SHARED / "tokenizers" / name)
    small = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    model = make_model({"qwen2.5": "qwen2"}.get(name, name), torch.float32, vocab_size=len(tokenizer), **small)
    judge = LocalJudge(model, tokenizer, prompt_template=GRADE_PROMPT)
    assert tokenizer.convert_ids_to_tokens(judge.grade_ids_G.tolist()) == list(GRADES)
    assert judge.render(ITEMS[0]).endswith(ending)
    scores = scores_of(judge, ITEMS)
    assert all(0 <= score <= 1 for score in scores)
    assert scores[0] == scores[-1]
    tokenizer.chat_template = None
    plain = LocalJudge(model, tokenizer, prompt_template=GRADE_PROMPT)
    assert plain.render(ITEMS[0]).endswith("what lies between.\n\nGrade:\n")
    assert all(0 <= score <= 1 for score in scores_of(plain, ITEMS))


def warning(rule, last=None) -> str | None:
    """What is said to the user of a judge that gives these scores to answers of each kind; of the last one it may fail."""
    scores = [rule(kind) for kind, _ in CASES]
    return preflight_warning([*scores[:-1], None] if last == "fails" else scores)


def test_preflight_tells_good_judges_from_bad():
    """Bug guarded: training on a judge that likes everything, or nothing, or rolls dice; a good judge refused."""
    draw, good = random.Random(0), {"right": 0.9, "wrong": 0.2, "empty": 0.0}
    assert warning(good.get) is None
    assert warning(good.get, last="fails") is None
    assert warning(lambda kind: min(1, max(0, good[kind] + draw.gauss(0, 0.15)))) is None
    assert all(warning(lambda kind, score=score: score) for score in (0.0, 0.5, 1.0)), "likes all alike"
    assert warning({"right": 0.2, "wrong": 0.9, "empty": 0.2}.get), "turned round"
    assert warning({"right": 1.0, "wrong": 0.0, "empty": 1.0}.get), "pays for saying nothing"
    assert sum(warning(lambda kind: draw.random()) is None for _ in range(400)) < 0.1 * 400
    said = warning({"right": 1.0, "wrong": 0.0}.get)  # no score for an empty one: it is not taken for 0
    assert "2 of 8 failed" in said
    assert said.count("failed ") >= 2
    assert all(item.answer in " ".join(said.split()) for _, item in CASES)
    assert max(map(len, said.splitlines()[:-1])) <= 100, "a line that no terminal shows whole"


def test_preflight_of_a_local_judge(family):
    """Bug guarded: a scorer that only scores at `finish` asked before; calls in the first step's metrics."""
    judge = make_judge(family)
    assert all(0 <= score <= 1 for score in preflight(judge))
    assert judge.take_stats()["judge/calls"] == 0
