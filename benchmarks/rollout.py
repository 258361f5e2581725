"""Rollout speed: our sampler against Hugging Face `generate` and GRPO-Zero; same weights, prompts and forced lengths.

    OMP_NUM_THREADS=1 python benchmarks/rollout.py --cases tiny-4,tiny-16 --repeats 3
    OMP_NUM_THREADS=1 python benchmarks/rollout.py --cases tiny-4 --profile
    python benchmarks/rollout.py --device cuda                                # a Qwen2.5-7B shape, 64 and 256 slots

Times are process CPU time on one thread, and runs are interleaved (ours, peer, ours, peer, ...): compare ratios within a row,
not seconds between rows or machines. Useful tokens are those up to each row's forced length.
"""

import argparse
import statistics
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.peers import PeerMissing, grpo_zero, hugging_face, hugging_face_greedy
from benchmarks.profiling import profile
from benchmarks.roofline import roofline_table
from benchmarks.workload import LONGEST, Case, calibrate, cpu_time, linears_seconds, make_case
from rl.records import Request
from rl.run.processes import set_up_torch
from rl.sampler import Sampler

CASES = "tiny-4,tiny-16,small-4,small-16,tiny-4-skewed,tiny-16-skewed,small-4-skewed,small-16-skewed,tiny-4-qwen3"
DISTINCT = 0.4  # least share of distinct tokens in greedy text: a model that repeats itself proves nothing
GPU_CASES = "7b-8,7b-32"  # 64 and 256 rows
HEADER = (
    f"{'case':14} {'peer':10} {'ours t/s':>8} {'peer t/s':>8} {'ratio':>6} {'':11} {'ms/step':>8} {'prefill':>7}"
    "   rows      limit     GF  GB/s"
)
LEGEND = """
ratio      useful tokens/s of ours over the peer's: median over the pairs (lowest to highest)
ms/step    CPU time of a decode step, prefill excluded
prefill    share of our time until every row has its first token
rows       useful share of the rows computed: ours, which drops finished rows, against a full batch such as HF's
limit      share of the linears-only limit: the time of the linear layers and the head alone over our row schedule, divided by
           our whole time
GF, GB/s   float32 matrix product and memory copy of this machine just after the row was measured
"""


def ours(case: Case, sampler: Sampler, limits: list[int] | None = None) -> None:
    limits = limits or case.limits
    results = sampler.generate(case.with_limits(limits))
    assert [len(c.ids) for group in results for c in group] == limits, "a stop id was drawn"


def make_sampler(case: Case) -> Sampler:
    never = case.model.config.vocab_size  # an id that no draw gives: lengths are forced by the limits alone
    return Sampler(case.model, stop_ids=[never], max_slots=len(case.limits), max_len=2 * LONGEST)


def check_same_model(case: Case, new_tokens: int = 48) -> str:
    """Greedy text of both engines. float32 rounding may flip a near tie, so a single prompt may differ; not all of them."""
    asked = [Request(prompt, 1, new_tokens, 0.0, 0) for prompt in case.prompts[:4]]
    text = [group[0].ids for group in make_sampler(case).generate(asked)]
    theirs = hugging_face_greedy(Case(case.name, case.model, case.prompts[:4], case.limits), new_tokens)
    same = sum(a == b for a, b in zip(text, theirs, strict=True))
    distinct = statistics.mean(len(set(row)) for row in text)
    assert distinct > DISTINCT * new_tokens, f"degenerate text: {distinct:.0f} distinct tokens of {new_tokens}"
    assert same, "greedy text differs from HF's for every prompt: not the same model"
    return (
        f"{case.name}: greedy text equals HF's in {same} of {len(text)} prompts; {distinct:.0f} distinct of {new_tokens} tokens"
    )


def measure(case: Case, peers: dict, repeats: int, sampler: Sampler) -> list[str]:
    """Table lines of one case, one a peer."""
    useful, steps = sum(case.limits), len(case.schedule)
    computed = useful / (sum(case.schedule) + len(case.limits))  # the first token of each row comes from the prefill
    ours(case, sampler)  # warm-up
    prefill = statistics.median(cpu_time(lambda: ours(case, sampler, [1] * len(case.limits))) for _ in range(3))
    limit = linears_seconds(case.model, case.schedule)
    lines = []
    for name, rollout in peers.items():
        pairs = [(cpu_time(lambda: ours(case, sampler)), cpu_time(rollout)) for _ in range(repeats)]
        mine, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
        ratios = sorted(peer / own for own, peer in pairs)
        gflops, bandwidth = calibrate()
        lines.append(
            f"{case.name:14} {name:10} {useful / mine:8.0f} {useful / theirs:8.0f} {statistics.median(ratios):6.2f} "
            f"({ratios[0]:.2f}-{ratios[-1]:.2f}) {1e3 * (mine - prefill) / steps:8.2f} {prefill / mine:7.0%}   "
            f"{computed:.0%}/{useful / len(case.limits) / max(case.limits):.0%}  {limit / mine:5.0%} "
            f"{gflops:6.0f} {bandwidth:5.1f}"
        )
    return lines


def find_peers(case: Case, grpo_zero_path: str | None) -> dict:
    peers = {}
    for name, make in {"HF": lambda: hugging_face(case), "GRPO-Zero": lambda: grpo_zero(case, grpo_zero_path)}.items():
        try:
            peers[name] = make()
        except PeerMissing as missing:
            print(f"{case.name}: {name} skipped: {missing}", flush=True)
    return peers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", help=f"comma-separated; default {CASES}; with --device cuda {GPU_CASES}")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=3, help="interleaved pairs a row")
    parser.add_argument("--grpo-zero", metavar="PATH", help="a checkout of GRPO-Zero; without it that peer is skipped")
    parser.add_argument("--profile", action="store_true", help="print where the time goes instead of comparing")
    given = parser.parse_args()
    set_up_torch()
    if given.device == "cuda":
        roofline_table((given.cases or GPU_CASES).split(","), given.device)
        return
    torch.set_num_threads(1)
    table = []
    for name in (given.cases or CASES).split(","):
        case = make_case(name)
        sampler = make_sampler(case)
        if given.profile:
            profile(lambda case=case, sampler=sampler: ours(case, sampler), len(case.schedule), case.name)
            continue
        peers = find_peers(case, given.grpo_zero)
        if "HF" in peers:
            print(check_same_model(case), flush=True)
        table += (lines := measure(case, peers, given.repeats, sampler))
        print("\n".join([HEADER, *lines]), flush=True)
    if len(table) > 1:
        print("\n".join(["", HEADER, *table]))
    if not given.profile:
        print(LEGEND)


if __name__ == "__main__":
    main()
