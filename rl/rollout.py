"""Rollouts: here prompts, sampler and rewards meet, and Eq. 4 to 7 are applied to what was sampled.

For each question G responses with the refine prompt and n with the plain prompt, all in one call of the sampler. Ranks share
the questions out among them, and all of them get all groups.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from data.examples import Example
from data.prompts import PromptRenderer
from rewards.format import answer_body, format_reward, parse_response, plain_answer
from rewards.judge import Judgement, JudgeRefusedError, JudgeUnavailable, StoppedWhileWaiting
from rewards.refine import baseline_accuracy, refinement_reward, total_reward
from rl.config import Config
from rl.distributed import gather, gather_split, merge_stats, raise_on_all_ranks, split_over_ranks
from rl.records import Completion, Group, Request, Sample
from rl.sampler import Sampler

Requests = list[tuple[Group, str, Request]]  # the group that gets the samples, their mode, and what to sample


@dataclass
class Rollout:
    """Collects judged groups for the questions of a step.

    Attributes:
        sampler: draws from the current policy.
        scores: submits answers to the judge and collects their scores (rl/judging/waiting.py).
        weights, judge_weights: contexts in which the models of sampler and judge may be used. Entering one can take all ranks.
        fill_baselines: for --plain-policy reference: sets r̄ of groups from the initial policy's answers; returns metrics.
        judge_stats: `judge/*` metrics of the last rollout, and `baseline/*`: r̄ that had to be sampled, and their judge calls.
        judge_wait: seconds the last rollout waited for scores alone, on the rank where that was longest.
    """

    config: Config
    renderer: PromptRenderer
    sampler: Sampler
    scores: Any
    weights: Any = field(default_factory=nullcontext)
    judge_weights: AbstractContextManager = field(default_factory=nullcontext)
    fill_baselines: Callable[[list[Group], Callable], dict[str, float]] | None = None
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
        groups = self._collect_share(split_over_ranks(list(enumerate(examples))), step)
        waits, stats = zip(*gather((self.judge_wait, self.judge_stats)), strict=True)
        self.judge_wait, self.judge_stats = max(waits), merge_stats(list(stats))
        return gather_split(groups)

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the last rollout, beside what its samples tell."""
        return self.judge_stats | {"time/judge_wait": self.judge_wait}

    def sync_weights(self, version: int) -> None:
        """Hand the policy's new weights to the sampler; what is sampled next is stamped with their version."""
        self.weights.refresh()
        self.sampler.policy_version = version

    def _collect_share(self, examples: list[tuple[int, Example]], step: int) -> list[Group]:
        """Collect some questions, each with its place in the step."""
        config, groups = self.config, [Group(e.id, e.question, e.reference) for _, e in examples]
        kinds = [("refine", config.group_size)]
        if config.plain_samples and self.fill_baselines is None:
            kinds.append(("plain", config.plain_samples))
        requests = []
        for mode, count in kinds:
            for (place, _), group in zip(examples, groups, strict=True):
                # `place` keeps two visits to one question within a step apart (a data set smaller than a step)
                key = (config.seed, mode, step, place, group.example_id)
                requests.append((group, mode, self.request(group.question, mode, count, key)))
        self.sample_and_judge(self.sampler, self.weights, requests)
        self.judge_stats = self.scores.take_stats() | {"judge/empty": count_empty(groups, config.judge_sees)}
        for group in groups:
            group.baseline = baseline_accuracy([sample.accuracy for sample in group.plain_samples])  # r̄
        if self.fill_baselines is not None:
            self.judge_stats |= self.fill_baselines(groups, self)
        return groups

    def request(self, question: str, mode: str, count: int, seed_key) -> Request:
        config = self.config
        return Request(self.renderer.ids(question, mode), count, config.max_new_tokens, config.temperature, seed_key)

    def sample_and_judge(self, sampler: Sampler, weights: AbstractContextManager, requests: Requests) -> None:
        """Draw every request and score every sample (Eq. 5), each as soon as it ends, while others are still being drawn.

        An answer that is empty scores 0 without a call.
        """
        drawn: dict[tuple[int, int], Sample] = {}

        def judge(r: int, i: int, completion: Completion) -> None:
            group, mode, request = requests[r]
            sample = drawn[r, i] = make_sample(request, completion, self.renderer.decode(completion.text_ids), mode)
            if answer := judged_text(sample, self.config.judge_sees):
                self.scores.submit((r, i), Judgement(group.question, group.reference, answer))

        with raise_on_all_ranks(StoppedWhileWaiting, JudgeUnavailable, JudgeRefusedError):
            # y', y ~ pi; finished answers go to the judge at once
            with weights:
                sampler.generate([request for _, _, request in requests], on_finish=judge)

            # the scores that are still missing
            begin = time.perf_counter()
            with self.judge_weights:
                scores = self.scores.collect()
            self.judge_wait += time.perf_counter() - begin
        for r, i in sorted(drawn):
            sample, (group, mode, _) = drawn[r, i], requests[r]
            sample.accuracy = scores.get((r, i), 0.0)
            (group.refine_samples if mode == "refine" else group.plain_samples).append(sample)


def make_sample(request: Request, completion: Completion, text: str, mode: str) -> Sample:
    """Make a sample with what its text alone tells: Eq. 4 and its refinements, for refine-prompt responses."""
    sample = Sample(request.prompt_ids, completion, text, mode)
    if mode == "refine":
        response = parse_response(text)
        sample.format, sample.refinements = format_reward(text), len(response.refinements) if response else 0
    return sample


def judged_text(sample: Sample, judge_sees: str) -> str:
    """Return what is judged of a sample: the answer body of a refine-prompt response, all of a plain one but its thinking."""
    if sample.mode == "plain":
        return plain_answer(sample.text)
    return answer_body(sample.text) if judge_sees == "answer" else sample.text.strip()


def count_empty(groups: list[Group], judge_sees: str) -> int:
    return sum(not judged_text(sample, judge_sees) for g in groups for sample in g.refine_samples + g.plain_samples)


def assign_rewards(groups: list[Group], config: Config) -> None:
    """Set Eq. 6 and 7 of every refine-prompt sample, in place. A question that needs a baseline and has none is dropped."""
    for group in groups:
        if config.needs_baseline and group.baseline is None:
            group.dropped = "no baseline"
            continue
        for sample in (s for s in group.refine_samples if s.accuracy is not None):
            setting = {"zeta": config.zeta, "refined": sample.refinements > 0}
            sample.refine = refinement_reward(config.refine_reward, sample.accuracy, group.baseline, **setting)
            sample.reward = total_reward(sample.format, sample.accuracy, sample.refine)
