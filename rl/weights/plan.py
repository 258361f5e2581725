"""The memory that each phase of a step takes on one GPU, worked out from shapes alone: no weights, no GPU.

The bytes of a phase are the sum of its items. `Plan.table` holds every formula, a row for each item. Symbols:

    P, E, F         parameters of the model; embedding and feed-forward size
    W               GPUs that share the sharded state (--memory shard, offload; the reference)
    c               bytes of an activation: 2 on a GPU (bfloat16), 4 on a CPU (float32)
    T               tokens of a micro-batch: --micro-batch-tokens, or one longest sequence if that is more
    S, N            rows of the KV cache, and prompts computed together

A named constant stands for something that this file cannot compute.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch

from model import ModelConfig, Transformer
from model.kv_cache import kv_bytes_per_token
from model.lora import adapter_parameters, add_adapters
from rl.config import Config
from rl.judging.local_judge import BATCH_TOKENS, HEAD_ROWS
from rl.logprobs import CHUNK_ELEMENTS
from rl.slots import PREFILL_TOKENS, draw_bytes, prefill_bytes
from rl.weights.policy import lora_targets

GIB = 2**30
PHASES = ("rollout", "judge", "reference", "update")
RESERVE = 0.05  # of a GPU that stays unplanned: what the allocator cannot use, and this file does not know
GPU_RUNTIME = 1.5 * GIB  # CUDA context, NCCL buffers, cuBLAS workspaces
CPU_RUNTIME = 0.6 * GIB  # Python, torch and what it keeps for itself
NODE_RUNTIME = 4 * GIB  # host memory of a process that trains on a GPU: Python, CUDA, tokenizer, data
OPTIMIZER_TEMPORARIES = 0.25 * GIB  # of exact-bf16, which rebuilds masters a slice at a time
MASTER = MOMENT = 4  # bytes
LOW_BITS = 2


@dataclass(frozen=True)
class Machine:
    """The memory that a run has."""

    gpus: int  # of the whole run, one process each; on a CPU the processes
    gpu_bytes: float  # of one GPU; on a CPU of one process
    host_bytes: float | None = None  # of one node; None: not checked
    device: str = "cuda"  # or "cpu"
    per_node: int = 8  # GPUs that share one node's host memory

    @property
    def compute(self) -> torch.dtype:
        return torch.bfloat16 if self.device == "cuda" else torch.float32

    @property
    def unit(self) -> str:
        return "GPU" if self.device == "cuda" else "process"


class Shapes:
    """Parameter counts of a model, taken from the model itself, which is built without memory.

    Attributes:
        adapters: parameters of the adapters of `--lora-rank`.
    """

    def __init__(self, config: ModelConfig, lora: Config | None = None) -> None:
        self.config = config
        with torch.device("meta"):
            self.model = Transformer(config)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.layer = sum(p.numel() for p in self.model.model.layers[0].parameters())
        self.head = config.vocab_size * config.hidden_size
        if lora is not None and lora.lora_rank:
            add_adapters(self.model, lora.lora_rank, lora.lora_alpha, lora_targets(lora))
        self.adapters = sum(p.numel() for p in adapter_parameters(self.model).values())


def forward_bytes(config: ModelConfig, c: int) -> int:
    """Return the bytes of a token in a layer without gradient: 3cF + 2cE in the MLP, q, k, v and the RoPE table beside it."""
    heads = config.num_attention_heads + 2 * config.num_key_value_heads
    return c * (3 * config.intermediate_size + 2 * config.hidden_size + (heads + 2) * config.head_dim)


def saved_bytes(config: ModelConfig, c: int, *, padded: bool) -> int:
    """Return the bytes a token leaves in one layer for backward.

    Two norms keep their input in at least float32 (w bytes), the normalised input and the output: 2 (w + 2c) E. Attention keeps
    q, k, v and its output: c (2H + 2K) D, with padding once more c H D; q/k norms (w + c) (H + K) D. The MLP keeps its four
    wide tensors: 4cF.

    Args:
        padded: attention lays packed sequences out in a padded batch, as it does where there is no kernel for packed ones.
    """
    w = max(4, c)
    H, K, D = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    attention = c * (2 * H + 2 * K + H * padded) * D + (w + c) * (H + K) * D * config.family.qk_norm
    return 2 * (w + 2 * c) * config.hidden_size + attention + 4 * c * config.intermediate_size


def backward_bytes(config: ModelConfig, c: int) -> int:
    """Return what a layer's backward adds to that for a token: the gradients of three wide tensors and of the stream."""
    return 3 * c * config.intermediate_size + 3 * max(4, c) * config.hidden_size


def longest_sequence(config: Config) -> int:
    return config.max_prompt_tokens + config.max_new_tokens


