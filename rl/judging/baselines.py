"""r̄ under --plain-policy reference: the scores of the initial policy's plain answers, sampled and judged once a question.

They are kept on disk and reused by later epochs and runs. The policy cannot lower a baseline that it does not write.
"""

from contextlib import AbstractContextManager

from rewards.refine import baseline_accuracy
from rl.distributed import gather
from rl.judging.cache import BaselineCache
from rl.records import Group
from rl.rollout import Rollout
from rl.sampler import Sampler


class ReferenceBaselines:
    """Sets r̄ of groups from the initial policy's plain answers: looked up, or sampled and judged once and kept on disk.

    These answers are not the policy's: they are kept with the scores, and count in no metric but r̄ and `baseline/*`, so that a
    run's metrics do not depend on which questions were in the cache.

    Args:
        sampler: draws from the initial policy.
        weights: context in which its model may be used.
    """

    def __init__(self, cache: BaselineCache, sampler: Sampler, weights: AbstractContextManager) -> None:
        self.cache, self.sampler, self.weights = cache, sampler, weights

    def __call__(self, groups: list[Group], rollout: Rollout) -> dict[str, float]:
        """Set r̄ of this rank's groups, and return `baseline/*`. All ranks call this together."""
        # questions without a cached baseline are answered by the reference, once each
        missing = [group for group in groups if self.cache.get(group.question, group.reference) is None]
        unique = list({(g.question, g.reference): Group(g.example_id, g.question, g.reference) for g in missing}.values())
        count = rollout.config.plain_samples
        asked = [(g, "plain", rollout.request(g.question, "plain", count, ("reference", g.question))) for g in unique]
        if any(gather(bool(asked))):  # all ranks together, or none: the reference is made whole for it
            rollout.sample_and_judge(self.sampler, self.weights, asked)

        # their scores go into the cache of every rank: the next epoch may deal a question to another one
        fresh = {}
        for group in unique:
            answers = [(sample.text, sample.accuracy) for sample in group.plain_samples]
            self.cache.put(group.question, group.reference, answers)
            fresh[group.question, group.reference] = [score for _, score in answers]
        for others in gather(fresh):
            for (question, reference), scores in others.items():
                self.cache.remember(question, reference, scores)

        for group in groups:
            cached = self.cache.get(group.question, group.reference)
            group.baseline = baseline_accuracy(fresh[group.question, group.reference] if cached is None else cached)
        stats = {name.replace("judge/", "baseline/judge_"): value for name, value in rollout.scores.take_stats().items()}
        return stats | {"baseline/sampled": len(unique)}
