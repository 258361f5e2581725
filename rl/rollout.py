"""Rollouts: where prompts, sampler and rewards meet. Eq. 4-7 are applied here to what was sampled.

For each question G responses with the refine prompt and n with the plain prompt, all in one call of the sampler. Several ranks
share the questions out among them, and all of them learn everything.
"""

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from data.examples import Example
from data.prompts import PromptRenderer
from rewards.chat_server import JudgeRefusedError
from rewards.format import answer_body, format_reward, parse_response, plain_answer
from rewards.judge import RIGHT, Judgement, Scorer
from rewards.refine import baseline_accuracy, needs_baseline, refinement_reward
from rewards.total import total_reward
from rl.baselines import BaselineCache
from rl.config import Config
from rl.distributed import deal, gather, gather_dealt, shared_fate
from rl.judging import JudgeUnavailable, ScoreBoard, StoppedWhileWaiting
from rl.records import Completion, Group, Request, Sample
from rl.sampler import Sampler
from rl.weight_sync import WholeWeights


@dataclass
class Rollout:
    """Collects judged groups for the questions of a step.

    Attributes:
        sampler: draws from the current policy.
        reference_sampler: draws plain answers from the initial policy, for --plain-policy reference; else None.
        baselines: r̄ of questions already answered by the reference; None without a reference sampler.
        weights, reference_weights, judge_weights: contexts in which the models of sampler, reference sampler and judge may be
            used. Entering one can take all ranks (`WholeWeights`).
        judge_stats: `judge/*` metrics of the last rollout, and `baseline/*`: r̄ that had to be sampled, and their judge calls.
        judge_wait: seconds the last rollout waited for scores alone, on the rank where that was longest.
    """

    config: Config
    renderer: PromptRenderer
    sampler: Sampler
    scorer: Scorer
    reference_sampler: Sampler | None = None
    baselines: BaselineCache | None = None
    weights: WholeWeights | nullcontext = field(default_factory=nullcontext)
    reference_weights: AbstractContextManager = field(default_factory=nullcontext)
    judge_weights: AbstractContextManager = field(default_factory=nullcontext)
    judge_stats: dict[str, float] = field(default_factory=dict)
    judge_wait: float = 0.0

    def collect(self, examples: list[Example], step: int) -> list[Group]:
        """Sample and judge (Eq. 5) every question of a step; a pure function of weights, questions and (seed, step).

        Returns:
            All groups with their r̄, in the order of their questions, on every rank; `assign_rewards` does the rest.

        Raises:
            JudgeUnavailable, JudgeRefusedError: on every rank, wherever it came from.
        """
        self.judge_wait = 0.0
        groups = self._collect_share(deal(list(enumerate(examples))), step)
        waits, stats = zip(*gather((self.judge_wait, self.judge_stats)), strict=True)
        self.judge_wait, self.judge_stats = max(waits), merge_stats(list(stats))
        return gather_dealt(groups)

    @property
    def metrics(self) -> dict[str, float]:
        """Of the last rollout, beside what its samples tell."""
        return self.judge_stats | {"time/judge_wait": self.judge_wait}

    def take_weights(self, version: int) -> None:
        """The policy has changed: what is sampled next is of its weights, and stamped with their version."""
        self.weights.refresh()
        self.sampler.policy_version = version

    def _collect_share(self, examples: list[tuple[int, Example]], step: int) -> list[Group]:
        """`collect` of some questions, each with its place in the step."""
        groups = [Group(e.id, e.question, e.reference) for _, e in examples]
        config = self.config
        kinds = [("refine", config.group_size)]
        if self.reference_sampler is None and config.plain_samples:
            kinds.append(("plain", config.plain_samples))
        placed = [(place, group) for (place, _), group in zip(examples, groups, strict=True)]
        asked = [(g, mode, self._request(g, mode, count, step, n)) for mode, count in kinds for n, g in placed]
        self._sample_and_judge(self.sampler, asked)
        self.judge_stats = self.scorer.take_stats() | {"judge/empty": count_empty(groups, config.judge_sees)}
        for group in groups:
            group.baseline = baseline_accuracy([sample.accuracy for sample in group.plain_samples])
        if self.reference_sampler is not None:
            self._take_reference_baselines(groups)
        return groups

    def _request(self, group: Group, mode: str, count: int, step: int, place: int) -> Request:
        # `place` keeps two visits to one question within a step apart (a data set smaller than a step)
        key = (self.config.seed, mode, step, place, group.example_id)
        return self._prompted(group.question, mode, count, key)

    def _prompted(self, question: str, mode: str, count: int, seed_key) -> Request:
        config = self.config
        return Request(self.renderer.ids(question, mode), count, config.max_new_tokens, config.temperature, seed_key)

    def _sample_and_judge(self, sampler: Sampler, asked: list[tuple[Group, str, Request]]) -> None:
        """Draw every request and score every sample (Eq. 5), each as soon as it ends, while others are still being drawn.

        An answer that is empty scores 0 without a call.
        """
        config = self.config
        weights = self.weights if sampler is self.sampler else self.reference_weights
        board = ScoreBoard(self.scorer, config.judge_max_failures, config.judge_patience)
        drawn: dict[tuple[int, int], Sample] = {}

        def judge(r: int, i: int, completion: Completion) -> None:
            group, mode, request = asked[r]
            sample = make_sample(request, completion, self.renderer.decode(completion.text_ids), mode)
            drawn[r, i] = sample
            if answer := judged_text(sample, config.judge_sees):
                board.submit((r, i), Judgement(group.question, group.reference, answer))

        with shared_fate(StoppedWhileWaiting, JudgeUnavailable, JudgeRefusedError):
            with weights:
                sampler.generate([request for _, _, request in asked], on_finish=judge)
            begin = time.perf_counter()
            with self.judge_weights:
                scores = board.collect()
            self.judge_wait += time.perf_counter() - begin
        for r, i in sorted(drawn):
            sample, (group, mode, _) = drawn[r, i], asked[r]
            sample.accuracy = scores.get((r, i), 0.0)
            (group.refine_samples if mode == "refine" else group.plain_samples).append(sample)

    def _take_reference_baselines(self, groups: list[Group]) -> None:
        """r̄ from the initial policy: looked up, or sampled and judged once and kept on disk.

        These answers are not the policy's: they are kept with the scores, and count in no metric but r̄ and `baseline/*`,
        so that a run's metrics do not depend on which questions were in the cache.
        """
        missing = [group for group in groups if self.baselines.get(group.question, group.reference) is None]
        unique = list({(g.question, g.reference): Group(g.example_id, g.question, g.reference) for g in missing}.values())
        count = self.config.plain_samples
        asked = [(g, "plain", self._prompted(g.question, "plain", count, ("reference", g.question))) for g in unique]
        if any(gather(bool(asked))):  # all ranks together, or none: the reference is made whole for it
            self._sample_and_judge(self.reference_sampler, asked)
        fresh = {}
        for group in unique:
            answers = [(sample.text, sample.accuracy) for sample in group.plain_samples]
            self.baselines.put(group.question, group.reference, answers)
            fresh[group.question, group.reference] = [score for _, score in answers]
        for others in gather(fresh):  # the next epoch may deal a question to another rank
            for (question, reference), scores in others.items():
                self.baselines.remember(question, reference, scores)
        for group in groups:
            known = self.baselines.get(group.question, group.reference)
            group.baseline = baseline_accuracy(fresh[group.question, group.reference] if known is None else known)
        stats = self.scorer.take_stats()
        self.judge_stats |= {name.replace("judge/", "baseline/judge_"): value for name, value in stats.items()}
        self.judge_stats["baseline/sampled"] = len(unique)