def sampled_at_once(config: Config, machine: Machine) -> tuple[int, int]:
    """Return the sequences and prompts of one call of the sampler on one GPU."""
    questions = -(-config.questions_per_step // machine.gpus)
    with_plain = config.plain_samples > 0 and config.plain_policy == "current"
    return questions * (config.group_size + config.plain_samples * with_plain), questions * (1 + with_plain)


def micro_batch(config: Config, machine: Machine) -> int:
    """Return T: the most tokens of one forward and backward; a prompt counts once for its group."""
    everything = config.max_prompt_tokens + config.group_size * config.max_new_tokens
    everything *= -(-config.questions_per_step // machine.gpus)
    return min(max(config.micro_batch_tokens, longest_sequence(config)), everything)


@dataclass(frozen=True)
class Plan:
    """A run with its memory decided."""

    shapes: Shapes
    config: Config  # the flags that run: none of those about memory is auto any more
    machine: Machine
    judge: Shapes | None = None  # of the model of --judge PATH
    reference_memory: str = "device"  # or "host": the layers of the reference visit the device while they compute

    @cached_property
    def sums(self) -> dict[str, float]:
        return dict(zip(PHASES, map(sum, zip(*self.table.values(), strict=True)), strict=True))

    @cached_property
    def host(self) -> float:
        """The host memory of one node of GPUs.

        offload: pinned float32 weights and gradients, each tensor rounded up, and Adam's moments: 16P/W and more a process. A
        reference in host memory: cP/W a process, rounded up. At a checkpoint the weights are exported from rank 0: cP.
        """
        machine, c, a_process = self.machine, self.machine.compute.itemsize, NODE_RUNTIME
        if machine.device == "cpu":
            return 0.0
        if self.shapes.adapters:
            return min(machine.gpus, machine.per_node) * a_process + MASTER * self.shapes.adapters
        for count in (math.ceil(p.numel() / machine.gpus) for p in self.shapes.model.parameters()):
            if self.config.memory == "offload":
                a_process += 2 * pinned(count, MASTER) + 2 * MOMENT * count
            if self.config.needs_reference and self.reference_memory == "host":
                a_process += pinned(count, c)
        return min(machine.gpus, machine.per_node) * a_process + c * self.shapes.parameters

    @property
    def usable(self) -> float:
        return self.machine.gpu_bytes * (1 - RESERVE)

    @property
    def excess(self) -> tuple[float, float]:
        """The bytes that are missing, on a GPU first and then in host memory."""
        return max(0.0, max(self.sums.values()) - self.usable), max(0.0, self.host - (self.machine.host_bytes or self.host))

    @property
    def fits(self) -> bool:
        return self.excess == (0.0, 0.0)

    @property
    def shares_weights(self) -> bool:
        """True if the sampler uses the trained weights themselves, because they are whole and in the compute dtype."""
        stored = torch.bfloat16 if self.config.memory == "exact-bf16" else torch.float32
        if self.shapes.adapters:
            return True
        return self.machine.gpus == 1 and self.config.memory != "offload" and stored == self.machine.compute

    @property
    def cuts_reference(self) -> bool:
        """True if the reference is not whole on the device, so that writing answers and judging need a whole copy of it."""
        return not self.shapes.adapters and (self.machine.gpus > 1 or self.reference_memory == "host")

    @cached_property
    def table(self) -> dict[str, tuple[float, ...]]:
        """The bytes that each item takes on one GPU, in the order of PHASES."""
        config, machine, shapes = self.config, self.machine, self.shapes
        c, W, P = machine.compute.itemsize, machine.gpus, shapes.parameters

        # the policy where it is trained, and a whole copy to sample with where that cannot be shared
        exact, trained = config.memory == "exact-bf16", 0.0 if config.memory == "offload" else P / W
        stored, copy = trained * (2 if exact else MASTER), c * P * (not self.shares_weights)
        if shapes.adapters:  # a whole frozen model, the reference in it
            trained, stored = shapes.adapters, c * P + MASTER * shapes.adapters
        sampling_cache, sampling, drawing = _sampling(self)
        updating, gathered, chunks = _update(self)

        # the reference, and a whole copy of it while one that is not whole writes plain answers or judges
        reference = c * P / W * (config.needs_reference and self.reference_memory == "device" and not shapes.adapters)
        whole_reference, scores = c * P * self.cuts_reference, config.beta > 0
        writes = whole_reference * (config.reference_writes_plain and not copy)  # else the two copies take turns
        marks = whole_reference * (config.judge_kind == "self")
        scoring = forward_bytes(shapes.config, c) + 3 * c * shapes.config.hidden_size  # three hidden states at the last layer
        layers = c * max(2 * shapes.layer, shapes.head) * self.cuts_reference
        layers *= 1 + (self.reference_memory == "host") / W  # there, and on their way

        # the judge in this process
        judge, judges = self.judge or shapes, self.judge is not None or config.judge_kind == "self"
        return {
            "weights": (stored + copy, stored, stored, stored),
            "gradients": (0.0, 0.0, 0.0, 4 * trained),
            "optimizer": (trained * (2 * MOMENT + LOW_BITS * exact),) * 4,
            "reference": (reference + writes, reference + marks, reference, reference),
            "judge": (c * judge.parameters * (self.judge is not None),) * 4,
            "KV cache": (sampling_cache, 0.0, 0.0, 0.0),
            "activations": (
                sampling, BATCH_TOKENS * forward_bytes(judge.config, c) * judges,
                micro_batch(config, machine) * scoring * scores, updating,
            ),
            "logits": (drawing, 2 * 4 * HEAD_ROWS * judge.config.vocab_size * judges, 2 * 4 * CHUNK_ELEMENTS * scores, chunks),
            "gathered": (0.0, 0.0, layers * scores, gathered),
            "runtime": (GPU_RUNTIME if machine.device == "cuda" else CPU_RUNTIME,) * 4,
        }  # fmt: skip


def _sampling(plan: Plan) -> tuple[float, float, float]:
    """Return KV cache, activations (of prefill or decode) and logits of a rollout.

    A row of the cache holds its prompt and its completion; a prompt whose further samples wait is kept beside it.
    """
    config, machine, model = plan.config, plan.machine, plan.shapes.config
    c, (sequences, prompts) = machine.compute.itemsize, sampled_at_once(config, machine)
    S = min(config.max_slots, sequences)
    N = min(S, prompts)
    tokens = S * longest_sequence(config)
    kept = config.max_prompt_tokens * (sequences > S)
    prefill = prefill_bytes(model, machine.compute, min(PREFILL_TOKENS, N * config.max_prompt_tokens))
    scores = tokens * model.num_attention_heads * 3 * c * (machine.device == "cpu")
    logits = S * draw_bytes(model, config.max_new_tokens) + 4 * N * model.vocab_size
    return (
        kv_bytes_per_token(model, machine.compute) * (tokens + kept),
        max(prefill, S * forward_bytes(model, c) + scores),
        logits,
    )


def _update(plan: Plan) -> tuple[float, float, float]:
    """Return activations, gathered weights with their gradients, and logits at the larger of two moments of an update.

    The forward has kept everything. The head's backward holds its weight in the compute dtype, the float32 sum of its gradient
    and one chunk's part of it. The last layer's holds two layers' gathered weights (one if nothing is sharded), and a layer's
    gradients in both dtypes. With adapters there is nothing of that; a layer's input gets two gradients, added up.
    """
    shapes, config, machine = plan.shapes, plan.config, plan.machine
    c, model, T, recomputes = (
        machine.compute.itemsize,
        shapes.config,
        micro_batch(config, machine),
        config.activation_checkpointing,
    )
    is_full, offloads, exact = shapes.adapters == 0, config.memory == "offload", config.memory == "exact-bf16"
    is_sharded, casts = is_full and (machine.gpus > 1 or offloads), is_full and not exact and c < MASTER

    # what the forward has kept
    per_layer = saved_bytes(model, c, padded=machine.device == "cpu")
    saved = T * model.num_hidden_layers * (c * model.hidden_size if recomputes else per_layer)
    saved += T * 5 * c * model.hidden_size  # the stream, the last norm, scored states and their gradient
    if casts and not is_sharded and not recomputes:
        saved += c * (shapes.parameters - 2 * shapes.head)  # autograd keeps the cast weights of every layer

    # what a layer's backward takes, and the head's
    running = T * (backward_bytes(model, c) + per_layer * recomputes + c * model.intermediate_size * (not is_full))
    layer = c * (2 if is_sharded else 1) * (is_sharded or casts) + (c + 4) * is_sharded
    layer += 2 * MASTER * offloads  # on their way from host memory, before they are cast
    head = (c * (is_sharded or casts) + 4 + c) * shapes.head * is_full
    least, chunks = OPTIMIZER_TEMPORARIES * exact, 2 * 4 * CHUNK_ELEMENTS
    if head + chunks >= running + layer * shapes.layer:
        return max(saved, least), head, chunks
    return max(saved + running, least), layer * shapes.layer, 0.0


def pinned(count: int, itemsize: int) -> int:
    """Return the bytes of a pinned tensor: torch rounds each up to a power of two."""
    return 1 << (count * itemsize - 1).bit_length()
