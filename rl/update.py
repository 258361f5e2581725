"""From a selection of samples to better weights: log-probs, Eq. 3, optimizer steps.

Shapes: B sequences, T tokens.
"""

import math
import time
from collections import defaultdict

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from model.transformer import Transformer
from rl.batch import MicroBatch, denominator, make_dummy, make_minibatches
from rl.config import Config
from rl.distributed import gather, rank, sum_over_ranks, world_size
from rl.logprobs import shared_prompt_logprobs
from rl.loss import grpo_loss
from rl.memory.exact_bf16 import ExactBF16AdamW
from rl.optim import adamw, create_state, lr_factor, set_lr
from rl.records import Group, Sample
from rl.selection import assign_advantages

MAX_SKIPPED_IN_A_ROW = 5
STATISTICS = ("loss", "entropy", "tokens", "kl", "clipped_low", "clipped_high")  # summed over micro-batches and ranks


class Updater:
    """Owns the optimizer of a policy.

    Args:
        policy: float32 masters; updated in place.
        reference: the frozen initial policy, or None when beta is 0. Either may be sharded.
        optimizer: of the policy's parameters; default AdamW.

    Attributes:
        optimizer_steps: taken so far; the version of the policy.
        skipped_in_a_row: non-finite steps since the last good one.
    """

    def __init__(
        self,
        policy: Transformer,
        reference: Transformer | None,
        config: Config,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        self.policy, self.reference, self.config = policy, reference, config
        self.optimizer = optimizer or make_optimizer(policy, config)
        self.optimizer_steps = 0
        self.skipped_in_a_row = 0

    def update(self, samples: list[Sample], groups: list[Group], step: int) -> dict[str, float]:
        """One rollout batch: `epochs_per_batch` passes over `minibatches` optimizer steps.

        Args:
            samples: those to train on (`select_samples`); all ranks have all of them, and each computes its share.
            groups: all groups of the step; their advantages are set anew when the KL penalty is part of the reward.
            step: decides the learning rate and the deal into minibatches.

        Returns:
            Metrics; without samples no optimizer step is made, and loss, gradient and log-probs are not reported.

        Raises:
            RuntimeError: several steps in a row had a loss or gradient that is not finite.
        """
        config = self.config
        factor = lr_factor(
            step,
            warmup_steps=config.warmup_steps,
            total_steps=config.steps,
            schedule=config.lr_schedule,
            decay_share=config.lr_decay_share,
        )
        set_lr(self.optimizer, config.lr * factor)
        sums: dict[str, float] = defaultdict(float)
        gap = SamplerGap()
        minibatches = self._share(samples, step)  # none without samples
        begin = time.perf_counter()
        self._score_old_and_reference(minibatches, gap)
        logprob_time = time.perf_counter() - begin
        if config.kl_estimator == "k1-reward":
            set_kl_penalties(minibatches, samples, config)
            assign_advantages(groups, config)
        for _ in range(config.epochs_per_batch):
            for micro_batches in minibatches:
                self._optimizer_step(micro_batches, sums, gap)
        metrics = {"learning_rate": config.lr * factor, "optimizer_steps": self.optimizer_steps}
        return metrics | {"time/logprob": logprob_time} | _averages(sums, config.beta) | gap.metrics()

    def _share(self, samples: list[Sample], step: int) -> list[list[MicroBatch]]:
        """This rank's micro-batches, of every minibatch as many as the rank with most has."""
        device, ranks = self.policy.device, world_size()
        minibatches = make_minibatches(samples, self.config, step, device, rank=rank(), ranks=ranks)
        most = [max(counts) for counts in zip(*gather([len(part) for part in minibatches]), strict=True)]
        return [part + [make_dummy(device) for _ in range(len(part), n)] for part, n in zip(minibatches, most, strict=True)]

    def _score_old_and_reference(self, minibatches: list[list[MicroBatch]], gap: "SamplerGap") -> None:
        """Log-probs that stay fixed during the update. With a single optimizer step the old ones are the policy's own."""
        config = self.config
        single_step = config.epochs_per_batch * len(minibatches) == 1
        with torch.no_grad():
            for micro in (micro for part in minibatches for micro in part):
                if not single_step or config.kl_estimator == "k1-reward":
                    micro.old_logp_BT, _ = self._logprobs(self.policy, micro)
                    gap.add(micro.old_logp_BT, micro)
                    gap.is_complete = True
                if config.old_logprobs == "sampler":
                    micro.old_logp_BT = micro.sampler_logp_BT
                if config.beta > 0:
                    micro.ref_logp_BT, _ = self._logprobs(self.reference, micro)

    def _logprobs(self, model: Transformer, micro: MicroBatch) -> tuple[Tensor, Tensor]:
        return shared_prompt_logprobs(model, micro.ids_BT, micro.mask_BT, temperature=self.config.temperature)

    def _optimizer_step(self, micro_batches: list[MicroBatch], sums: dict[str, float], gap: "SamplerGap") -> None:
        config = self.config
        (divide_by,) = sum_over_ranks([denominator(micro_batches, config)])
        totals = dict.fromkeys(STATISTICS, 0.0)
        if isinstance(self.optimizer, ExactBF16AdamW):
            self.optimizer.prepare_gradients()
        for micro in micro_batches:
            logp_BT, entropy_BT = self._logprobs(self.policy, micro)
            if not micro.samples:
                (logp_BT.sum() * 0.0).backward()  # takes part in the collectives and adds nothing
                continue
            if not gap.is_complete:
                gap.add(logp_BT.detach(), micro)
            old_logp_BT = logp_BT.detach() if micro.old_logp_BT is None else micro.old_logp_BT
            loss, stats = grpo_loss(
                logp_BT,
                old_logp_BT.to(logp_BT.dtype),
                micro.ref_logp_BT,
                micro.advantages_B.to(logp_BT.dtype),
                micro.mask_BT,
                clip_low=config.clip_low,
                clip_high=config.clip_high,
                beta=config.beta,
                aggregation=config.aggregation,
                denominator=divide_by,
                kl_estimator=config.kl_estimator,
                weight_BT=importance_weight(old_logp_BT, micro.sampler_logp_BT, config.importance_cap),
            )
            (loss * world_size()).backward()  # sharded gradients are averaged over ranks; the denominator is of all of them
            for name, value in {**stats, "loss": loss, "entropy": entropy_BT.sum()}.items():
                totals[name] += value.item()
        totals = dict(zip(totals, sum_over_ranks(list(totals.values())), strict=True))
        step_loss = totals.pop("loss")
        for name, total in totals.items():
            sums[name] += total
        self._apply(step_loss, sums)

    def _apply(self, loss: float, sums: dict[str, float]) -> None:
        """Clip and step; a loss or gradient that is not finite is skipped and counted."""
        limit = math.inf if self.config.max_grad_norm is None else self.config.max_grad_norm
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), limit)
        norm = (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()
        is_finite = math.isfinite(loss) and math.isfinite(norm)
        if is_finite:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)  # 4 bytes a parameter that the next rollout can use
        if not is_finite:
            self.skipped_in_a_row += 1
            sums["skipped"] += 1
            if self.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
                raise RuntimeError(
                    f"{self.skipped_in_a_row} optimizer steps in a row had a loss ({loss}) or gradient norm ({norm}) that is "
                    "not finite. Look at `entropy`, `kl` and `sampling/*` in metrics.jsonl before this step; a smaller --lr, "
                    "a larger --beta or --max-grad-norm 1.0 are the usual remedies. The weights are those of the last good step"
                )
            return
        self.skipped_in_a_row = 0
        self.optimizer_steps += 1
        sums["steps"] += 1
        sums["loss"] += loss
        sums["grad_norm"] += norm


