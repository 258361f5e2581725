"""The metrics of a rollout: computed by hand, without scores, and the watch over the plain answers."""

import math

import pytest
from samples import GOOD, rollout_config, sample

from data.examples import Example
from rl.advantages import select_samples
from rl.demo import behaviour, trial_metrics
from rl.metrics import SandbaggingWatch, rollout_metrics
from rl.records import Completion, Group, Request
from rl.rollout import assign_rewards, make_sample


def test_sandbagging_is_noticed_and_noise_is_not():
    """Bug guarded: plain answers that fall apart while the reward looks better than ever; an alarm at every other batch."""

    def row(accuracy: float, wellformed: float = 1.0) -> dict:
        return {"pasr/plain_accuracy": accuracy, "pasr/plain_wellformed": wellformed}

    def warnings(steps: list[dict], before: tuple[dict, ...] = (), plain_policy: str = "current") -> list[str | None]:
        watch = SandbaggingWatch(rollout_config(plain_policy=plain_policy, questions_per_step=64), before)
        return [watch.warning(step) for step in steps]

    # a window is 4 steps
    assert not any(warnings([row(0.6 + 0.3 * (-1) ** step) for step in range(40)]))
    *early, last = warnings([row(0.6)] * 8 + [row(0.45)] * 4)
    assert not any(early)
    assert "fell from 0.60 to 0.45" in last
    assert "fell from 0.70" in warnings([row(0.5)] * 4, before=(row(0.7),) * 4)[-1], "measured from the start of the run"
    assert "well formed" in warnings([row(0.6, 0.85)] * 4)[-1]
    assert not any(warnings([{"pasr/plain_wellformed": 1.0}] * 4)), "every plain score failed"
    assert not any(warnings([row(0.6, 0.1)] * 8, plain_policy="reference"))


def test_what_refinements_earn_by_eq_6_whatever_is_paid():
    """Bug guarded: win, tie and loss that are 0, or do not add up, under another refinement reward."""
    config = rollout_config(refine_reward="presence", zeta=0.1, num_plain=8)
    samples = [sample(GOOD, accuracy=a) for a in (1.0, 0.5, 0.45, 0.0, None)] + [sample("?", accuracy=1.0)]
    groups = [Group("a", "q", "8", refine_samples=samples, baseline=0.5)]
    assign_rewards(groups, config)
    metrics = rollout_metrics(groups, config)
    assert [metrics[f"pasr/{name}"] for name in ("win", "tie", "loss")] == [0.25, 0.5, 0.25]
    assert metrics["pasr/wellformed"] == 5 / 6
    groups[0].baseline = None
    assert math.isnan(rollout_metrics(groups, config)["pasr/win"]), "no question has an r̄"


def test_metrics_by_hand():
    """Bug guarded: swapped, negated or undivided metrics, which no run shows."""
    cut = Completion([2, 3, 4], [-1.0] * 3, "length")
    won, tied, lost = (sample(GOOD, accuracy=a) for a in (1.0, 0.5, 0.0))
    plain = [sample("8", "plain", accuracy=1.0), sample("<refine>", "plain", accuracy=0.0)]
    mixed = Group("a", "q", "8", refine_samples=[won, tied, lost], plain_samples=plain, baseline=0.5)
    lost.completion = cut
    equal = Group("b", "q", "8", refine_samples=[sample("?", accuracy=0.0) for _ in range(3)], baseline=0.0)
    for group in (mixed, equal):
        for s in group.refine_samples:
            made = make_sample(Request([1, 1], 1, 9, 1.0, 0), s.completion, s.text, "refine")
            s.format, s.refinements, s.prompt_ids = made.format, made.refinements, made.prompt_ids
    assign_rewards([mixed, equal], rollout_config())
    select_samples([mixed, equal], rollout_config())
    metrics = rollout_metrics([mixed, equal], rollout_config())
    expected = {
        "reward": (3.0 + 1.0 + 0.0 - 3.0) / 6, "frac_reward_zero_std": 0.5, "groups/trained": 1,
        "rewards/format/mean": 0.0, "rewards/accuracy/mean": 1.5 / 6, "rewards/refine/mean": (1 - 0.5 - 1) / 6,
        "completions/mean_length": 8 / 6, "completions/max_length": 3, "completions/clipped_ratio": 1 / 6,
        "completions/num_tokens": 10, "num_tokens": 10 + 12 + 2,
        "pasr/refine_frac": 0.5, "pasr/refine_count": 0.5, "pasr/refined_accuracy": 1.5 / 6, "pasr/plain_accuracy": 0.25,
        "pasr/win": 1 / 3, "pasr/tie": 1 / 3, "pasr/loss": 1 / 3, "pasr/allfail_group_frac": 0.5,
        "pasr/plain_leak": 0.5, "pasr/plain_wellformed": 0.5, "pasr/format_c1": 0.5, "pasr/format_c2": 1.0,
    }  # fmt: skip
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)


def test_refinements_are_counted_by_what_stands_before_them():
    """Bug guarded: the answer, or the refinement itself, taken for the trial that was or was not in need of one."""
    texts = ["<think>6:402><refine>5:335<</refine></think><answer>5</answer>", "<think>5:335<</think><answer>6</answer>"]
    group = Group("a", "397/67", "5", refine_samples=[sample(text) for text in texts])
    assert trial_metrics([group]) == {"pasr/p_refine_wrong": 1.0, "pasr/p_refine_right": 0.0}
    group.refine_samples.pop(0)
    assert math.isnan(trial_metrics([group])["pasr/p_refine_wrong"])


def test_a_step_without_any_score_is_not_a_step_of_zeros():
    """Bug guarded: a judge that is down reads as a collapse of refinement and accuracy."""
    group = Group("a", "q", "8", refine_samples=[sample(GOOD) for _ in range(3)], baseline=0.5)
    for s in group.refine_samples:
        s.format, s.refinements = 1.0, 1
    assign_rewards([group], rollout_config())
    metrics = rollout_metrics([group], rollout_config())
    assert metrics["pasr/refine_frac"] == 1.0
    assert all(math.isnan(metrics[name]) for name in ("reward", "pasr/refined_accuracy", "pasr/allfail_group_frac", "pasr/win"))


def test_behaviour_by_hand():
    """Bug guarded: the demo's headline numbers taken from the wrong trials."""
    question = Example("274/39", "274/39", "7")
    texts = [
        "<think>9:351><refine>7:273<</refine></think><answer>7</answer>",  # wrong, refined, fixed
        "<think>9:351></think><answer>9</answer>",  # wrong, not refined
        "<think>7:273<<refine>8:312<</refine></think><answer>8</answer>",  # right, refined, harmed; the sign of 8 is wrong
        "<think>7:273<</think><answer>7</answer>",  # right, not refined
        "<think>7:273<<refine>7:273<</refine></think><answer>7</answer>",  # right, refined, useless
    ]
    samples = [sample(text, accuracy=float("answer>7" in text)) for text in texts]
    got = behaviour("x", [question] * 5, samples)
    expected = {
        "x/p_refine_wrong": 1 / 3, "x/p_refine_right": 2 / 5, "x/fix_share": 1 / 3, "x/harm_share": 1 / 3,
        "x/useless_share": 1 / 3, "x/check_accuracy": 7 / 8, "x/p_refine_too_big": 1 / 3, "x/p_refine_fits": 2 / 5,
    }  # fmt: skip
    assert got == pytest.approx(expected)
