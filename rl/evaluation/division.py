"""Evaluation on the embedded task, which tells right from wrong at every trial: whether, when and how a model refines."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from data.division import read_trials
from data.examples import Example
from data.prompts import PromptRenderer
from rewards.accuracy import score_by_rule
from rewards.format import is_plain_wellformed, parse_response
from rl.distributed import deal, gather_dealt
from rl.metrics import mean
from rl.records import Group, Request, Sample
from rl.rollout import judged_text
from rl.run_folder import write_whole
from rl.sampler import Sampler


def mean_or_zero(values) -> float:
    """The mean; 0 where there is nothing to take it of: a share of no answers."""
    values = list(values)
    return sum(values) / len(values) if values else 0.0


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one evaluation, and the answers behind them by "decoding/mode", each {question, text, accuracy, tokens}."""

    metrics: dict[str, float]
    answers: dict[str, list[dict]]

    def save(self, file: Path) -> None:
        file.parent.mkdir(exist_ok=True)
        write_whole(file, json.dumps(asdict(self)) + "\n")

    @classmethod
    def load(cls, file: Path) -> "Evaluation":
        return cls(**json.loads(file.read_text(encoding="utf-8")))


def evaluate_division(sampler: Sampler, renderer: PromptRenderer, examples: list[Example], max_new_tokens: int) -> Evaluation:
    """Answer every question with both prompts, greedily and at T = 1. Several ranks share the questions out among them."""
    metrics: dict[str, float] = {}
    samples: dict[str, list[Sample]] = {}
    for decoding, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        for mode in ("plain", "refine"):
            requests = [
                Request(renderer.ids(e.question, mode), 1, max_new_tokens, temperature, ("evaluation", mode, e.id))
                for e in examples
            ]
            drawn = gather_dealt([completions[0] for completions in sampler.generate(deal(requests))])
            rows = [
                Sample(request.prompt_ids, completion, renderer.decode(completion.text_ids), mode)
                for request, completion in zip(requests, drawn, strict=True)
            ]
            for example, row in zip(examples, rows, strict=True):
                row.accuracy = score_by_rule(judged_text(row, "answer"), example.reference)
            samples[f"{decoding}/{mode}"] = rows
        metrics |= _answer_metrics(decoding, samples)
        metrics |= behaviour(decoding, examples, samples[f"{decoding}/refine"])
    answers = {
        name: [
            {"question": e.question, "text": s.text, "accuracy": s.accuracy, "tokens": len(s.completion.ids)}
            for e, s in zip(examples, rows, strict=True)
        ]
        for name, rows in samples.items()
    }
    return Evaluation(metrics, answers)


def _answer_metrics(decoding: str, samples: dict[str, list[Sample]]) -> dict[str, float]:
    plain, refine = samples[f"{decoding}/plain"], samples[f"{decoding}/refine"]
    parsed = [parse_response(sample.text) for sample in refine]
    return {
        f"{decoding}/plain_accuracy": mean_or_zero(sample.accuracy for sample in plain),
        f"{decoding}/refined_accuracy": mean_or_zero(sample.accuracy for sample in refine),
        f"{decoding}/refine_rate": mean_or_zero(response is not None and response.refinements != () for response in parsed),
        f"{decoding}/wellformed": mean_or_zero(response is not None for response in parsed),
        f"{decoding}/tokens": mean_or_zero(len(sample.completion.ids) for sample in refine),
        f"{decoding}/plain_tokens": mean_or_zero(len(sample.completion.ids) for sample in plain),
        f"{decoding}/plain_wellformed": mean_or_zero(is_plain_wellformed(sample.text) for sample in plain),
        f"{decoding}/plain_leak": mean_or_zero("<refine>" in sample.text for sample in plain),
    }


def behaviour(decoding: str, examples: list[Example], samples: list[Sample]) -> dict[str, float]:
    """Whether, when and how.

    p_refine_wrong, p_refine_right: P(a refinement follows | the trial just written is wrong / right), over all trials.
    p_refine_too_big, p_refine_fits: the same by what the trial's product says, for the check before RL.
    fix, harm, useless share: of the answers that refine, how many went from a wrong first trial to a right answer, from
        right to wrong, or neither.
    check_accuracy: share of trials whose comparison sign is right.
    """
    responses = [read_trials(e.question, s.text) for e, s in zip(examples, samples, strict=True)]
    trials = [trial for response in responses for trial in response]
    refined = [
        (response[0].is_right, sample.accuracy == 1.0)
        for response, sample in zip(responses, samples, strict=True)
        if response and any(trial.refined for trial in response)
    ]
    fix = mean_or_zero(not before and after for before, after in refined)
    harm = mean_or_zero(before and not after for before, after in refined)
    return {
        f"{decoding}/p_refine_wrong": mean_or_zero(trial.refined for trial in trials if not trial.is_right),
        f"{decoding}/p_refine_right": mean_or_zero(trial.refined for trial in trials if trial.is_right),
        f"{decoding}/p_refine_too_big": mean_or_zero(trial.refined for trial in trials if trial.too_big),
        f"{decoding}/p_refine_fits": mean_or_zero(trial.refined for trial in trials if not trial.too_big),
        f"{decoding}/fix_share": fix,
        f"{decoding}/harm_share": harm,
        f"{decoding}/useless_share": 1.0 - fix - harm if refined else 0.0,
        f"{decoding}/check_accuracy": mean_or_zero(trial.check_is_right for trial in trials),
    }


def trial_metrics(groups: list[Group]) -> dict[str, float]:
    """p_refine_wrong and p_refine_right of a rollout batch of the embedded task: known at every step, for nothing."""
    trials = [t for group in groups for sample in group.refine_samples for t in read_trials(group.question, sample.text)]
    return {
        "pasr/p_refine_wrong": mean(trial.refined for trial in trials if not trial.is_right),
        "pasr/p_refine_right": mean(trial.refined for trial in trials if trial.is_right),
    }
