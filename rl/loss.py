"""Eq. 3, the clipped objective with its KL penalty.

Everything is masked before it is exponentiated, so whatever stands in the padding (NaN and infinities included) reaches
neither the loss nor a gradient.

Shapes: B sequences, T tokens.
"""

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0  # exp(20) is 5e8: far outside any trust region, far inside float32


def clipped_surrogate(ratio_BT: Tensor, advantage_B: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """The first term of Eq. 3 for each token: min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), the PPO form.

    The paper prints A min(r, clip(r)), which for A < 0 would take the *less* pessimistic side; its code has this form.
    """
    advantage_B1 = advantage_B[:, None]
    clipped_BT = ratio_BT.clamp(1 - clip_low, 1 + clip_high)
    return torch.minimum(ratio_BT * advantage_B1, clipped_BT * advantage_B1)


def k3_kl(logp_BT: Tensor, ref_logp_BT: Tensor) -> Tensor:
    """The KL estimate of Eq. 3 for each token: k3 = pi_ref / pi - log(pi_ref / pi) - 1, never negative."""
    log_ratio_BT = (ref_logp_BT - logp_BT).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return log_ratio_BT.exp() - log_ratio_BT - 1


def grpo_loss(
    logp_BT: Tensor, old_logp_BT: Tensor, ref_logp_BT: Tensor | None, advantages_B: Tensor, mask_BT: Tensor, *,
    clip_low: float, clip_high: float, beta: float, aggregation: str, denominator: float,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """Eq. 3, negated: the loss of one micro-batch. Micro-batch losses of an optimizer step add up to the loss of the step.

        -J = - sum over samples and tokens of  min(r A, clip(r) A) - beta k3,   aggregated

    Args:
        logp_BT, old_logp_BT, ref_logp_BT: log-probs under policy (with gradient), sampler and reference (None if beta is 0).
        advantages_B: Eq. 2.
        mask_BT: the completion tokens, stop token included.
        clip_low, clip_high, beta: the ratio is clipped to [1 - clip_low, 1 + clip_high]; beta weighs the KL penalty.
        aggregation: "seq": sum of the samples' token means / denominator. "token", "const": sum over tokens / denominator.
        denominator: of the whole optimizer step, over all micro-batches and processes: samples trained on ("seq"),
            their tokens ("token"), samples x max_new_tokens ("const").

    Returns:
        The loss, and sums over tokens of the statistics that the caller averages: tokens, kl, ratio clipped low and high.

    Raises:
        ValueError: unknown aggregation, or beta above 0 without log-probs of the reference.
    """
    if aggregation not in ("seq", "token", "const"):
        raise ValueError(f"unknown aggregation {aggregation!r}: seq, token or const")
    if beta > 0 and ref_logp_BT is None:
        raise ValueError(f"beta is {beta}, but there are no log-probs of the reference")
    mask_BT = mask_BT.bool()
    logp_BT, old_logp_BT = logp_BT.masked_fill(~mask_BT, 0.0), old_logp_BT.masked_fill(~mask_BT, 0.0)

    # min(r A, clip(r) A) of each token
    ratio_BT = (logp_BT - old_logp_BT).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    objective_BT = clipped_surrogate(ratio_BT, advantages_B, clip_low, clip_high)

    # - beta k3
    kl_BT = torch.zeros_like(logp_BT)
    if ref_logp_BT is not None:
        kl_BT = k3_kl(logp_BT, ref_logp_BT.masked_fill(~mask_BT, 0.0))
        objective_BT = objective_BT - beta * kl_BT

    # 1/G sum_i 1/|y'_i| sum_t, or one sum over all tokens
    objective_BT = objective_BT.masked_fill(~mask_BT, 0.0)
    if aggregation == "seq":
        objective_BT = objective_BT / mask_BT.sum(1, keepdim=True).clamp(min=1)  # an empty row has nothing to divide
    stats = {"tokens": mask_BT.sum(), "kl": kl_BT.detach().sum()}
    stats |= clipped_tokens(ratio_BT.detach(), advantages_B, mask_BT, clip_low, clip_high)
    return -objective_BT.sum() / denominator, stats


def clipped_tokens(
    ratio_BT: Tensor, advantages_B: Tensor, mask_BT: Tensor, clip_low: float, clip_high: float
) -> dict[str, Tensor]:
    """Count the tokens without gradient because their ratio is clipped: below (A < 0), and above (A > 0)."""
    negative_B1, positive_B1 = (advantages_B < 0)[:, None], (advantages_B > 0)[:, None]
    low_BT, high_BT = negative_B1 & (ratio_BT < 1 - clip_low), positive_B1 & (ratio_BT > 1 + clip_high)
    return {"clipped_low": (mask_BT & low_BT).sum(), "clipped_high": (mask_BT & high_BT).sum()}
