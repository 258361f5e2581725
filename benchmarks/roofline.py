"""How near decoding in static slots comes to what bandwidth allows: each step reads the weights and the live cache.

seconds at least = sum over steps of (bytes of the weights + bytes of the live rows' keys and values) / bandwidth
"""

import time
from collections.abc import Callable
from unittest.mock import patch

import torch

import rl.sampler
from benchmarks.workload import Case, make_case
from model.kv_cache import kv_bytes_per_token
from rl.sampler import Sampler

COPIED = 2**32  # bytes of the copy that measures bandwidth
HEADER = (
    f"{'case':14} {'slots':>5} {'tokens/s':>9} {'ms/step':>8} {'least ms':>8} {'share':>6} {'before the first step, s':>25}"
)


def seconds(function: Callable[[], None], device: torch.device) -> float:
    """Wall time of a call, with everything it started on the device."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    begin = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - begin


def copy_bandwidth(device: torch.device, size: int = COPIED) -> float:
    """Bytes per second, read plus written, of the best of several copies."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / min(seconds(lambda: target.copy_(source), device) for _ in range(8))


def bytes_read(case: Case) -> int:
    """Bytes that all decode steps of a case read at least: weights once a step, each live row's cache up to its new token."""
    model = case.model
    weights = sum(parameter.nbytes for parameter in model.parameters())
    if not model.config.tie_word_embeddings:
        weights -= model.model.embed_tokens.weight.nbytes  # a step looks up a row a sequence, no more
    prompts = [len(prompt) for prompt in case.prompts for _ in range(len(case.limits) // len(case.prompts))]
    cached = sum(sum(range(p + 1, p + limit)) for p, limit in zip(prompts, case.limits, strict=True))
    per_token = kv_bytes_per_token(model.config, model.activation_dtype)
    return weights * len(case.schedule) + cached * per_token


def measure(case: Case, bandwidth: float) -> str:
    """A line of the table. Time before the first step (prefill, capture of the graphs) is measured by itself and taken off.

    Answers of one token are not worth a capture: that run is told that all are.
    """
    device, rows = case.model.device, len(case.limits)
    max_len = max(map(len, case.prompts)) + max(case.limits)
    sampler = Sampler(case.model, stop_ids=[case.model.config.vocab_size], max_slots=rows, max_len=max_len)

    def run(limits: list[int]) -> None:
        results = sampler.generate(case.with_limits(limits))
        assert [len(c.ids) for group in results for c in group] == limits, "a stop id was drawn"

    run(case.limits)  # what is loaded at first use belongs to no step
    with patch.object(rl.sampler, "SHORTEST_GRAPHED", 0):
        before = min(seconds(lambda: run([1] * rows), device) for _ in range(2))
    decode = seconds(lambda: run(case.limits), device) - before
    least, steps = bytes_read(case) / bandwidth, len(case.schedule)
    return (
        f"{case.name:14} {rows:5} {sum(case.limits) / (decode + before):9.0f} {1e3 * decode / steps:8.2f} "
        f"{1e3 * least / steps:8.2f} {least / decode:6.1%} {before:25.2f}"
    )


def roofline_table(names: list[str], device: str) -> None:
    bandwidth = copy_bandwidth(torch.device(device))
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, copy {bandwidth / 1e9:.0f} GB/s\n{HEADER}", flush=True)
    for name in names:
        print(measure(make_case(name, device=device), bandwidth), flush=True)
