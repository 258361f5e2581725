"""From judged groups to what is trained on: which samples, with which advantage.

Shapes: N questions, G responses of each.
"""

import math

import torch

from rl.advantages import group_advantages, spread
from rl.config import Config
from rl.records import Group, Sample

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
    rewards = [[math.nan if s.reward is None else s.reward - s.kl_penalty for s in g.refine_samples] for g in groups]
    rewards_NG = torch.tensor(rewards, dtype=torch.float64)
    valid_NG = ~rewards_NG.isnan()
    advantages_NG = group_advantages(rewards_NG, valid_NG=valid_NG, eps=config.adv_eps, norm=config.adv_norm)
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