def make_optimizer(policy: Transformer, config: Config) -> torch.optim.Optimizer:
    """AdamW on float32 masters; with --memory exact-bf16 the policy's weights become bfloat16 here, in place."""
    setting = dict(lr=config.lr, betas=(config.adam_beta1, config.adam_beta2), weight_decay=config.weight_decay)
    if config.memory == "exact-bf16":
        return ExactBF16AdamW(policy.parameters(), **setting)
    optimizer = adamw(policy.parameters(), **setting)
    create_state(optimizer)
    return optimizer


class SamplerGap:
    """How far the sampler's log-probs are from the trainer's of the same weights, over all trained tokens of a step."""

    def __init__(self) -> None:
        self.is_complete = False
        self._differences: list[Tensor] = []

    def add(self, logp_BT: Tensor, micro: MicroBatch) -> None:
        if micro.samples:
            self._differences.append((logp_BT.double() - micro.sampler_logp_BT)[micro.mask_BT].cpu())

    def metrics(self) -> dict[str, float]:
        differences = [difference for part in gather(self._differences) for difference in part]
        if not differences:
            return {}
        difference = torch.cat(differences)
        ratio = difference.exp()
        return {
            "sampling/sampling_logp_difference/mean": difference.abs().mean().item(),
            "sampling/sampling_logp_difference/max": difference.abs().max().item(),
            "sampling/importance_sampling_ratio/min": ratio.min().item(),
            "sampling/importance_sampling_ratio/mean": ratio.mean().item(),
            "sampling/importance_sampling_ratio/max": ratio.max().item(),
            "sampling/ratio_outside_10pct": ((ratio - 1).abs() > 0.1).double().mean().item(),
        }


