"""Rollout speed: our sampler against Hugging Face `generate` and GRPO-Zero; same weights, prompts and forced lengths.

    OMP_NUM_THREADS=1 python benchmarks/rollout.py --cases tiny-4,tiny-16 --repeats 3
    OMP_NUM_THREADS=1 python benchmarks/rollout.py --cases tiny-4 --profile

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
from benchmarks.workload import LONGEST, Case, calibrate, cpu_time, linears_seconds, make_case
from rl.records import Request
from rl.sampler import Sampler

CASES = "tiny-4,tiny-16,small-4,small-16,tiny-4-skewed,tiny-4-qwen3"
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
    """Greedy text of both engines, compared up to the first difference (float32 rounding may flip a near tie)."""
    asked = [Request(prompt, 1, new_tokens, 0.0, 0) for prompt in case.prompts[:4]]
    text = [group[0].ids for group in make_sampler(case).generate(asked)]
    theirs = hugging_face_greedy(Case(case.name, case.model, case.prompts[:4], case.limits), new_tokens)
    same = sum(a == b for a, b in zip(text, theirs, strict=True))
    distinct = statistics.mean(len(set(row)) for row in text)
    return (
        f"{case.name}: greedy text equals HF's in {same} of {len(text)} prompts; {distinct:.0f} distinct of {new_tokens} tokens"
    )


def measure(case: Case, peers: dict, repeats: int, sampler: Sampler) -> list[str]:
    """Table lines of one case, one a peer."""
    useful, steps = sum(case.limits), len(case.schedule)
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
            f"{1:.0%}/{useful / len(case.limits) / max(case.limits):.0%}  {limit / mine:5.0%} "
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


def profile(case: Case, sampler: Sampler) -> None:
    """Where a rollout's time goes: own CPU time of the operators, most expensive first; one profiled run."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    ours(case, sampler)
    plain = cpu_time(lambda: ours(case, sampler))
    with torch.profiler.profile(activities=activities) as recorded:
        ours(case, sampler)
    steps = len(case.schedule)
    rows = sorted(recorded.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total = sum(row.self_cpu_time_total for row in rows)
    print(
        f"\n{case.name}: {1e3 * plain / steps:.2f} ms CPU a step unprofiled; "
        f"operators below {total / steps / 1e3:.2f} ms wall, recording included"
    )
    print(f"{'operator':44} {'calls/step':>10} {'us/step':>9} {'share':>6}")
    for row in rows[:24]:
        own, share = row.self_cpu_time_total / steps, row.self_cpu_time_total / total
        print(f"{row.key:44} {row.count / steps:10.1f} {own:9.1f} {share:6.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=CASES, help=f"comma-separated; default {CASES}")
    parser.add_argument("--repeats", type=int, default=3, help="interleaved pairs a row")
    parser.add_argument("--grpo-zero", metavar="PATH", help="a checkout of GRPO-Zero; without it that peer is skipped")
    parser.add_argument("--profile", action="store_true", help="print where the time goes instead of comparing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    table = []
    for name in given.cases.split(","):
        case = make_case(name)
        sampler = make_sampler(case)
        if given.profile:
            profile(case, sampler)
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