def make_sample(request: Request, completion: Completion, text: str, mode: str) -> Sample:
    """A sample with what its text alone tells: Eq. 4 and its refinements, for refine-prompt responses."""
    sample = Sample(request.prompt_ids, completion, text, mode)
    if mode == "refine":
        response = parse_response(text)
        sample.format, sample.refinements = format_reward(text), len(response.refinements) if response else 0
    return sample


def merge_stats(stats: list[dict[str, float]]) -> dict[str, float]:
    """Counts of all ranks added up; of a latency the largest."""
    return {name: (max if "latency" in name else sum)(part[name] for part in stats) for name in stats[0]}


def count_empty(groups: list[Group], judge_sees: str) -> int:
    return sum(not judged_text(sample, judge_sees) for g in groups for sample in g.refine_samples + g.plain_samples)


def judged_text(sample: Sample, judge_sees: str) -> str:
    """The part of a sample that is judged: the answer body of a refine-prompt response, all of a plain one but its thinking."""
    if sample.mode == "plain":
        return plain_answer(sample.text)
    return answer_body(sample.text) if judge_sees == "answer" else sample.text.strip()


def assign_rewards(groups: list[Group], config: Config) -> None:
    """Eq. 6 and 7 for every refine-prompt sample, in place. A question that needs a baseline and has none is dropped."""
    weights = (config.format_weight, config.accuracy_weight, config.refine_weight)
    for group in groups:
        if needs_baseline(config.refine_reward) and group.baseline is None:
            group.dropped = "no baseline"
            continue
        closed = config.gate_refine and not any((s.accuracy or 0.0) >= RIGHT for s in group.refine_samples)
        mode = "none" if closed else config.refine_reward
        for sample in (s for s in group.refine_samples if s.accuracy is not None):
            refined = sample.refinements > 0
            sample.refine = refinement_reward(mode, sample.accuracy, group.baseline, zeta=config.zeta, refined=refined)
            sample.reward = total_reward(sample.format, sample.accuracy, sample.refine, weights)
