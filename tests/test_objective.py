"""Eq. 2 and 3 against hand computations."""

import math

import pytest
import torch

from rl.advantages import group_advantages
from rl.loss import grpo_loss, k3_kl

F64 = torch.float64
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.7, 0.1, -0.1, 1e6, 0.0])
@pytest.mark.parametrize("norm", ["group", "batch", "none"])
def test_equal_rewards_give_exactly_zero(dtype, value, norm):
    """Bug guarded: eight float32 rewards of 0.7 get advantages of rounding noise, up to 0.81 with a floor of 1e-8."""
    rewards = torch.tensor([[value] * 6, [1, 0, 0, 0, 0, 1]], dtype=dtype)  # the mean of six 0.7 is not 0.7
    advantages = group_advantages(rewards, norm=norm, eps=1e-8)
    assert (advantages[0] == 0).all()
    assert (advantages[1] != 0).all()


def test_other_norms():
    rewards = torch.tensor([[0.0, 2.0], [10.0, 10.5]], dtype=F64)
    torch.testing.assert_close(group_advantages(rewards, norm="none"), torch.tensor([[-1.0, 1.0], [-0.25, 0.25]], dtype=F64))
    by_batch = group_advantages(rewards, norm="batch", eps=0.0)
    torch.testing.assert_close(by_batch * rewards.flatten().std(), group_advantages(rewards, norm="none"))
    with pytest.raises(ValueError, match="adv_norm"):
        group_advantages(rewards, norm="std")


def test_k3_is_a_kl_estimate():
    """Bug guarded: policy and reference swapped; a sign."""
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(5, dtype=F64, generator=generator).log_softmax(-1)
    q = torch.randn(5, dtype=F64, generator=generator).log_softmax(-1)
    assert (k3_kl(p, q) >= 0).all()
    torch.testing.assert_close((p.exp() * k3_kl(p, q)).sum(), (p.exp() * (p - q)).sum())


def random_batch(rows=5, columns=9, seed=0):
    """Log-probs of three policies, advantages and ragged masks; one row is empty."""
    generator = torch.Generator().manual_seed(seed)
    logp, old, ref = -torch.rand(3, rows, columns, dtype=F64, generator=generator) * 2
    lengths = torch.tensor([9, 4, 0, 6, 1][:rows])
    columns_T = torch.arange(columns)
    mask = (columns_T >= columns - lengths[:, None]) & (columns_T > 0)
    advantages = torch.randn(rows, dtype=F64, generator=generator)
    return logp.requires_grad_(), old, ref, advantages, mask


OPTIONS = dict(clip_low=0.2, clip_high=0.3, beta=0.04)


def denominators(mask):
    return {"seq": int((mask.sum(1) > 0).sum()), "token": int(mask.sum()), "const": mask.shape[0] * 16}


@pytest.mark.parametrize("aggregation", ["seq", "token", "const"])
def test_loss_by_hand(aggregation):
    """Bug guarded: the whole of Eq. 3, term by term, in plain Python."""
    logp, old, ref, advantages, mask = random_batch()
    denominator = denominators(mask)[aggregation]
    loss, stats = grpo_loss(logp, old, ref, advantages, mask, aggregation=aggregation, denominator=denominator, **OPTIONS)
    total, kl_sum, low, high = 0.0, 0.0, 0, 0
    for b in range(mask.shape[0]):
        terms = []
        for t in mask[b].nonzero()[:, 0].tolist():
            ratio = math.exp(logp[b, t].item() - old[b, t].item())
            a = advantages[b].item()
            k3 = math.exp(ref[b, t].item() - logp[b, t].item()) - (ref[b, t].item() - logp[b, t].item()) - 1
            terms.append(min(ratio * a, min(max(ratio, 0.8), 1.3) * a) - 0.04 * k3)
            kl_sum, low, high = kl_sum + k3, low + (a < 0 and ratio < 0.8), high + (a > 0 and ratio > 1.3)
        total += (sum(terms) / max(1, len(terms))) if aggregation == "seq" else sum(terms)
    assert loss.item() == pytest.approx(-total / denominator, abs=1e-12)
    assert stats["kl"].item() == pytest.approx(kl_sum)
    assert (stats["tokens"].item(), stats["clipped_low"].item(), stats["clipped_high"].item()) == (mask.sum(), low, high)


@pytest.mark.parametrize("aggregation", ["seq", "token", "const"])
@pytest.mark.parametrize("split", [[1, 1, 1, 1, 1], [2, 3], [4, 1]])
def test_micro_batches_add_up(aggregation, split):
    """Bug guarded: a denominator of the micro-batch, by which the loss depends on the device batch size."""
    logp, old, ref, advantages, mask = random_batch()
    options = dict(aggregation=aggregation, denominator=denominators(mask)[aggregation], **OPTIONS)
    whole, _ = grpo_loss(logp, old, ref, advantages, mask, **options)
    (gradient,) = torch.autograd.grad(whole, logp)
    parts = [x.split(split) for x in (logp, old, ref, advantages, mask)]
    summed = sum(grpo_loss(*part, **options)[0] for part in zip(*parts, strict=True))
    torch.testing.assert_close(summed, whole, atol=1e-9, rtol=0)
    torch.testing.assert_close(torch.autograd.grad(summed, logp)[0], gradient, atol=1e-9, rtol=0)


@pytest.mark.parametrize("poison", [NAN, INF, -INF])
def test_padding_cannot_poison(poison):
    """Bug guarded: exp before the mask, 0 * NaN in the sum or in the gradient; an empty row that divides by 0."""
    logp, old, ref, advantages, mask = random_batch()
    options = dict(aggregation="seq", denominator=4, **OPTIONS)
    clean, _ = grpo_loss(logp, old, ref, advantages, mask, **options)
    (gradient,) = torch.autograd.grad(clean, logp)
    dirty_logp = logp.detach().masked_fill(~mask, poison).requires_grad_()
    dirty, stats = grpo_loss(
        dirty_logp, old.masked_fill(~mask, poison), ref.masked_fill(~mask, poison), advantages, mask, **options
    )
    assert dirty == clean
    assert torch.equal(torch.autograd.grad(dirty, dirty_logp)[0], gradient)
    assert all(torch.isfinite(value) for value in stats.values())


def test_huge_ratios_stay_finite():
    """Bug guarded: exp(1000) in a ratio or in k3."""
    logp = torch.tensor([[-1000.0, -0.1]], requires_grad=True)
    other = torch.tensor([[-0.1, -1000.0]])
    loss, _ = grpo_loss(
        logp, other, other, torch.tensor([-1.0]), torch.ones(1, 2), aggregation="token", denominator=2, **OPTIONS
    )
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logp.grad).all()


def test_unknown_aggregation_is_refused():
    logp, old, ref, advantages, mask = random_batch()
    with pytest.raises(ValueError, match="aggregation"):
        grpo_loss(logp, old, ref, advantages, mask, aggregation="mean", denominator=1, **OPTIONS)
