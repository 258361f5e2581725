"""The work of two processes, for test_distributed.py: `main` in each of them, with RANK and WORLD_SIZE. Not a test by itself.

They are forked: rewards and reports are as the fixtures of the tests have patched them.
"""

import os
import shutil
import signal
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from conftest import STEPS, flags
from torch.distributed.tensor import DTensor

import rl.run.checkpoint
import train
from data.division import load_split
from data.prompts import PromptRenderer, Prompts, load_tokenizer
from model import Transformer, load_model
from model.checkpoint import save_model
from model.lora import adapter_parameters, add_adapters
from rewards.judge import JudgeUnavailable, RuleScorer
from rl.advantages import select_samples
from rl.config import PRESETS, Config
from rl.distributed import gather, make_mesh, rank, world_size
from rl.judging.cache import BaselineCache, ReferenceBaselines
from rl.judging.waiting import PendingScores
from rl.records import Completion, Group, Sample
from rl.report import write_report
from rl.rollout import Rollout, assign_rewards
from rl.run.processes import process_group
from rl.sampler import Sampler
from rl.weights.policy import TrainState, WholeWeights, make_optimizer
from rl.weights.sharding import load_sharded, whole_weights

CPU = torch.device("cpu")
MODELS = {"tied": torch.float64, "untied": torch.float64, "gentle": torch.float32}
LENGTHS = [(4, 6), (4, 3), (4, 9), (7, 1), (7, 12), (7, 5), (3, 8), (3, 2)]  # prompt and completion
QUESTIONS = load_split(held_out=True)[:5]


def config(**changes) -> Config:
    small = {"max_new_tokens": 12, "group_size": 4, "num_plain": 3, "plain_policy": "current", "max_grad_norm": None}
    return replace(Config(**{**PRESETS["demo"], "preset": "demo"}), **{**small, "temperature": 0.9, **changes})


def load(folder: Path, dtype: torch.dtype, **more):
    """A model to train: sharded over all ranks, or plain where there is only one and nothing is offloaded."""
    if world_size() == 1 and not more:
        return load_model(folder, dtype=dtype)
    return load_sharded(folder, make_mesh(CPU), CPU, dtype=dtype, compute=dtype, **more)


def with_adapters(model: Transformer) -> Transformer:
    """Add adapters to a model, and make them do something."""
    add_adapters(model, 4, 6.0)
    generator = torch.Generator().manual_seed(1)
    for parameter in adapter_parameters(model).values():
        torch.nn.init.normal_(parameter, std=0.05, generator=generator)
    return model


def made_up_groups(rows: list[list[float | None]]) -> list[Group]:
    """Groups of two with given rewards, over the sequences of LENGTHS."""
    generator, groups = torch.Generator().manual_seed(3), []
    lengths = iter(LENGTHS)
    for row in rows:
        samples = []
        for reward in row:
            prompt, completion = (torch.randint(2, 30, (n,), generator=generator).tolist() for n in next(lengths))
            drawn = Completion(completion, [-2.0] * len(completion), "stop", 0.9)
            samples.append(Sample(prompt, drawn, "", "refine", reward=reward))
        groups.append(Group("id", "q", "a", refine_samples=samples))
    return groups


FULL = [[1.0, 2.0], [0.0, 3.0], [2.0, -1.0], [0.5, 1.5]]
UPDATES = {  # name -> rewards, settings
    "8 x 1": (FULL, {"micro_batch_tokens": 1}),
    "2 x 4": (FULL, {"micro_batch_tokens": 40}),
    "1 x 8": (FULL, {"micro_batch_tokens": 10_000}),
    "token": (FULL, {"micro_batch_tokens": 30, "aggregation": "token"}),
    "const": (FULL, {"micro_batch_tokens": 30, "aggregation": "const", "adv_norm": "batch"}),
    "batch norm": (FULL, {"micro_batch_tokens": 30, "adv_norm": "batch"}),
    "three samples": ([[1.0, 2.0], [3.0, None], [0.0, 3.0]], {"micro_batch_tokens": 1}),
    "one sample": (FULL[:1], {"only": 1}),
    "half the groups skipped": ([[1.0, 1.0], [2.0, 2.0], [0.0, 3.0]], {}),
    "all skipped": ([[1.0, 1.0], [None, 2.0]], {}),
    "strong KL": (FULL, {"beta": 0.5, "micro_batch_tokens": 20}),
}


