"""From samples to an optimizer step: what is trained, what it is divided by, what is skipped."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from conftest import make_model
from samples import REWARDS, STOP, sampled_groups, train_state, update_config

from rl.advantages import select_samples
from rl.logprobs import token_logprobs
from rl.supervised import supervised_loss
from train import MAX_SKIPPED_IN_A_ROW, update_policy


def gradients(model, groups, settings, reference=None) -> list[torch.Tensor]:
    """Gradients of one update, without the optimizer step: the optimizer is told only to look at them."""
    state, seen = train_state(model, settings, reference), []
    state.optimizer.step = lambda: seen.extend(p.grad.clone() for p in model.parameters())
    update_policy(state, select_samples(groups, settings), settings, step=0)
    assert all(p.grad is None for p in model.parameters()), "gradients are held through the next rollout"
    return seen


@pytest.mark.parametrize("aggregation", ["seq", "token", "const"])
def test_gradient_does_not_depend_on_micro_batches(family, aggregation):
    """Bug guarded: a mean over the micro-batch, by which results change with the memory of the card."""
    settings = update_config(aggregation=aggregation, max_grad_norm=None, beta=0.0)
    groups = sampled_groups(make_model(family), REWARDS)
    whole = gradients(make_model(family), groups, settings)
    for budget in (1, 30, 60):
        parts = gradients(make_model(family), groups, replace(settings, micro_batch_tokens=budget))
        for a, b in zip(whole, parts, strict=True):
            torch.testing.assert_close(a, b, atol=1e-9, rtol=0)


def test_gradient_is_that_of_the_formula():
    """Bug guarded: anything between the rewards and the gradient, against REINFORCE written out over the sampled ids."""
    settings = update_config(aggregation="seq", max_grad_norm=None, beta=0.0)
    groups = sampled_groups(make_model("qwen2"), REWARDS)
    ours = gradients(make_model("qwen2"), groups, settings)
    model, loss = make_model("qwen2"), 0.0
    for group, row in zip(groups, REWARDS, strict=True):
        rewards = torch.tensor(row, dtype=torch.float64)
        advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
        for sample, advantage in zip(group.refine_samples, advantages, strict=True):
            ids = torch.tensor([sample.prompt_ids + sample.completion.ids])
            logp = (model.logits(model(ids)) / 0.9).log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
            loss = loss - advantage * logp[len(sample.prompt_ids) - 1 :].mean() / 12
    loss.backward()
    for a, p in zip(ours, model.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad, atol=1e-9, rtol=1e-7)


def test_supervised_loss_covers_the_stop_token_and_no_prompt():
    model = make_model("qwen3")
    pairs = [([3, 4, 5], [6, 7, STOP]), ([9], [8, STOP])]
    total = 0.0
    for prompt, response in pairs:
        logp = model.logits(model(torch.tensor([prompt + response])))[0].log_softmax(-1)
        total -= sum(logp[len(prompt) - 1 + i, token].item() for i, token in enumerate(response))
    assert supervised_loss(model, pairs).item() == pytest.approx(total / 5, abs=1e-9)


def test_ratio_is_exactly_one_with_a_single_update(family):
    """Bug guarded: clipping and old log-probs that drift although nothing was updated in between."""
    settings = update_config(clip_low=0.0, clip_high=0.0)
    model = make_model(family)
    groups = sampled_groups(model, REWARDS)
    metrics = update_policy(train_state(model, settings, make_model(family)), select_samples(groups, settings), settings, 0)
    assert metrics["clip_ratio/region_mean"] == 0
    assert metrics["kl"] == pytest.approx(0, abs=1e-12)
    assert metrics["sampling/sampling_logp_difference/max"] < 1e-9
    assert metrics["optimizer_steps"] == 1
    assert math.isfinite(metrics["entropy"])


@pytest.mark.parametrize("old", ["trainer", "sampler"])
def test_several_epochs_leave_the_old_policy_in_place(old):
    """Bug guarded: old log-probs taken again in every epoch, so that the ratio never leaves 1."""
    settings = update_config(epochs_per_batch=3, minibatches=2, lr=3e-3, old_logprobs=old)
    model = make_model("qwen2")
    groups = sampled_groups(model, REWARDS)
    metrics = update_policy(train_state(model, settings, make_model("qwen2")), select_samples(groups, settings), settings, 9)
    assert metrics["optimizer_steps"] == 6
    assert metrics["clip_ratio/region_mean"] > 0
    assert metrics["kl"] > 0
    assert metrics["sampling/sampling_logp_difference/max"] < 1e-9, "measured before the first step"


def test_a_step_with_nothing_to_train_on_changes_nothing():
    """Bug guarded: 0/0, or Adam moving weights by old momentum on an empty step."""
    model = make_model("qwen2")
    before = copy.deepcopy(model.state_dict())
    settings = update_config()
    groups = sampled_groups(model, [[1.0] * 4, [None] * 4])
    state = train_state(model, settings, make_model("qwen2"))
    metrics = update_policy(state, select_samples(groups, settings), settings, 0)
    del metrics["time/logprob"]
    assert metrics == {"learning_rate": settings.lr / 5, "optimizer_steps": 0}
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_non_finite_steps_are_skipped_counted_and_then_an_error():
    """Bug guarded: one NaN that turns all weights into NaN, or a run that skips for ever."""
    model = make_model("qwen2")
    settings = update_config(beta=0.0)
    state = train_state(model, settings, None)
    groups = sampled_groups(model, REWARDS)
    samples = select_samples(groups, settings)
    before = copy.deepcopy(model.state_dict())
    samples[0].advantage = float("nan")
    for count in range(1, MAX_SKIPPED_IN_A_ROW):
        assert update_policy(state, samples, settings, 0)["skipped_steps"] == 1
        assert state.skipped_in_a_row == count
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with pytest.raises(RuntimeError, match="not finite"):
        update_policy(state, samples, settings, 0)
    samples[0].advantage = 1.0
    update_policy(state, samples, settings, 0)
    assert state.skipped_in_a_row == 0


def test_gap_between_sampler_and_trainer_is_measured_once_on_every_trained_token():
    """Bug guarded: a gap that reads 0 whatever the sampler did, or that counts some tokens twice and others not at all."""
    for changes in ({}, {"minibatches": 2}, {"minibatches": 2, "old_logprobs": "sampler"}, {"epochs_per_batch": 2}):
        settings, model = update_config(beta=0.0, lr=0.0, **changes), make_model("qwen2")
        groups = sampled_groups(model, REWARDS)
        tokens = sum(len(s.completion.ids) for g in groups for s in g.refine_samples)
        first = groups[0].refine_samples[0]
        shifted = [value - 0.5 for value in first.completion.logprobs]
        first.completion = replace(first.completion, logprobs=shifted)
        metrics = update_policy(train_state(model, settings, None), select_samples(groups, settings), settings, 0)
        assert metrics["sampling/sampling_logp_difference/mean"] == pytest.approx(0.5 * len(shifted) / tokens)
        assert metrics["sampling/sampling_logp_difference/max"] == pytest.approx(0.5)
        assert metrics["sampling/importance_sampling_ratio/max"] == pytest.approx(math.exp(0.5))
        assert metrics["sampling/ratio_outside_10pct"] == pytest.approx(len(shifted) / tokens)


def test_entropy_is_a_mean_over_tokens():
    """Bug guarded: an "entropy" that grows with the batch, or is divided twice."""
    settings, model = update_config(beta=0.0), make_model("qwen2")
    groups = sampled_groups(model, REWARDS)
    metrics = update_policy(train_state(make_model("qwen2"), settings, None), select_samples(groups, settings), settings, 0)
    values = []
    for sample in (s for g in groups for s in g.refine_samples):
        ids = torch.tensor([sample.prompt_ids + sample.completion.ids])
        mask = torch.arange(ids.shape[1])[None] >= len(sample.prompt_ids)
        values += token_logprobs(model, ids, mask, temperature=0.9)[1][mask].tolist()
    assert metrics["entropy"] == pytest.approx(sum(values) / len(values))
