"""What a rollout batch says about the policy: names follow TRL where it has them, so that runs can be laid over each other."""

import statistics

from rewards.format import has_both_pairs, is_plain_wellformed, keeps_order, refines_inside_think
from rl.config import Config
from rl.records import Group, Sample

WELLFORMED_FLOOR = 0.9  # share of plain answers below which the baseline is not to be trusted
ACCURACY_DROP = 0.1  # fall of plain accuracy since the start that means the same


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def std(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def rollout_metrics(groups: list[Group], config: Config) -> dict[str, float]:
    """Metrics of one rollout batch; every mean over samples leaves out failed scores."""
    samples = [sample for group in groups for sample in group.refine_samples]
    plain = [sample for group in groups for sample in group.plain_samples]
    metrics = _reward_metrics(groups, samples) | _length_metrics(samples) | _pasr_metrics(groups, samples, config)
    if plain:
        metrics["pasr/plain_wellformed"] = mean(is_plain_wellformed(s.text) for s in plain)
        metrics["pasr/plain_leak"] = mean("<refine>" in s.text or "</refine>" in s.text for s in plain)
        metrics["completions/plain_mean_length"] = mean(len(s.completion.ids) for s in plain)
    metrics["num_tokens"] = sum(len(s.completion.ids) for s in samples + plain)
    return metrics


def _reward_metrics(groups: list[Group], samples: list[Sample]) -> dict[str, float]:
    scored = [sample for sample in samples if sample.reward is not None]
    spreads = [[s.reward for s in group.refine_samples if s.reward is not None] for group in groups]
    metrics = {
        "reward": mean(s.reward for s in scored),
        "reward_std": mean(std(rewards) for rewards in spreads if len(rewards) > 1),
        "frac_reward_zero_std": mean(group.dropped == "equal rewards" for group in groups),
        "groups/dropped_no_baseline": sum(group.dropped == "no baseline" for group in groups),
        "groups/dropped_too_few_scores": sum(group.dropped == "too few scores" for group in groups),
        "groups/trained": sum(not group.dropped for group in groups),
    }
    for part in ("format", "accuracy", "refine"):
        values = [getattr(s, part) for s in scored]
        metrics[f"rewards/{part}/mean"], metrics[f"rewards/{part}/std"] = mean(values), std(values)
    return metrics


def _length_metrics(samples: list[Sample]) -> dict[str, float]:
    lengths = [len(sample.completion.ids) for sample in samples]
    return {
        "completions/mean_length": mean(lengths),
        "completions/min_length": min(lengths),
        "completions/max_length": max(lengths),
        "completions/clipped_ratio": mean(s.completion.finish_reason == "length" for s in samples),
    }


def _pasr_metrics(groups: list[Group], samples: list[Sample], config: Config) -> dict[str, float]:
    scored = [sample for sample in samples if sample.accuracy is not None]
    refined = [sample for sample in scored if sample.refinements]
    baselines = [group.baseline for group in groups if group.baseline is not None]
    metrics = {
        "pasr/refine_frac": mean(sample.refinements > 0 for sample in samples),
        "pasr/refine_count": mean(sample.refinements for sample in samples),
        "pasr/refined_accuracy": mean(sample.accuracy for sample in scored),
        "pasr/allfail_group_frac": mean(not any(s.accuracy for s in group.refine_samples) for group in groups),
        "pasr/format_c1": mean(has_both_pairs(sample.text) for sample in samples),
        "pasr/format_c2": mean(refines_inside_think(sample.text) for sample in samples),
        "pasr/format_c3": mean(keeps_order(sample.text) for sample in samples),
    }
    if baselines:
        metrics["pasr/plain_accuracy"] = mean(baselines)
    if config.refine_reward in ("compare", "single"):
        for name, value in (("win", 1.0), ("tie", -0.5), ("loss", -1.0)):
            metrics[f"pasr/{name}"] = mean(sample.refine == value for sample in refined)
    return metrics


class SandbaggingWatch:
    """Notices when plain answers get worse on their own: the baseline then falls, and refinements are paid for nothing.

    Only refine-prompt responses are trained, so nothing holds the plain ones in place. Under --plain-policy reference nothing
    is paid for it, and there is nothing to watch.
    """

    def __init__(self, config: Config, metrics_so_far: list[dict[str, float]]) -> None:
        self.is_on = config.plain_policy == "current"
        self.first_accuracy = metrics_so_far[0].get("pasr/plain_accuracy") if metrics_so_far else None

    def warning(self, metrics: dict[str, float]) -> str | None:
        """A line to print, if the plain answers of this step look sandbagged."""
        if not self.is_on or "pasr/plain_wellformed" not in metrics:
            return None
        accuracy, wellformed = metrics["pasr/plain_accuracy"], metrics["pasr/plain_wellformed"]
        if self.first_accuracy is None:
            self.first_accuracy = accuracy
        if wellformed < WELLFORMED_FLOOR:
            problem = f"only {wellformed:.0%} of the plain answers are well formed"
        elif accuracy < self.first_accuracy - ACCURACY_DROP:
            problem = f"plain accuracy fell from {self.first_accuracy:.2f} to {accuracy:.2f}"
        else:
            return None
        return f"sandbagged baseline? {problem}; rewards for refinements are inflated. Remedy: --plain-policy reference"