def train_state(policy, chosen: Config, reference=None) -> TrainState:
    return TrainState(policy, make_optimizer(policy, chosen), reference if chosen.beta else None)


def gradients(policy, reference, rewards, settings: dict) -> dict:
    """Whole gradients and metrics of one update, without the optimizer step."""
    settings = dict(settings)
    only = settings.pop("only", None)
    chosen = config(**settings)
    groups = made_up_groups(rewards)
    samples = select_samples(groups, chosen)[:only]
    state, seen = train_state(policy, chosen, reference), {}

    def look() -> None:
        for name, p in policy.named_parameters():
            if p.requires_grad:
                seen[name] = (p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad).clone()

    state.optimizer.step = look
    metrics = train.update_policy(state, samples, chosen, 0)
    del metrics["time/logprob"]
    return {"gradients": seen, "metrics": metrics, "advantages": [s.advantage for s in samples]}


def updates(place: Path) -> dict:
    results = {}
    for model, dtype in MODELS.items():
        policy, reference = load(place / model, dtype), load(place / "reference" / model, dtype).requires_grad_(False)
        for case, (rewards, settings) in UPDATES.items():
            results[model, case] = gradients(policy, reference, rewards, settings)
        policy.activation_checkpointing = True
        results[model, "checkpointing"] = gradients(policy, reference, *UPDATES["8 x 1"])
        adapted = with_adapters(load_model(place / model, dtype=dtype))
        results[model, "adapters"] = gradients(adapted, reference, *UPDATES["8 x 1"])
        offloaded = load(place / model, dtype, offload=True)
        results[model, "offload"] = gradients(offloaded, reference, *UPDATES["8 x 1"])
    return results


def several_steps(place: Path) -> dict:
    """Six optimizer steps, with old log-probs; fp64, and eps-dominated Adam would hide nothing of a wrong gradient."""
    policy, reference = load(place / "untied", torch.float64), load(place / "reference/untied", torch.float64)
    chosen = config(epochs_per_batch=3, minibatches=2, lr=3e-3, micro_batch_tokens=20, max_grad_norm=1.0)
    state, samples = train_state(policy, chosen, reference.requires_grad_(False)), select_samples(made_up_groups(FULL), chosen)
    metrics = train.update_policy(state, samples, chosen, 9)
    del metrics["time/logprob"]
    return {"metrics": metrics, "weights": {name: w.clone() for name, w in whole_weights(policy, torch.float64)}}


def skipped_steps(place: Path) -> dict:
    """A NaN that only one rank computes: all of them have to skip, and in the end to raise."""
    policy = load(place / "untied", torch.float64)
    chosen = config(beta=0.0, micro_batch_tokens=1)
    state, samples = train_state(policy, chosen), select_samples(made_up_groups(FULL), chosen)
    samples[0].advantage = float("nan")
    skipped = [train.update_policy(state, samples, chosen, 0)["skipped_steps"] for _ in range(train.MAX_SKIPPED_IN_A_ROW - 1)]
    with pytest.raises(RuntimeError, match="not finite"):
        train.update_policy(state, samples, chosen, 0)
    return {"skipped": gather(skipped), "steps": gather(state.optimizer_steps)}


class MarkedScorer(RuleScorer):
    """Scores that depend on the answer; on one rank it can be down."""

    is_down = False

    def submit(self, item):
        if self.is_down:
            raise JudgeUnavailable("the judge of this rank is away")
        return super().submit(item)


