"""What the speed benchmarks run on: models with random weights, prompts, forced completion lengths, the machine's own speed.

Shapes: B live rows, V vocabulary, E embedding.
"""

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from model import ModelConfig, Transformer
from model.transformer import MLP, Attention, Linear
from rl.records import Request

SAMPLES = 8  # completions of each question
LONGEST = 256  # tokens of the longest prompt, and of the longest completion where LONGEST_NEW says nothing else
LONGEST_NEW = dict.fromkeys(("0.5b", "1.5b", "3b", "7b"), 1500)
TEMPERATURE = 0.9
SHAPES = {  # vocabulary, hidden, feed-forward, layers, query heads, key/value heads
    "tiny": (512, 192, 512, 4, 6, 2),
    "small": (32_000, 640, 1728, 8, 10, 2),
    # Qwen2.5, for a GPU
    "0.5b": (151_936, 896, 4864, 24, 14, 2),
    "1.5b": (151_936, 1536, 8960, 28, 12, 2),
    "3b": (151_936, 2048, 11_008, 36, 16, 2),
    "7b": (152_064, 3584, 18_944, 28, 28, 4),
}


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        name: such as tiny-4, small-16, tiny-4-skewed, tiny-4-qwen3: size, questions, options.
        prompts: one a question; its SAMPLES completions follow one another in `limits`.
        limits: forced length of each completion.
    """

    name: str
    model: Transformer
    prompts: list[list[int]]
    limits: list[int]

    @property
    def requests(self) -> list[Request]:
        return self.with_limits(self.limits)

    def with_limits(self, limits: list[int]) -> list[Request]:
        groups = [limits[i : i + SAMPLES] for i in range(0, len(limits), SAMPLES)]
        return [
            Request(prompt, SAMPLES, group, TEMPERATURE, ("bench", i))
            for i, (prompt, group) in enumerate(zip(self.prompts, groups, strict=True))
        ]

    @property
    def schedule(self) -> list[int]:
        """Live rows at each decode step when rows leave as they end; the first token comes from the prefill."""
        return [sum(limit > step for limit in self.limits) for step in range(1, max(self.limits))]


def make_case(name: str, seed: int = 0, device: str = "cpu") -> Case:
    """Raises ValueError for a name that is not size-questions[-skewed][-qwen3]."""
    size, questions, *options = name.split("-")
    if size not in SHAPES or not questions.isdigit() or set(options) - {"skewed", "qwen3"}:
        raise ValueError(f"unknown case {name!r}: use {'|'.join(SHAPES)}, a number of questions, optionally skewed, qwen3")
    rng, rows = random.Random(seed), int(questions) * SAMPLES
    longest = LONGEST_NEW.get(size, LONGEST)
    draw = (lambda: 16 + int(rng.expovariate(1 / 40))) if "skewed" in options else (lambda: rng.randint(16, longest))
    limits = [longest, *(min(draw(), longest) for _ in range(rows - 1))]
    rng.shuffle(limits)
    model = make_model(size, "qwen3" if "qwen3" in options else "qwen2", seed, torch.device(device))
    vocab = model.config.vocab_size
    prompts = [[rng.randrange(vocab) for _ in range(rng.randint(64, LONGEST))] for _ in range(int(questions))]
    return Case(name, model, prompts, limits)


def model_config(size: str, family: str = "qwen2") -> ModelConfig:
    vocab, width, feed_forward, layers, heads, kv_heads = SHAPES[size]
    shape = (vocab, width, feed_forward, layers, heads, kv_heads, width // heads)
    return ModelConfig(family, *shape, rope_theta=1e4, tie_word_embeddings=size != "7b")


@torch.no_grad()
def make_model(size: str, family: str, seed: int, device: torch.device) -> Transformer:
    """Random weights of a scale at which text depends on position, cache and biases; the usual 0.02 repeats one token.

    float32 on a CPU, bfloat16 on CUDA.
    """
    config = model_config(size, family)
    with torch.device("meta"):
        model = Transformer(config).to(torch.bfloat16 if device.type == "cuda" else torch.float32).eval()
    model = model.to_empty(device=device)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        scale, centre = (2.2 / config.hidden_size**0.5, 0.0) if parameter.dim() > 1 else (0.3, 1.0 if "norm" in name else 0.0)
        parameter.normal_(centre, scale, generator=generator)
    return model


def cpu_time(function, repeats: int = 1) -> float:
    """Seconds of this process's CPU time for one call: preemption by other processes does not count."""
    begin = time.process_time()
    for _ in range(repeats):
        function()
    return (time.process_time() - begin) / repeats


def calibrate() -> tuple[float, float]:
    """GFLOP/s of a float32 product of 1024 x 1024 matrices, and GB/s (read plus written) of a copy of 256 MB; now."""
    a, source = torch.ones(1024, 1024), torch.ones(2**26)
    target = torch.empty_like(source)
    multiply, copy = (lambda: a @ a), (lambda: target.copy_(source))
    multiply(), copy()
    return 2 * 1024**3 / cpu_time(multiply, 5) / 1e9, 2 * source.nbytes / cpu_time(copy, 3) / 1e9


@torch.no_grad()
def linears_seconds(model: Transformer, schedule: list[int]) -> float:
    """Seconds that the linear layers and the head alone take over a row schedule: what an engine doing nothing else would.

    Timed at a dozen row counts and interpolated between them.
    """
    width = model.config.hidden_size

    def products() -> list[tuple[int, Callable[[torch.Tensor], object]]]:
        """Width of the input and product, of everything that is multiplied in a step."""
        found = [(width, model.logits)]
        for module in model.modules():
            if isinstance(module, Attention | MLP):
                found += [(linear.in_features, linear) for linear in module.children() if isinstance(linear, Linear)]
        return found

    def seconds(rows: int) -> float:
        multiplied = products()
        inputs = {size: torch.randn(rows, size) for size in {size for size, _ in multiplied}}

        def forward() -> None:
            for size, multiply in multiplied:
                multiply(inputs[size])

        forward()
        return statistics.median(cpu_time(forward) for _ in range(5))

    longest = max(schedule)
    grid = sorted({1, 2, 4, 8, *(max(1, round(longest * i / 8)) for i in range(1, 9))} & set(range(1, longest + 1)))
    known = {rows: seconds(rows) for rows in grid}
    total = 0.0
    for rows in schedule:
        below, above = max(g for g in grid if g <= rows), min(g for g in grid if g >= rows)
        part = (rows - below) / (above - below) if above > below else 0.0
        total += known[below] * (1 - part) + known[above] * part
    return total
