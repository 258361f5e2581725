"""Eq. 2, the group-relative advantage, and which samples are trained on.

Shapes: N questions, G responses of each.
"""

import math

import torch
from torch import Tensor

from rl.config import Config
from rl.records import Group, Sample

EQUAL_REWARDS = 1e-4  # a group whose rewards differ by less teaches nothing (released code: the same)


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

    # R - mean(R)
    count_N1 = valid_NG.sum(1, keepdim=True)
    mean_N1 = reward_NG.sum(1, keepdim=True) / count_N1.clamp(min=1)
    centred_NG = (reward_NG - mean_N1).masked_fill(~valid_NG, 0.0)

    # / (std(R) + eps)
    if norm == "group":
        scale = (centred_NG.square().sum(1, keepdim=True) / (count_N1 - 1).clamp(min=1)).sqrt() + eps
    elif norm == "batch":
        scale = reward_NG[valid_NG].std() + eps if valid_NG.sum() > 1 else 1.0
    elif norm == "none":
        scale = 1.0
    else:
        raise ValueError(f"adv_norm must be group, batch or none, got {norm!r}")
    varies_N1 = spread_of_rewards(rewards_NG, valid_NG)[:, None] > 0
    dtype = rewards_NG.dtype if rewards_NG.is_floating_point() else torch.float32
    return torch.where(varies_N1, centred_NG / scale, 0.0).to(dtype)


def spread_of_rewards(rewards_NG: Tensor, valid_NG: Tensor) -> Tensor:
    """Compute max - min of the valid rewards of each question; 0 where fewer than two are valid."""
    highest_N = rewards_NG.masked_fill(~valid_NG, -torch.inf).amax(1)
    lowest_N = rewards_NG.masked_fill(~valid_NG, torch.inf).amin(1)
    return torch.where(valid_NG.sum(1) > 1, highest_N - lowest_N, 0.0)


def select_samples(groups: list[Group], config: Config) -> list[Sample]:
    """Decide what is trained on: set advantages (Eq. 2) and `trained` of the samples, and `dropped` of the groups, in place.

    A group is dropped without a baseline where one is needed, with fewer than two scored responses, or with equal rewards.

    Raises:
        ValueError: a sample of another distribution than the policy's at --temperature: its log-probs would be wrong ones.
    """
    if not groups:
        return []
    rewards = [[math.nan if s.reward is None else s.reward for s in g.refine_samples] for g in groups]
    rewards_NG = torch.tensor(rewards, dtype=torch.float64)
    valid_NG = ~rewards_NG.isnan()
    advantages_NG = group_advantages(rewards_NG, valid_NG=valid_NG, norm=config.adv_norm)
    chosen = []
    for n, (group, spread) in enumerate(zip(groups, spread_of_rewards(rewards_NG, valid_NG).tolist(), strict=True)):
        # groups that cannot teach anything
        if not group.dropped and valid_NG[n].sum() < 2:
            group.dropped = "too few scores"
        elif not group.dropped and spread < EQUAL_REWARDS:
            group.dropped = "equal rewards"

        # responses with a score, cut off ones only if they are not masked
        for sample, advantage in zip(group.refine_samples, advantages_NG[n].tolist(), strict=True):
            drawn = sample.completion
            if (drawn.top_p, drawn.temperature) != (1.0, config.temperature):
                raise ValueError(
                    f"a sample was drawn with top_p {drawn.top_p} at temperature {drawn.temperature}: train on samples of the "
                    f"whole distribution at --temperature {config.temperature}"
                )
            is_masked = config.mask_truncated and drawn.finish_reason == "length"
            sample.trained = not group.dropped and sample.reward is not None and not is_masked
            sample.advantage = advantage if sample.trained else 0.0
            chosen += [sample] * sample.trained
    return chosen
