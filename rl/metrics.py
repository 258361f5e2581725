"""Metrics of a step: of its rollout, its update and its time. Names follow TRL where it has them, so that runs overlay."""

import math
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from rewards.format import (
    SKELETON,
    TAG,
    format_reward,
    has_both_pairs,
    keeps_order,
    plain_answer,
    refines_inside_think,
)
from rewards.refine import refine_reward
from rewards.refinements import changes_nothing
from rl.config import Config
from rl.distributed import gather, sum_over_ranks
from rl.records import Group, Sample

WELLFORMED_FLOOR = 0.9  # share of plain answers below which the baseline is not to be trusted
ACCURACY_DROP = 0.1  # fall of plain accuracy since the start that means the same
WINDOW = 256  # questions over which both are averaged


def mean(values) -> float:
    """Return the mean; not a number without values, which metrics.jsonl writes as null."""
    values = list(values)
    return sum(values) / len(values) if values else math.nan


def std(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def rollout_metrics(groups: list[Group], config: Config) -> dict[str, float]:
    """Compute the metrics of one rollout batch. Every mean over samples leaves out failed scores."""
    samples = [sample for group in groups for sample in group.refine_samples]
    plain = [sample for group in groups for sample in group.plain_samples]

    # of the responses to the refine prompt
    lengths = [len(sample.completion.ids) for sample in samples]
    metrics = _reward_metrics(groups, samples) | _pasr_metrics(groups, samples, config)
    metrics["completions/mean_length"] = mean(lengths)
    metrics["completions/min_length"], metrics["completions/max_length"] = min(lengths), max(lengths)
    metrics["completions/clipped_ratio"] = mean(s.completion.finish_reason == "length" for s in samples)

    # of the plain answers
    if plain:
        metrics["pasr/plain_wellformed"] = mean(is_plain_wellformed(s.text) for s in plain)
        metrics["pasr/plain_leak"] = mean("<refine>" in s.text or "</refine>" in s.text for s in plain)
        metrics["completions/plain_mean_length"] = mean(len(s.completion.ids) for s in plain)

    # of both
    metrics["completions/num_tokens"] = sampled = sum(len(s.completion.ids) for s in samples + plain)
    metrics["num_tokens"] = sampled + sum(len(s.prompt_ids) for s in samples + plain)
    return metrics


def _reward_metrics(groups: list[Group], samples: list[Sample]) -> dict[str, float]:
    scored = [sample for sample in samples if sample.reward is not None]
    by_group = [[s.reward for s in group.refine_samples if s.reward is not None] for group in groups]
    metrics = {
        "reward": mean(s.reward for s in scored),
        "reward_std": mean(std(rewards) for rewards in by_group if len(rewards) > 1),
        "frac_reward_zero_std": mean(group.dropped == "equal rewards" for group in groups),
        "groups/dropped_no_baseline": sum(group.dropped == "no baseline" for group in groups),
        "groups/dropped_too_few_scores": sum(group.dropped == "too few scores" for group in groups),
        "groups/trained": sum(not group.dropped for group in groups),
    }
    for part in ("format", "accuracy", "refine"):
        values = [getattr(s, part) for s in scored]  # of the samples that have a total, so that the parts add up to it
        metrics[f"rewards/{part}/mean"], metrics[f"rewards/{part}/std"] = mean(values), std(values)
        metrics[f"rewards/{part}/variance_share"] = variance_share(values, [s.reward for s in scored])
    return metrics


def variance_share(part: list[float], total: list[float]) -> float:
    """Return cov(part, total) / var(total): the share of this part in the differences of rewards. 0 without differences."""
    if len(total) < 2 or statistics.variance(total) == 0:
        return 0.0
    return statistics.covariance(part, total) / statistics.variance(total)


def _pasr_metrics(groups: list[Group], samples: list[Sample], config: Config) -> dict[str, float]:
    scored = [sample for sample in samples if sample.accuracy is not None]
    refined = [sample for sample in scored if sample.refinements]
    by_group = [[s.accuracy for s in group.refine_samples if s.accuracy is not None] for group in groups]
    baselines = [group.baseline for group in groups if group.baseline is not None]

    # behaviour, accuracy and the conditions of Eq. 4
    metrics = {
        "pasr/refine_frac": mean(sample.refinements > 0 for sample in samples),
        "pasr/refine_count": mean(sample.refinements for sample in samples),
        "pasr/refined_accuracy": mean(sample.accuracy for sample in scored),
        "pasr/allfail_group_frac": mean(not any(scores) for scores in by_group if scores),
        "pasr/wellformed": mean(sample.format == 1.0 for sample in samples),
        "pasr/format_c1": mean(has_both_pairs(sample.text) for sample in samples),
        "pasr/format_c2": mean(refines_inside_think(sample.text) for sample in samples),
        "pasr/format_c3": mean(keeps_order(sample.text) for sample in samples),
    }
    metrics["pasr/noop_refine_frac"] = mean(changes_nothing(sample.text) for sample in refined)

    # against the plain answers, as Eq. 6 compares, whatever --refine-reward pays
    if baselines:
        metrics["pasr/plain_accuracy"] = mean(baselines)
    if config.plain_samples:
        outcomes = [
            refine_reward(sample.accuracy, group.baseline, zeta=config.zeta, refined=True)
            for group in groups
            for sample in group.refine_samples
            if group.baseline is not None and sample.accuracy is not None and sample.refinements
        ]
        for name, value in (("win", 1.0), ("tie", -0.5), ("loss", -1.0)):
            metrics[f"pasr/{name}"] = mean(outcome == value for outcome in outcomes)
    return metrics


class SandbaggingWatch:
    """A watch for plain answers that get worse on their own: the baseline falls, and refinements are rewarded for nothing.

    Only refine-prompt responses are trained, so nothing keeps the plain ones as they are. Under --plain-policy reference they
    cannot change, and there is nothing to watch. The first and the last WINDOW questions are compared, because single batches
    differ by more than ACCURACY_DROP.

    Args:
        metrics_so_far: metrics of the earlier steps, when a run is continued.
    """

    def __init__(self, config: Config, metrics_so_far: Iterable[dict[str, float]]) -> None:
        self.is_on = config.plain_policy == "current"
        self.window = max(1, round(WINDOW / config.questions_per_step))  # in steps
        self._accuracy: list[float] = []  # of plain answers, by step
        self._wellformed: list[float] = []
        for metrics in metrics_so_far:
            self.warning(metrics)

    def warning(self, metrics: dict[str, float]) -> str | None:
        """Return a line to print, once a window, if the plain answers look sandbagged. Call it once a step."""
        accuracy, wellformed = metrics.get("pasr/plain_accuracy"), metrics.get("pasr/plain_wellformed")
        if not self.is_on or accuracy is None or wellformed is None:
            return None
        self._accuracy.append(accuracy)
        self._wellformed.append(wellformed)
        if len(self._accuracy) % self.window:
            return None
        first, last = mean(self._accuracy[: self.window]), mean(self._accuracy[-self.window :])
        wellformed = mean(self._wellformed[-self.window :])
        if wellformed < WELLFORMED_FLOOR:
            problem = f"only {wellformed:.0%} of the plain answers are well formed"
        elif last < first - ACCURACY_DROP:
            problem = f"plain accuracy fell from {first:.2f} to {last:.2f}"
        else:
            return None
        return f"sandbagged baseline? {problem}; rewards for refinements are inflated. Remedy: --plain-policy reference"


class UpdateMetrics:
    """The metrics of an update: sums over micro-batches, optimizer steps and ranks, divided at the end.

    Call `add` and `compare` for each micro-batch, `sum_over_ranks` and `count_step` for each optimizer step, `metrics` once.

    Args:
        has_kl: there is a reference, so that `add` gets a KL.
    """

    def __init__(self, *, has_kl: bool) -> None:
        self.has_kl = has_kl
        self._step, self._sums = Counter(), Counter()  # of this rank's current optimizer step; of all steps and ranks
        self._gaps: list[torch.Tensor] = []  # trainer's minus sampler's log-probs

    def add(self, **values: torch.Tensor) -> None:
        """Add the sums of a micro-batch: loss, entropy, tokens, clipped_low, clipped_high and perhaps kl."""
        self._step.update({name: value.item() for name, value in values.items()})

    def compare(self, logp_BT: torch.Tensor, micro) -> None:
        """Keep the differences between the trainer's and the sampler's log-probs under the same weights."""
        if micro.samples:
            self._gaps.append((logp_BT.double() - micro.sampler_logp_BT)[micro.mask_BT].cpu())

    def sum_over_ranks(self) -> float:
        """Close an optimizer step, and return its loss over all ranks."""
        names = ("loss", "entropy", "tokens", "kl", "clipped_low", "clipped_high")
        totals = dict(zip(names, sum_over_ranks([self._step[name] for name in names]), strict=True))
        self._step, loss = Counter(), totals.pop("loss")
        self._sums.update(totals)
        return loss

    def count_step(self, loss: float, grad_norm: float, finite: bool) -> None:
        """Count an optimizer step that was made, or skipped because it was not finite."""
        self._sums.update({"steps": 1, "loss": loss, "grad_norm": grad_norm} if finite else {"skipped": 1})

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the update; none without a step. Every rank must call it."""
        return self._averages() | self._gap_metrics()

    def _averages(self) -> dict[str, float]:
        sums = self._sums
        if not sums:
            return {}
        tokens, steps = max(1.0, sums["tokens"]), sums["steps"] or math.nan  # no loss to report where every step was skipped
        low, high = sums["clipped_low"] / tokens, sums["clipped_high"] / tokens
        return {
            "loss": sums["loss"] / steps,
            "grad_norm": sums["grad_norm"] / steps,
            **({"kl": sums["kl"] / tokens} if self.has_kl else {}),
            "entropy": sums["entropy"] / tokens,
            "clip_ratio/low_mean": low,
            "clip_ratio/high_mean": high,
            "clip_ratio/region_mean": low + high,
            "skipped_steps": sums["skipped"],
            "trained_tokens": sums["tokens"],
        }

    def _gap_metrics(self) -> dict[str, float]:
        gaps = [gap for part in gather(self._gaps) for gap in part]
        if not gaps:
            return {}
        gap, ratio = torch.cat(gaps).abs(), torch.cat(gaps).exp()
        values = {
            "sampling_logp_difference/mean": gap.mean(),
            "sampling_logp_difference/max": gap.max(),
            "importance_sampling_ratio/min": ratio.min(),
            "importance_sampling_ratio/mean": ratio.mean(),
            "importance_sampling_ratio/max": ratio.max(),
            "ratio_outside_10pct": ((ratio - 1).abs() > 0.1).double().mean(),
        }
        return {f"sampling/{name}": value.item() for name, value in values.items()}


class Clock:
    """The seconds of a step by phase: `with clock("rollout"): ...`. The end of a phase waits for the CUDA device."""

    def __init__(self) -> None:
        self.restart()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self._seconds[phase] += time.perf_counter() - begin

    def metrics(self, sampled_tokens: float, trained_tokens: float) -> dict[str, float]:
        """Return time/*, step_time and perf/* since the last call or restart, and start the next step."""
        now = time.perf_counter()
        metrics = {f"time/{phase}": seconds for phase, seconds in self._seconds.items()}
        metrics["step_time"] = now - self._begin
        metrics["perf/rollout_tokens_per_s"] = sampled_tokens / max(self._seconds["rollout"], 1e-9)
        metrics["perf/train_tokens_per_s"] = trained_tokens / max(self._seconds["update"], 1e-9)
        if torch.cuda.is_initialized():
            metrics["perf/peak_mem_gb"] = torch.cuda.max_memory_allocated() / 1e9
            torch.cuda.reset_peak_memory_stats()
        self.restart()
        return metrics

    def restart(self) -> None:
        """Start a step now."""
        self._seconds, self._begin = defaultdict(float), time.perf_counter()


def is_plain_wellformed(text: str) -> bool:
    """Tell if a plain answer is one: not blank, and without tags, or with native thinking before the answer and no refinement.

    Malformed plain answers lower the baseline of Eq. 6 without being worse at the task, so their share is watched.
    """
    if not plain_answer(text) or "<refine>" in text or "</refine>" in text:
        return False
    tags = [match.group() for match in TAG.finditer(text)]
    return tags in ([], SKELETON[:2], SKELETON[1:2]) or format_reward(text) > 0  # some templates open native thinking
