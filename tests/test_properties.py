"""Properties of what text and numbers go through: parser, scores, rewards, advantages. Nothing here needs a model.

The examples are the same in every run (`derandomize`), and none has a deadline.
"""

import math
import random
import re

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import rewarded

from rewards.format import answer_body, format_reward, parse_response, plain_answer
from rewards.judge import parse_score
from rewards.refine import ROUNDING, baseline_accuracy, refine_reward
from rewards.refinements import changes_nothing, mark_refinements
from rl.advantages import group_advantages

thorough = settings(derandomize=True, deadline=None, database=None, max_examples=200)
TAGS = ["<think>", "</think>", "<refine>", "</refine>", "<answer>", "</answer>"]
NEAR_TAGS = ["<Think>", "<think >", "< answer>", "</think", "refine>", "<<answer>>", "<think/>", "<", ">", "</"]
TEXTS = ["a", "42", " ", "\n", "\t\n", "\u00a0", "\u200b", "é😀", "\0", "\\", "&lt;", "<refined>"]


TEXT = f"(?:(?!{'|'.join(TAGS)}).)*"  # without a tag
ORACLE = re.compile(rf"\s*<think>{TEXT}(?:<refine>{TEXT}</refine>{TEXT})*</think>\s*<answer>({TEXT})</answer>\s*", re.DOTALL)


def is_wellformed(text: str) -> bool:
    """The oracle: Eq. 4 as a pattern, with an answer that is not blank."""
    found = ORACLE.fullmatch(text)
    return found is not None and found[1].strip() != ""


def tag_soup(rng: random.Random) -> str:
    """Mostly a well-formed response with a few accidents, sometimes pieces in any order: both verdicts occur often."""
    if rng.random() < 0.3:
        return "".join(rng.choices(TAGS + NEAR_TAGS + TEXTS, k=rng.randint(0, 12)))
    pieces = ["<think>"]
    for _ in range(rng.randint(0, 3)):
        pieces += [rng.choice(TEXTS), "<refine>", rng.choice(TEXTS), "</refine>"]
    pieces += ["</think>", rng.choice([" ", "\n", "", ""]), "<answer>", rng.choice(TEXTS), "</answer>", rng.choice(["", "\n"])]
    for _ in range(rng.choice([0, 0, 1, 1, 2, 3])):
        place, other = rng.randrange(len(pieces)), rng.randrange(len(pieces))
        strange = rng.choice(TAGS + NEAR_TAGS + TEXTS)
        pieces[place] = rng.choice([strange, strange + pieces[place], "", pieces[other]])
    return "".join(pieces)


def check_response(text: str) -> bool:
    """Everything that is promised of a response, whatever it holds; returns whether it is well-formed."""
    wellformed, response = is_wellformed(text), parse_response(text)
    assert format_reward(text) == (1.0 if wellformed else -1.0), repr(text)
    assert (response is not None) == wellformed, repr(text)
    if response is not None:
        assert response.answer
        assert response.answer == answer_body(text)
        assert len(response.refinements) == text.count("<refine>")
        assert not any(tag in part for tag in TAGS for part in (*response.refinements, response.answer))
    mark_refinements(text), changes_nothing(text), plain_answer(text), answer_body(text)
    return wellformed


def test_a_hundred_thousand_tag_strings():
    """Bug guarded: a malformed response that is paid as well-formed, a well-formed one that is not, a parser that raises."""
    rng = random.Random(0)
    wellformed = sum(check_response(tag_soup(rng)) for _ in range(100_000))
    assert 15_000 < wellformed < 60_000, "one verdict alone would prove nothing"


@thorough
@given(st.lists(st.sampled_from(TAGS + NEAR_TAGS + TEXTS) | st.text(max_size=4), max_size=14).map("".join))
def test_any_text_is_read_as_the_grammar_reads_it(text):
    """As above, with any character; a failure is shrunk to its shortest text."""
    check_response(text)
    check_response(f"<think>{text}</think><answer>1</answer>")
    check_response(f"<think>a</think><answer>{text}</answer>")


@thorough
@given(st.text(alphabet="0123456789.eE+-/ \n", max_size=8) | st.text(max_size=8) | st.floats().map(repr))
def test_a_score_is_one_number_from_0_to_1_or_nothing(reply):
    """Bug guarded: "8/10" read as 10, "nan" or "1e3" as a score, a reply that raises."""
    score = parse_score(reply)
    if score is not None:
        assert 0.0 <= score <= 1.0
        assert score == float(reply)
        assert set(reply.strip()) <= set("0123456789.eE+-"), "digits of other scripts, inf, nan, 1_0"
    elif reply.isascii() and reply.strip().replace(".", "", 1).isdigit():
        assert float(reply) > 1


REWARDS = st.floats(-8, 8).map(lambda value: round(value, 3))


@st.composite
def reward_tables(draw):
    """rewards_NG in float64 with NaN where no reward is valid, and valid_NG."""
    questions, group = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    cells = st.lists(st.none() | REWARDS, min_size=group, max_size=group)
    equal = st.just([0.7] * group)
    rows = draw(st.lists(cells | equal, min_size=questions, max_size=questions))
    rewards_NG = torch.tensor([[math.nan if cell is None else cell for cell in row] for row in rows], dtype=torch.float64)
    return rewards_NG, ~rewards_NG.isnan()


