"""One step on a GPU: seconds, share of its arithmetic and peak memory of each phase, and the gap between sampler and trainer.

    python benchmarks/one_step.py                                   # Qwen2.5-7B shape, random weights, 8 questions x 8
    python benchmarks/one_step.py --case 3b-8                       # also 0.5b, 1.5b: an update of 7b takes about 122 GB
    python benchmarks/one_step.py --case 7b-32 --micro-batch-tokens 4096 --activation-checkpointing
    OMP_NUM_THREADS=1 python benchmarks/one_step.py --case tiny-4 --device cpu     # to see that it runs

Weights are bfloat16 with their low bits beside them (`--memory exact-bf16`), on a CPU float32. Lengths are forced and rewards
random, so that every sample trains. The share is of a large product of the same dtype, measured in the same run; counted are 2
FLOP a parameter and token forward, 4 backward, 2 more where layers are recomputed, and none of attention's.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.workload import TEMPERATURE, Case, make_case
from rl.advantages import select_samples
from rl.batch import make_minibatches
from rl.config import Config
from rl.logprobs import token_logprobs
from rl.records import Group, Sample
from rl.run.processes import set_up_torch
from rl.sampler import Sampler
from rl.weights.policy import TrainState, make_optimizer
from train import update_policy

SIDE = {"cuda": 8192, "cpu": 1024}  # of the matrices that measure the card
GAPS = ("sampling_logp_difference/mean", "sampling_logp_difference/max", "ratio_outside_10pct")


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Wall time of a call, with everything it started on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def product_speed(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP a second of a large matrix product, the best of several."""
    side = SIDE[device.type]
    a = torch.randn(side, side, device=device).to(dtype)  # a GPU multiplies constants faster than anything real
    return 2 * side**3 / min(seconds(lambda: a @ a, device) for _ in range(8))


class Phases:
    """Runs and times the phases of a step, and prints a line for each."""

    def __init__(self, case: Case) -> None:
        self.device, model = case.model.device, case.model
        self.parameters = sum(p.numel() for p in model.parameters()) - model.model.embed_tokens.weight.numel()
        if model.config.tie_word_embeddings:
            self.parameters += model.model.embed_tokens.weight.numel()  # it is the head, too
        self.speed = product_speed(self.device, model.activation_dtype)
        print(f"{case.name}, {self.parameters / 1e9:.2f} B parameters in products, {self.speed / 1e12:.1f} TFLOP/s")
        print(f"{'phase':24} {'seconds':>8} {'tokens/s':>10} {'share':>7} {'peak GiB':>9}")

    def __call__(self, name: str, function: Callable[[], object], tokens: int, flop_a_parameter: int) -> None:
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        taken = seconds(function, self.device)
        share = flop_a_parameter * self.parameters * tokens / taken / self.speed
        peak = f"{torch.cuda.max_memory_allocated(self.device) / 2**30:9.1f}" if on_gpu else f"{'-':>9}"
        print(f"{name:24} {taken:8.2f} {tokens / taken:10.0f} {share:7.1%} {peak}", flush=True)


def sample_groups(case: Case, phases: Phases) -> list[Group]:
    longest = max(map(len, case.prompts)) + max(case.limits)
    sampler = Sampler(case.model, stop_ids=[case.model.config.vocab_size], max_slots=len(case.limits), max_len=longest)
    drawn = []
    phases("sampling", lambda: drawn.extend(sampler.generate(case.requests)), sum(case.limits), 2)
    rng = random.Random(0)
    return [
        Group(str(n), "", "", [Sample(prompt, c, "", "refine", reward=rng.random()) for c in completions])
        for n, (prompt, completions) in enumerate(zip(case.prompts, drawn, strict=True))
    ]


def run(case: Case, config: Config) -> None:
    device = case.model.device
    phases = Phases(case)
    groups = sample_groups(case, phases)
    samples = select_samples(groups, config)
    tokens = sum(map(len, case.prompts)) + sum(case.limits)  # a prompt once for its group
    (micro_batches,) = make_minibatches(samples, config, 0, device)

    @torch.no_grad()
    def score() -> None:
        for micro in micro_batches:
            token_logprobs(case.model, micro.ids_BT, micro.mask_BT, temperature=TEMPERATURE)

    phases("log-probs", score, tokens, 2)
    case.model.activation_checkpointing = config.activation_checkpointing
    state, metrics = TrainState(case.model.train(), make_optimizer(case.model, config)), {}
    flop = 8 if config.activation_checkpointing else 6
    phases("update, first", lambda: metrics.update(update_policy(state, samples, config, 0)), tokens, flop)
    gaps = {gap: metrics[f"sampling/{gap}"] for gap in GAPS}  # of the weights that sampled
    phases("update", lambda: update_policy(state, samples, config, 0), tokens, flop)
    print("sampler against trainer: " + ", ".join(f"{gap} {value:.2e}" for gap, value in gaps.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="7b-8", help="size-questions, see benchmarks/workload.py (default: 7b-8)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--micro-batch-tokens", type=int, default=8192, help="tokens of one forward and backward")
    parser.add_argument("--activation-checkpointing", action="store_true")
    given = parser.parse_args()
    set_up_torch()
    config = Config(
        temperature=TEMPERATURE, beta=0.0, lr=1e-9, warmup_steps=0, memory="exact-bf16" if given.device == "cuda" else "shard",
        micro_batch_tokens=given.micro_batch_tokens, activation_checkpointing=given.activation_checkpointing,
    )  # fmt: skip
    run(make_case(given.case, device=given.device), config)


if __name__ == "__main__":
    main()
