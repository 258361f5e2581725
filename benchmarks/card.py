"""What this card and this torch do with the operations that a step is made of: error, time and speed, a line each.

    python benchmarks/card.py                   # on a GPU, about a minute
    python benchmarks/card.py --device cpu      # tiny, to see that it runs

A check that fails says so, and the next is taken. Errors are relative: bfloat16 rounds by up to 4e-3, and a sum of n terms in
float32 by about 1e-7 sqrt(n).
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.one_step import product_speed
from benchmarks.roofline import copy_bandwidth, seconds
from model import ModelConfig
from model.attention import PackedAttention
from model.kv_cache import KVCache
from model.transformer import RMSNorm, at_least_fp32, head_logits
from rl.draws import draw_tokens
from rl.run.processes import set_up_torch

PACKAGES = ("transformers", "safetensors", "math_verify", "rouge_score", "wandb", "matplotlib", "httpx2", "pytest")
REPLAYS = 20


def error(got: Tensor, wanted: Tensor) -> float:
    return ((got.double() - wanted.double()).norm() / wanted.double().norm()).item()


class Card:
    """The checks, in the order in which they run.

    Attributes:
        width, feed_forward, vocabulary, heads, kv_heads, head_dim: of Qwen2.5-7B, or tiny ones on a CPU.
    """

    def __init__(self, device: str) -> None:
        self.on_gpu, self.device = device == "cuda", torch.device(device)
        shape = (3584, 18_944, 152_064, 28, 4, 128) if self.on_gpu else (64, 96, 512, 4, 2, 16)
        self.width, self.feed_forward, self.vocabulary, self.heads, self.kv_heads, self.head_dim = shape
        self.dtype = torch.bfloat16 if self.on_gpu else torch.float32

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device).to(self.dtype)

    def ms(self, function: Callable[[], object]) -> float:
        function()
        return 1e3 * statistics.median(seconds(function, self.device) for _ in range(REPLAYS if self.on_gpu else 2))

    def versions(self) -> str:
        name = torch.cuda.get_device_name() if self.on_gpu else "CPU"
        absent = [package for package in PACKAGES if find_spec(package) is None]
        return f"{name}, torch {torch.__version__}, absent: {', '.join(absent) or 'nothing'}"

    def speed(self) -> str:
        copied = copy_bandwidth(self.device, 2**32 if self.on_gpu else 2**20)
        return f"{product_speed(self.device, self.dtype) / 1e12:.3g} TFLOP/s on random data, copy {copied / 1e12:.3g} TB/s"

    def host(self) -> str:
        if not self.on_gpu:
            return "no transfers"
        here, there = torch.empty(2**30, dtype=torch.uint8).pin_memory(), torch.empty(2**30, dtype=torch.uint8, device="cuda")
        up, down = (self.ms(lambda a=a, b=b: a.copy_(b, non_blocking=True)) for a, b in ((there, here), (here, there)))
        pageable = self.ms(there.cpu)
        return f"GB/s from host memory {1074 / up:.0f}, to it {1074 / down:.0f} (not pinned {1074 / pageable:.0f})"

    def head(self) -> str:
        hidden, weight = self.random(64, self.width), self.random(self.vocabulary, self.width)
        wrong = error(head_logits(hidden, weight), hidden.double() @ weight.double().T)
        return f"error {wrong:.1e}, {self.ms(lambda: head_logits(hidden, weight)):.2f} ms for 64 rows"

    def head_gradient(self) -> str:
        """The sum over chunks of the head's gradient, as it is, and by one product that adds in float32."""
        total = torch.zeros(self.vocabulary, self.width, device=self.device)
        grad, hidden = self.random(220, self.vocabulary), self.random(220, self.width)
        told = f"{self.ms(lambda: total.add_(grad.T @ hidden)):.2f} ms a chunk of 220"
        if self.on_gpu:
            fused = self.ms(lambda: torch.addmm(total, grad.T, hidden, out_dtype=torch.float32, out=total))
            told += f", {fused:.2f} by addmm(out_dtype=float32)"
        return told

    def partial_sums(self) -> str:
        """Products of few rows with and without partial sums in bfloat16; a run goes without."""
        told, weight = [], self.random(self.width, self.feed_forward)
        for allowed in (True, False):
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = allowed
            rows = [self.random(n, self.feed_forward) for n in (1, 8, 64, 256)]
            errors = [f"{error(x @ weight.T, x.double() @ weight.double().T):.1e}" for x in rows]
            told.append(f"{'allowed' if allowed else 'refused'} {' '.join(errors)}")
        return "error at 1, 8, 64, 256 rows, sums in bfloat16 " + "; ".join(told)

    @torch.no_grad()
    def norm(self) -> str:
        norm, x = RMSNorm(self.width, 1e-6).to(self.device, self.dtype), self.random(256, self.width)

        def formula() -> Tensor:
            wide = at_least_fp32(x)
            return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * norm.weight

        differ = (norm(x) != formula()).double().mean().item()
        ours, its = 1e3 * self.ms(lambda: norm(x)), 1e3 * self.ms(formula)
        return f"{ours:.0f} us, the formula {its:.0f} us, {differ:.1e} of values differ"

    def draws(self) -> str:
        rows = 256 if self.on_gpu else 4
        logits, uniform = 3 * torch.randn(rows, self.vocabulary), torch.rand(rows, dtype=torch.float64)
        here = (logits, uniform, torch.ones(rows, dtype=torch.float64))
        there = [tensor.to(self.device) for tensor in here]
        differ = int((draw_tokens(*here)[0] != draw_tokens(*there)[0].cpu()).sum())
        return (
            f"{differ} of {rows} tokens differ from the CPU's, {self.ms(lambda: draw_tokens(*there, some_greedy=False)):.2f} ms"
        )

    def shared_prefixes(self) -> str:
        """Attention of a group with its shared prompt. The prompt's keys get the gradient of all of the group's samples."""
        groups = [(300, [170, 1, 128, *[60] * 6]), (64, [200])]
        tokens = sum(prefix + sum(suffixes) for prefix, suffixes in groups)
        sizes = [(1, tokens, n, self.head_dim) for n in (self.heads, self.kv_heads, self.kv_heads)]
        half = [self.random(*size).requires_grad_() for size in sizes]
        wide = [x.detach().float().requires_grad_() for x in half]
        attention, weight = PackedAttention(groups, self.device), torch.randn(sizes[0], device=self.device)
        outs = [attention.attend(0, *x) for x in (half, wide)]
        grads = [torch.autograd.grad((out.float() * weight).sum(), x) for out, x in zip(outs, (half, wide), strict=True)]
        told = " ".join(f"{error(a, b):.1e}" for a, b in zip(*grads, strict=True))
        shared = error(*(g[1][:, : groups[0][0]] for g in grads))
        return f"error {error(*outs):.1e}, of the gradients of q, k, v {told}, of the shared keys {shared:.1e}"

    def decoding(self) -> str:
        """Attention of a decode step, and its graph replayed after the lengths have changed."""
        rows, longest = (200, 2560) if self.on_gpu else (6, 48)
        config = ModelConfig("qwen2", 64, 64, 64, 1, self.heads, self.kv_heads, self.head_dim)
        cache = KVCache(config, slots=rows, max_len=longest, dtype=self.dtype, device=self.device)
        exact = KVCache(config, slots=rows, max_len=longest, dtype=torch.float32, device=self.device)
        cache.kv.normal_()
        exact.kv.copy_(cache.kv)
        position, live = torch.empty(rows, dtype=torch.long, device=self.device), torch.ones(rows, dtype=torch.bool)
        live, qkv = live.to(self.device), [self.random(rows, 1, n, self.head_dim) for n in (self.heads, *[self.kv_heads] * 2)]

        def step(slots: KVCache, inputs: list[Tensor]) -> Tensor:
            slots.begin_step(position, live)
            return slots.attend(0, *inputs)

        def check(run: Callable[[], Tensor]) -> float:
            position.copy_(torch.randint(longest, (rows,)))
            return error(run(), step(exact, [x.float() for x in qkv]))

        told = f"error {check(lambda: step(cache, qkv)):.1e}"
        if self.on_gpu:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                out = step(cache, qkv)
            told += f", replayed {check(lambda: (graph.replay(), out)[1]):.1e}, {1e3 * self.ms(graph.replay):.0f} us a layer"
        return f"{told}, {rows} rows of up to {longest}"


CHECKS = ("versions", "speed", "host", "head", "head_gradient", "partial_sums", "norm", "draws", "shared_prefixes", "decoding")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    set_up_torch()
    card, failed = Card(parser.parse_args().device), 0
    for name in CHECKS:
        try:
            print(f"= {name.replace('_', ' ')}: {getattr(card, name)()}", flush=True)
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as problem:
            failed += 1
            print(
                f"= {name.replace('_', ' ')}: FAILED, {type(problem).__name__}: {str(problem).splitlines()[0][:90]}", flush=True
            )
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