@thorough
@given(reward_tables(), st.sampled_from(["group", "batch", "none"]), st.floats(-5, 5), st.randoms(use_true_random=False))
def test_advantages(table, norm, shift, rng):
    """Bug guarded: an invalid entry that counts, an order that matters, advantages that do not add up to 0 or grow with a
    constant, a group of equal rewards that is trained on."""
    rewards_NG, valid_NG = table
    advantages_NG = group_advantages(rewards_NG, valid_NG=valid_NG, norm=norm)
    assert torch.isfinite(advantages_NG).all()
    assert (advantages_NG[~valid_NG] == 0).all()
    torch.testing.assert_close(advantages_NG.sum(1), torch.zeros(len(rewards_NG), dtype=torch.float64), atol=1e-9, rtol=0)
    for row, valid, advantages in zip(rewards_NG, valid_NG, advantages_NG, strict=True):
        known = row[valid]
        if known.unique().numel() < 2:
            assert (advantages == 0).all(), "equal rewards, or fewer than two"
        else:
            assert advantages[valid].argsort(stable=True).tolist() == known.argsort(stable=True).tolist(), "better is more"
        if norm == "group" and known.numel() > 1 and known.unique().numel() > 1:
            spread = float(known.std())
            assert math.isclose(float(advantages[valid].std()), spread / (spread + 1e-4), rel_tol=1e-9)

    order = rng.sample(range(rewards_NG.shape[1]), rewards_NG.shape[1])
    permuted = group_advantages(rewards_NG[:, order], valid_NG=valid_NG[:, order], norm=norm)
    torch.testing.assert_close(permuted, advantages_NG[:, order], atol=1e-9, rtol=1e-9)
    shifted = group_advantages((1000 * rewards_NG).round() / 1000 + round(shift, 3), valid_NG=valid_NG, norm=norm)
    torch.testing.assert_close(shifted, advantages_NG, atol=1e-6, rtol=1e-6)
    garbage = rewards_NG.masked_fill(~valid_NG, 1e300)
    assert torch.equal(group_advantages(garbage, valid_NG=valid_NG, norm=norm), advantages_NG)
    torch.testing.assert_close(  # without a floor the size of the rewards does not matter; with norm "none" it does
        group_advantages(4 * rewards_NG, valid_NG=valid_NG, norm=norm, eps=0.0),
        group_advantages(rewards_NG, valid_NG=valid_NG, norm=norm, eps=0.0) * (4 if norm == "none" else 1),
        atol=1e-9,
        rtol=1e-9,
    )


SCORES = st.integers(0, 20).map(lambda value: value / 20) | st.floats(0, 1)


@thorough
@given(SCORES, SCORES, SCORES, st.sampled_from([0.0, 0.05, 0.1, 0.3, 1.0]))
def test_refinement_reward_is_monotone_and_its_ties_are_closed(accuracy, better, baseline, zeta):
    """Bug guarded: a gap of exactly zeta that is a win by the rounding of a subtraction; a better answer that earns less."""
    accuracy, better = sorted((accuracy, better))
    low, high = (refine_reward(a, baseline, zeta=zeta, refined=True) for a in (accuracy, better))
    assert {low, high} <= {-1.0, -0.5, 1.0}
    assert low <= high
    above, below = (refine_reward(baseline, b, zeta=zeta, refined=True) for b in (accuracy, better))
    assert above >= below, "a higher baseline cannot earn more"
    assert refine_reward(accuracy, baseline, zeta=zeta, refined=False) == 0.0
    for edge in (baseline + zeta, baseline - zeta):
        assert refine_reward(edge, baseline, zeta=zeta, refined=True) == -0.5
    assert refine_reward(baseline + zeta + 3 * ROUNDING, baseline, zeta=zeta, refined=True) == 1.0
    assert refine_reward(baseline - zeta - 3 * ROUNDING, baseline, zeta=zeta, refined=True) == -1.0


@thorough
@given(st.lists(st.none() | st.floats(0, 1), max_size=9), st.randoms(use_true_random=False))
def test_baseline_is_the_mean_of_the_scores_there_are(scores, rng):
    """Bug guarded: a failed score that counts as 0."""
    known = [score for score in scores if score is not None]
    found = baseline_accuracy(scores)
    assert (found is None) == (not known)
    if known:
        assert math.isclose(found, math.fsum(known) / len(known), abs_tol=1e-12)
        assert min(known) - 1e-12 <= found <= max(known) + 1e-12
        assert math.isclose(baseline_accuracy(rng.sample(scores, len(scores))), found, abs_tol=1e-12)


@thorough
@given(
    st.randoms(use_true_random=False).map(tag_soup),
    SCORES,
    SCORES,
    st.sampled_from(["compare", "single", "presence", "none"]),
    st.sampled_from([0, 0.05, 1]),
)
def test_total_reward_is_the_sum_of_its_parts_within_their_ranges(text, accuracy, baseline, mode, zeta):
    """Bug guarded: a malformed response that is paid for refining, a total beyond [-2, 3]."""
    sample = rewarded(text, accuracy, baseline, refine_reward=mode, zeta=zeta)
    assert sample.reward == sample.format + sample.accuracy + sample.refine
    assert -2.0 <= sample.reward <= 3.0
    if not is_wellformed(text) or "<refine>" not in text or mode == "none":
        assert sample.refine == 0.0
    if not is_wellformed(text):
        assert sample.refinements == 0
        assert sample.reward <= 0.0, "a malformed response earns at most what its answer does, less 1"
