"""Eq. 2, the group-relative advantage.

Shapes: N questions, G responses of each.
"""

import math

import torch
from torch import Tensor

from rl.config import Config
from rl.records import Group, Sample


def group_advantages(rewards_NG: Tensor, *, valid_NG: Tensor | None = None, eps: float = 1e-4, norm: str = "group") -> Tensor:
    """Eq. 2: A_i = (R_i - mean(R)) / (std(R) + eps), over the responses of one question.

    The standard deviation is the unbiased one. It is computed in float64, and a group whose rewards are all equal gets
    exactly 0: in float32 eight rewards of 0.7 would get advantages made of rounding errors.

    Args:
        rewards_NG: total rewards; entries that are not valid may be NaN.
        valid_NG: which entries count; the others get 0 and are outside mean and std. Default: all.
        eps: floor of the denominator.
        norm: what to divide by: the std of the "group" (the paper), of the whole "batch", or 1 ("none", as Dr. GRPO).

    Returns:
        advantages_NG, in the dtype of the rewards; 0 throughout in groups with fewer than two valid entries.

    Raises:
        ValueError: unknown norm, or a valid reward that is not finite.
    """
    valid_NG = torch.ones_like(rewards_NG, dtype=torch.bool) if valid_NG is None else valid_NG.bool()
    reward_NG = rewards_NG.double().masked_fill(~valid_NG, 0.0)
    if not torch.isfinite(reward_NG).all():
        raise ValueError("a valid reward is not finite; mark entries without a reward in valid_NG")
    count_N1 = valid_NG.sum(1, keepdim=True)
    mean_N1 = reward_NG.sum(1, keepdim=True) / count_N1.clamp(min=1)
    centred_NG = (reward_NG - mean_N1).masked_fill(~valid_NG, 0.0)

    if norm == "group":
        scale = (centred_NG.square().sum(1, keepdim=True) / (count_N1 - 1).clamp(min=1)).sqrt() + eps
    elif norm == "batch":
        scale = reward_NG[valid_NG].std() + eps if valid_NG.sum() > 1 else 1.0
    elif norm == "none":
        scale = 1.0
    else:
        raise ValueError(f"adv_norm must be group, batch or none, got {norm!r}")
    varies_N1 = spread(rewards_NG, valid_NG)[:, None] > 0
    dtype = rewards_NG.dtype if rewards_NG.is_floating_point() else torch.float32
    return torch.where(varies_N1, centred_NG / scale, 0.0).to(dtype)


def spread(rewards_NG: Tensor, valid_NG: Tensor) -> Tensor:
    """max - min of the valid rewards of each question; 0 where fewer than two are valid."""
    highest_N = rewards_NG.masked_fill(~valid_NG, -torch.inf).amax(1)
    lowest_N = rewards_NG.masked_fill(~valid_NG, torch.inf).amin(1)
    return torch.where(valid_NG.sum(1) > 1, highest_N - lowest_N, 0.0)


EQUAL_REWARDS = 1e-4  # a group whose rewards differ by less teaches nothing (released code: the same)


def select_samples(groups: list[Group], config: Config) -> list[Sample]:
    """Decide what is trained on: sets advantages (Eq. 2) and `trained` of the samples, and `dropped` of the groups.

    A group is dropped without a baseline where one is needed, with fewer than two scored responses, or with equal rewards.
    """
    for group in groups:
        for sample in group.refine_samples:
            _refuse_other_distribution(sample, config)
    assign_advantages(groups, config)
    chosen = []
    for group in groups:
        for sample in group.refine_samples:
            cut = config.mask_truncated and sample.completion.finish_reason == "length"
            sample.trained = not group.dropped and sample.reward is not None and not cut
            if sample.trained:
                chosen.append(sample)
            else:
                sample.advantage = 0.0
    return chosen


def assign_advantages(groups: list[Group], config: Config) -> None:
    """Eq. 2 for every group, in place; groups that cannot teach anything are marked as dropped."""
    if not groups:
        return
    rewards = [[math.nan if s.reward is None else s.reward for s in g.refine_samples] for g in groups]
    rewards_NG = torch.tensor(rewards, dtype=torch.float64)
    valid_NG = ~rewards_NG.isnan()
    advantages_NG = group_advantages(rewards_NG, valid_NG=valid_NG, norm=config.adv_norm)
    spread_N = spread(rewards_NG, valid_NG)
    for n, group in enumerate(groups):
        if not group.dropped and valid_NG[n].sum() < 2:
            group.dropped = "too few scores"
        elif not group.dropped and spread_N[n] < EQUAL_REWARDS:
            group.dropped = "equal rewards"
        for g, sample in enumerate(group.refine_samples):
            sample.advantage = 0.0 if group.dropped else float(advantages_NG[n, g])


def _refuse_other_distribution(sample: Sample, config: Config) -> None:
    """Log-probs are those of the policy at --temperature: a sample from anything else would be trained on with wrong ones."""
    drawn = sample.completion
    if (drawn.top_p, drawn.temperature) != (1.0, config.temperature):
        raise ValueError(
            f"a sample was drawn with top_p {drawn.top_p} at temperature {drawn.temperature}: train on samples of the whole "
            f"distribution at --temperature {config.temperature}"
        )