def importance_weight(trainer_logp_BT: Tensor, sampler_logp_BT: Tensor, cap: float) -> Tensor | None:
    """min(pi_trainer / pi_sampler, cap) of each token, for a sampler that is not quite the policy. None if cap is 0."""
    if cap == 0:
        return None
    return (trainer_logp_BT - sampler_logp_BT).exp().clamp(max=cap).to(trainer_logp_BT.dtype)


def set_kl_penalties(minibatches: list[list[MicroBatch]], samples: list[Sample], config: Config) -> None:
    """KL in the reward instead of the loss: Eq. 2 is then taken of R - beta sum_t log(pi_old / pi_ref).

    Args:
        samples: of all ranks; one rank's micro-batches hold a share of them.
    """
    for micro in (micro for part in minibatches for micro in part if micro.samples):
        k1_B = (micro.old_logp_BT - micro.ref_logp_BT).masked_fill(~micro.mask_BT, 0.0).sum(1)
        for sample, k1 in zip(micro.samples, k1_B.tolist(), strict=True):
            sample.kl_penalty = config.beta * k1
    for sample, penalty in zip(samples, sum_over_ranks([sample.kl_penalty for sample in samples]), strict=True):
        sample.kl_penalty = penalty


def _averages(sums: dict[str, float], beta: float) -> dict[str, float]:
    """Sums over the tokens and optimizer steps of a rollout batch -> the metrics of that batch."""
    if not sums:
        return {}
    tokens, steps = max(1.0, sums["tokens"]), sums["steps"] or math.nan  # no loss to report where every step was skipped
    low, high = sums["clipped_low"] / tokens, sums["clipped_high"] / tokens
    return {
        "loss": sums["loss"] / steps,
        "grad_norm": sums["grad_norm"] / steps,
        **({"kl": sums["kl"] / tokens} if beta > 0 else {}),
        "entropy": sums["entropy"] / tokens,
        "clip_ratio/low_mean": low,
        "clip_ratio/high_mean": high,
        "clip_ratio/region_mean": low + high,
        "skipped_steps": sums["skipped"],
        "trained_tokens": sums["tokens"],
    }
