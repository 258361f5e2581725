"""Rollouts: where prompts, sampler and rewards meet. Eq. 4-7 are applied here to what was sampled.

For each question G responses with the refine prompt and n with the plain prompt, all in one call of the sampler.
"""

from dataclasses import dataclass, field

from data.examples import Example
from data.prompts import PromptRenderer
from rewards.format import answer_body, plain_answer
from rewards.judge import Judgement, Scorer
from rewards.refine import baseline_accuracy
from rewards.total import needs_baseline, reward_response
from rl.baselines import BaselineCache
from rl.config import Config
from rl.records import Completion, Group, Request, Sample
from rl.sampler import Sampler


@dataclass
class JudgeStats:
    """What happened to the scores of one rollout."""

    calls: int = 0
    failed: int = 0
    empty: int = 0


@dataclass
class Rollout:
    """Collects judged groups for the questions of a step.

    Attributes:
        sampler: draws from the current policy.
        reference_sampler: draws plain answers from the initial policy, for --plain-policy reference; else None.
        baselines: r̄ of questions already answered by the reference; None without a reference sampler.
        judge, baselines_sampled: of the last rollout: its judge calls, and how many r̄ had to be sampled.
    """

    config: Config
    renderer: PromptRenderer
    sampler: Sampler
    scorer: Scorer
    reference_sampler: Sampler | None = None
    baselines: BaselineCache | None = None
    judge: JudgeStats = field(default_factory=JudgeStats)
    baselines_sampled: int = 0

    def collect(self, examples: list[Example], step: int) -> list[Group]:
        """Sample, judge and reward every question of a step; a pure function of weights, questions and (seed, step)."""
        groups = [Group(e.id, e.question, e.reference) for e in examples]
        own_plain = self.config.plain_samples if self.reference_sampler is None else 0
        requests = [self._request(g, "refine", self.config.group_size, step, n) for n, g in enumerate(groups)]
        if own_plain:
            requests += [self._request(g, "plain", own_plain, step, n) for n, g in enumerate(groups)]
        completions = self.sampler.generate(requests)
        for n, group in enumerate(groups):
            group.refine_samples = self._samples(requests[n], completions[n], "refine")
            if own_plain:
                at = len(groups) + n
                group.plain_samples = self._samples(requests[at], completions[at], "plain")
        self.judge = self._judge(groups)
        for group in groups:
            group.baseline = baseline_accuracy([sample.accuracy for sample in group.plain_samples])
        if self.reference_sampler is not None:
            self._take_reference_baselines(groups)
        assign_rewards(groups, self.config)
        return groups

    def _request(self, group: Group, mode: str, count: int, step: int, place: int) -> Request:
        # `place` keeps two visits to one question within a step apart (a data set smaller than a step)
        key = (self.config.seed, mode, step, place, group.example_id)
        return self._prompted(group.question, mode, count, key)

    def _prompted(self, question: str, mode: str, count: int, seed_key) -> Request:
        config = self.config
        return Request(self.renderer.ids(question, mode), count, config.max_new_tokens, config.temperature, seed_key)

    def _samples(self, request: Request, completions: list[Completion], mode: str) -> list[Sample]:
        return [Sample(request.prompt_ids, c, self.renderer.decode(c.text_ids), mode) for c in completions]

    def _judge(self, groups: list[Group]) -> JudgeStats:
        """Eq. 5 for every sample. An answer that is empty scores 0 without a call."""
        stats, asked, items = JudgeStats(), [], []
        for group, sample in [(g, s) for g in groups for s in g.refine_samples + g.plain_samples]:
            answer = judged_text(sample, self.config.judge_sees)
            if not answer:
                sample.accuracy = 0.0
                stats.empty += 1
                continue
            asked.append(sample)
            items.append(Judgement(group.question, group.reference, answer))
        for sample, score in zip(asked, self.scorer.score(items), strict=True):
            sample.accuracy = score
            stats.calls += 1
            stats.failed += score is None
        return stats

    def _take_reference_baselines(self, groups: list[Group]) -> None:
        """r̄ from the initial policy: looked up, or sampled and judged once and kept on disk.

        These answers are not the policy's: they are kept with the scores, and count in no metric but r̄ and `baseline/sampled`,
        so that a run's metrics do not depend on which questions were in the cache.
        """
        missing = [group for group in groups if self.baselines.get(group.question, group.reference) is None]
        unique = list({(g.question, g.reference): Group(g.example_id, g.question, g.reference) for g in missing}.values())
        requests = [self._prompted(g.question, "plain", self.config.plain_samples, ("reference", g.question)) for g in unique]
        completions = self.reference_sampler.generate(requests)
        for group, request, drawn in zip(unique, requests, completions, strict=True):
            group.plain_samples = self._samples(request, drawn, "plain")
        self._judge(unique)
        for group in unique:
            answers = [(sample.text, sample.accuracy) for sample in group.plain_samples]
            self.baselines.put(group.question, group.reference, answers)
        self.baselines_sampled = len(unique)
        for group in groups:
            group.baseline = baseline_accuracy(self.baselines.get(group.question, group.reference))


def judged_text(sample: Sample, judge_sees: str) -> str:
    """The part of a sample that is judged: the answer body of a refine-prompt response, all of a plain one but its thinking."""
    if sample.mode == "plain":
        return plain_answer(sample.text)
    return answer_body(sample.text) if judge_sees == "answer" else sample.text.strip()


def assign_rewards(groups: list[Group], config: Config) -> None:
    """Eq. 4, 6 and 7 for every refine-prompt sample, in place. Without a needed baseline the question is dropped."""
    for group in groups:
        if needs_baseline(config.refine_reward) and group.baseline is None:
            group.dropped = "no baseline"
            continue
        for sample in group.refine_samples:
            if sample.accuracy is None:
                continue
            reward = reward_response(
                sample.text, sample.accuracy, group.baseline, refine_mode=config.refine_reward, zeta=config.zeta
            )
            sample.format, sample.refine, sample.reward = reward.format, reward.refine, reward.total
            sample.refinements = reward.refinements
