"""Where the time of a rollout goes: by part of the sampler and by operator, as tables."""

import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from unittest.mock import patch

import torch

from model.kv_cache import KVCache
from model.transformer import MLP, Attention, Linear, RMSNorm, Transformer
from rl.sampler import Generation

PARTS = {
    "linear layers": (Linear, "forward"),
    "head": (Transformer, "logits"),
    "attention over the cache": (KVCache, "attend"),
    "norms": (RMSNorm, "forward"),
    "heads, RoPE": (Attention, "forward"),
    "SwiGLU": (MLP, "forward"),
    "draw and state of rows": (Generation, "_emit"),
    "set-up of a step's attention": (KVCache, "begin_step"),
    "embedding, residuals, calls": (Transformer, "forward"),
    "prefill": (Generation, "_prefill"),
    "rows that leave": (Generation, "_retire"),
}


class SelfTimes:
    """CPU seconds and calls of functions, without what they spend in each other."""

    def __init__(self) -> None:
        self.seconds, self.calls = defaultdict(float), defaultdict(int)
        self.inner = [0.0]  # seconds spent in timed functions, a level each

    def timed(self, name: str, function: Callable) -> Callable:
        def call(*args, **options):
            self.inner.append(0.0)
            begin = time.thread_time()
            try:
                return function(*args, **options)
            finally:
                spent = time.thread_time() - begin
                part = "prefill" if self.in_prefill and name != "prefill" else name
                self.seconds[part] += spent - self.inner.pop()
                self.calls[part] += 1
                self.inner[-1] += spent

        def prefill(*args, **options):
            self.in_prefill = True
            try:
                return call(*args, **options)
            finally:
                self.in_prefill = False

        return prefill if name == "prefill" else call

    in_prefill = False


def profile(rollout: Callable[[], None], steps: int, title: str) -> None:
    """Print the tables for a rollout of so many decode steps; recording makes it slower, so read the shares."""
    rollout()
    begin = time.process_time()
    rollout()
    plain = time.process_time() - begin
    times = SelfTimes()
    with ExitStack() as stack:
        for name, (owner, method) in PARTS.items():
            stack.enter_context(patch.object(owner, method, times.timed(name, getattr(owner, method))))
        begin = time.process_time()
        rollout()
        whole = time.process_time() - begin
    times.seconds["the rest"] = whole - sum(times.seconds.values())
    print(f"\n{title}: {1e3 * plain / steps:.2f} ms CPU a step; {1e3 * whole / steps:.2f} ms while timed by part")
    print(f"{'part':44} {'calls/step':>10} {'us/step':>9} {'share':>6}")
    for name, spent in sorted(times.seconds.items(), key=lambda item: -item[1]):
        print(f"{name:44} {times.calls[name] / steps:10.1f} {1e6 * spent / steps:9.1f} {spent / whole:6.1%}")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        rollout()
    rows = sorted(recorded.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total = sum(row.self_cpu_time_total for row in rows)
    print(f"\n{'operator, own time':44} {'calls/step':>10} {'us/step':>9} {'share':>6}")
    for row in rows[:16]:
        own = row.self_cpu_time_total
        print(f"{row.key:44} {row.count / steps:10.1f} {own / steps:9.1f} {own / total:6.1%}")