def rollouts(place: Path) -> dict:
    results, tokenizer = {}, load_tokenizer(place / "task")
    renderer = PromptRenderer(tokenizer, Prompts())
    weights = WholeWeights(load(place / "task", torch.float64))
    reference = WholeWeights(load(place / "reference/task", torch.float64))
    limits = dict(stop_ids=[tokenizer.eos_token_id], max_slots=6, max_len=64)
    sampler, other = Sampler(weights.model, **limits), Sampler(reference.model, **limits)

    def collect(settings: Config, scorer, step: int, questions=QUESTIONS, **more) -> tuple[list[Group], Rollout]:
        rollout = Rollout(settings, renderer, sampler, PendingScores(scorer, 0.05, 0), weights, **more)
        groups = rollout.collect(questions, step)
        assign_rewards(groups, settings)
        return groups, rollout

    for count in (5, 1, 2):
        groups, rollout = collect(config(), RuleScorer(), 4, QUESTIONS[:count])
        results[count] = [[asdict(group) for group in groups], rollout.judge_stats]
    cache = BaselineCache(place / f"baselines_{world_size()}", {"n": 3})
    settings = config(plain_policy="reference")
    for visit in range(2):  # the second time every question is dealt to the other rank
        questions = QUESTIONS[visit:] + QUESTIONS[:visit]
        fill = ReferenceBaselines(cache, other, reference)
        groups, rollout = collect(settings, RuleScorer(), visit, questions, fill_baselines=fill)
        results["reference", visit] = ([g.baseline for g in groups], rollout.judge_stats["baseline/sampled"])
    scorer = MarkedScorer()
    scorer.is_down = rank() == world_size() - 1
    try:
        collect(config(), scorer, 0)
        outcome = "no error"
    except JudgeUnavailable as error:
        outcome = str(error)
    results["judge away"] = gather(outcome)
    results["released"] = sum(p.untyped_storage().size() for p in weights.model.parameters())
    return results


def exported(place: Path) -> None:
    """A sharded model written as a checkpoint folder, in two files."""
    policy = load(place / "untied", torch.float32)
    weights = whole_weights(policy, torch.float32)
    if rank() == 0:
        save_model(policy, None, place / f"exported_{world_size()}", shard_bytes=30_000, weights=weights)
    for _ in weights:
        pass


def run(place: Path, name: str, *more: str, steps: int = STEPS) -> None:
    arguments = flags(place, name, *more)
    arguments[arguments.index("--steps") + 1] = str(steps)
    assert train.main(arguments) == 0
    if rank() == 0 and steps < STEPS:
        (place / "runs" / name / "summary.json").unlink()
    gather(None)


def whole_runs(place: Path) -> dict:
    """Runs of train.py: in one go, stopped and resumed, resumed from one process, offloaded, stopped by a signal."""
    resume = ("--resume", "auto", "--resume-with-changes")
    run(place, "two")
    run(place, "two-two", steps=4)
    if rank() == 0:
        shutil.copytree(place / "runs/two-two", place / "runs/two-one")
    gather(None)
    run(place, "two-two", *resume)
    run(place, "one-two", *resume)
    run(place, "offload", "--memory", "offload")
    run(place, "adapters-two", "--lora-rank", "4")
    run(place, "adapters-one-two", "--lora-rank", "4", *resume)
    stepped, calls = train.optimizer_step, []

    def signalled(*args):
        calls.append(1)
        if len(calls) == 3 and rank() == world_size() - 1:
            signal.raise_signal(signal.SIGUSR1)
        return stepped(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "optimizer_step", signalled)
        patch.setattr(train, "write_report", write_report)  # the other runs do without: it takes longer than they do
        run(place, "signal")
    return {"after signal": gather(len(calls)), "disk full": gather(full_disk(place))}


def full_disk(place: Path) -> str:
    """Return a rank's error when rank 0 cannot write the export, for which all ranks gather the weights."""

    def refuse(*_, **__) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rl.run.checkpoint, "save_model", refuse)
        with pytest.raises(OSError) as error:
            train.main(flags(place, "disk"))
    return str(error.value)


def main(place: Path) -> None:
    """Read the models in `place`, write results.pt there, and end the process."""
    with process_group("cpu", 5):
        results = {"updates": updates(place), "steps": several_steps(place), "skipped": skipped_steps(place)}
        results["rollouts"] = rollouts(place)
        exported(place)
        results |= whole_runs(place)
        if rank() == 0:
            torch.save(results, place / "results.pt")
    sys.stdout.flush()
    os._exit(0)
