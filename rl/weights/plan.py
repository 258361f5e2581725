"""How much memory each phase of a step takes on one GPU, worked out from shapes alone: no weights, no GPU.

A phase's bytes are the sum of its items; `phases` holds every formula. Symbols:

    P, L, V, E, F   parameters of the model and of one layer; vocabulary, embedding and feed-forward size
    W               GPUs that share the sharded state (--memory shard, offload; the reference)
    c               bytes of an activation: 2 on a GPU (bfloat16), 4 on a CPU (float32)
    T               tokens of a micro-batch: --micro-batch-tokens, or one longest sequence if that is more
    S, N            sequences and prompts in the KV cache

Constants that stand for something this file cannot compute are named, with what they stand for.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch

from model import ModelConfig, Transformer
from model.kv_cache import kv_bytes_per_token
from rl.config import Config
from rl.judging.local_judge import HEAD_ROWS
from rl.logprobs import CHUNK_ELEMENTS
from rl.run.checkpoint import checkpoint_bytes
from rl.slots import PREFILL_TOKENS, draw_bytes, prefill_bytes

GIB = 2**30
PHASES = ("rollout", "judge", "reference", "update")
ITEMS = ("weights", "gradients", "optimizer", "reference", "judge", "KV cache", "activations", "logits", "gathered", "runtime")
GPU_RUNTIME = 1.5 * GIB  # CUDA context, NCCL buffers, cuBLAS workspaces
CPU_RUNTIME = 0.6 * GIB  # Python, torch and what it keeps for itself
NODE_RUNTIME = 4 * GIB  # host memory of a process that trains on a GPU: Python, CUDA, tokenizer, data
JUDGE_TOKENS = 16_384  # of one forward of the in-process judge (LocalJudge.batch_tokens)
OPTIMIZER_TEMPORARIES = 0.25 * GIB  # of exact-bf16, which rebuilds masters a slice at a time
MASTER = MOMENT = 4  # bytes
LOW_BITS = 2


@dataclass(frozen=True)
class Machine:
    """What a run has to live in.

    Attributes:
        gpus: of the whole run, one process each; on a CPU the processes.
        gpu_bytes: of one GPU; on a CPU the memory of one process.
        host_bytes: of one node, or None: not checked.
        device: "cuda" or "cpu".
        per_node: GPUs that share one node's host memory.
    """

    gpus: int
    gpu_bytes: float
    host_bytes: float | None = None
    device: str = "cuda"
    per_node: int = 8

    @property
    def compute(self) -> torch.dtype:
        return torch.bfloat16 if self.device == "cuda" else torch.float32

    @property
    def processes_per_node(self) -> int:
        return min(self.gpus, self.per_node)


class Shapes:
    """Parameter counts of a model, taken from the model itself, built without memory."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        with torch.device("meta"):
            self.model = Transformer(config)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.layer = sum(p.numel() for p in self.model.model.layers[0].parameters())
        self.head = config.vocab_size * config.hidden_size

    @cached_property
    def sizes(self) -> list[int]:
        return [p.numel() for p in self.model.parameters()]


def forward_bytes(config: ModelConfig, c: int) -> int:
    """Bytes a token needs while a layer runs without gradient: 3cF + 2cE in the MLP, the RoPE table and q, k, v beside it."""
    heads = config.num_attention_heads + 2 * config.num_key_value_heads
    return c * (3 * config.intermediate_size + 2 * config.hidden_size + (heads + 2) * config.head_dim)


def saved_bytes(config: ModelConfig, c: int, *, padded: bool) -> int:
    """Bytes a token leaves in one layer for backward.

    Two norms keep their input in at least float32 (w bytes), the normalised input and the output: 2 (w + 2c) E. Attention keeps
    q, k, v and its output: c (2H + 2K) D, with padding once more c H D; q/k norms (w + c) (H + K) D. The MLP keeps its four
    wide tensors: 4cF.

    Args:
        padded: attention lays packed sequences out in a padded batch, as it does where there is no kernel for packed ones.
    """
    w = max(4, c)
    H, K, D = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    attention = c * (2 * H + 2 * K + H * padded) * D + (w + c) * (H + K) * D * config.qk_norm
    return 2 * (w + 2 * c) * config.hidden_size + attention + 4 * c * config.intermediate_size


def backward_bytes(config: ModelConfig, c: int) -> int:
    """Bytes a token needs beside that while a layer's backward runs: the gradients of three wide tensors and of the stream."""
    return 3 * c * config.intermediate_size + 3 * max(4, c) * config.hidden_size


def longest_sequence(config: Config) -> int:
    return config.max_prompt_tokens + config.max_new_tokens


def questions_of_a_gpu(config: Config, machine: Machine) -> int:
    return -(-config.questions_per_step // machine.gpus)


def sampled_at_once(config: Config, machine: Machine) -> tuple[int, int]:
    """Sequences and prompts of one call of the sampler on one GPU."""
    questions = questions_of_a_gpu(config, machine)
    with_plain = config.plain_samples > 0 and config.plain_policy == "current"
    return questions * (config.group_size + config.plain_samples * with_plain), questions * (1 + with_plain)


def micro_batch(config: Config, machine: Machine) -> int:
    """T: the most tokens of one forward and backward; a prompt counts once for its group."""
    everything = questions_of_a_gpu(config, machine) * (config.max_prompt_tokens + config.group_size * config.max_new_tokens)
    return min(max(config.micro_batch_tokens, longest_sequence(config)), everything)


def shares_weights(config: Config, machine: Machine) -> bool:
    """Whether the sampler uses the trained weights themselves, because they are whole and in the compute dtype."""
    weights = torch.bfloat16 if config.memory == "exact-bf16" else torch.float32
    return machine.gpus == 1 and config.memory != "offload" and weights == machine.compute


def phases(
    shapes: Shapes, config: Config, machine: Machine, *, keep_copy: bool = False, judge: Shapes | None = None
) -> dict[str, dict[str, float]]:
    """Bytes of every item in every phase, on one GPU.

    weights      shard 4P/W, exact-bf16 2P/W, offload 0; and cP for the sampler's copy where it cannot share
    gradients    4P/W in the update; offload: in host memory
    optimizer    8P/W for Adam's moments, and 2P/W low bits of exact-bf16
    reference    cP/W, and cP more while a sharded one judges or writes plain answers; in host memory: head and two layers
    judge        cP of a model of its own
    KV cache     bytes a token x S x (new and prompt tokens); on a CPU N x prompt tokens
    activations  prefill or decode; T x forward; in the update T x (layers kept + the one being computed)
    logits       decode: 16 bytes x S x V while a token is drawn, and 4NV; else two buffers of a chunk
    gathered     whole layers while they compute, two at a time; in the update, their gradients, or the head's
    runtime      a constant

    Args:
        config: with --memory and --reference-memory decided.
        keep_copy: the sampler's copy stays through reference and update.
        judge: shapes of the model of --judge PATH.
    """
    c, W, P = machine.compute.itemsize, machine.gpus, shapes.parameters
    exact, offload = config.memory == "exact-bf16", config.memory == "offload"
    kept = 0.0 if offload else P / W
    copy = 0 if shares_weights(config, machine) else c * P
    resident = {
        "weights": kept * (2 if exact else MASTER),
        "optimizer": kept * (2 * MOMENT + LOW_BITS * exact),
        "reference": _reference(shapes, config, machine),
        "judge": c * judge.parameters if judge else 0.0,
        "runtime": GPU_RUNTIME if machine.device == "cuda" else CPU_RUNTIME,
    }
    table = {phase: dict.fromkeys(ITEMS, 0.0) | resident for phase in PHASES}
    for phase in PHASES:
        table[phase]["weights"] += copy if phase == "rollout" or keep_copy else 0
    if keep_copy and config.reference_writes_plain:  # else its copy and the policy's take turns
        table["rollout"]["reference"] += _whole_reference(shapes, config, machine)
    _rollout(table["rollout"], shapes, config, machine)
    grader = judge or shapes
    if config.judge_kind == "self" or judge:
        table["judge"]["activations"] = JUDGE_TOKENS * forward_bytes(grader.config, c)
        table["judge"]["logits"] = 2 * HEAD_ROWS * grader.config.vocab_size * 4
        table["judge"]["reference"] += _whole_reference(shapes, config, machine) if config.judge_kind == "self" else 0
    if config.beta > 0:
        table["reference"]["activations"] = micro_batch(config, machine) * _scoring_bytes(shapes.config, c)
        table["reference"]["logits"] = 2 * 4 * CHUNK_ELEMENTS
        table["reference"]["gathered"] = _gathered_reference(shapes, config, machine)
    table["update"]["gradients"] = kept * 4
    _update(table["update"], shapes, config, machine)
    return table


def _reference(shapes: Shapes, config: Config, machine: Machine) -> float:
    c = machine.compute.itemsize
    if not config.needs_reference:
        return 0.0
    if config.reference_memory == "host":
        return c * (shapes.head + 2 * shapes.layer)
    return c * shapes.parameters / machine.gpus


def _cuts_reference(config: Config, machine: Machine) -> bool:
    return machine.gpus > 1 and config.reference_memory != "host"


def _whole_reference(shapes: Shapes, config: Config, machine: Machine) -> float:
    """The whole copy of a sharded reference, with which ranks compute at their own pace (weight_sync.py)."""
    return machine.compute.itemsize * shapes.parameters * _cuts_reference(config, machine)


def _gathered_reference(shapes: Shapes, config: Config, machine: Machine) -> float:
    """Two layers of a sharded reference, or its head."""
    return machine.compute.itemsize * max(2 * shapes.layer, shapes.head) * _cuts_reference(config, machine)


def _scoring_bytes(config: ModelConfig, c: int) -> int:
    """A token of a forward that ends in log-probs: its hidden state is there three times when the last layer is done."""
    return forward_bytes(config, c) + 3 * c * config.hidden_size


def _rollout(items: dict[str, float], shapes: Shapes, config: Config, machine: Machine) -> None:
    """A GPU's slots hold prompt and completion of a row (static_cache.py); a CPU keeps a prompt once for its group, and packs a
    copy of the weights (packed.py)."""
    c, model, on_cpu = machine.compute.itemsize, shapes.config, machine.device == "cpu"
    sequences, prompts = sampled_at_once(config, machine)
    S = min(config.max_slots, sequences)
    N = min(S, prompts)
    kv = kv_bytes_per_token(model, machine.compute)
    items["KV cache"] = kv * (S * config.max_new_tokens + (N if on_cpu else S) * config.max_prompt_tokens)
    items["weights"] += c * shapes.parameters * on_cpu
    prefill = prefill_bytes(model, machine.compute, min(PREFILL_TOKENS, N * config.max_prompt_tokens))
    scores = S * model.num_attention_heads * longest_sequence(config) * 3 * c * on_cpu
    items["activations"] = max(prefill, S * forward_bytes(model, c) + scores)
    items["logits"] = S * draw_bytes(model, config.max_new_tokens) + 4 * N * model.vocab_size


def _update(items: dict[str, float], shapes: Shapes, config: Config, machine: Machine) -> None:
    """The larger of two moments, with all that the forward has kept: the head's backward, and the last layer's.

    The head's backward holds its weight in the compute dtype, the float32 sum of its gradient and one chunk's part of it.
    A layer's holds two layers' gathered weights (one if nothing is sharded), and a layer's gradients in both dtypes.
    """
    c, model, T = machine.compute.itemsize, shapes.config, micro_batch(config, machine)
    layers, is_sharded = model.num_hidden_layers, machine.gpus > 1 or config.memory == "offload"
    casts = config.memory != "exact-bf16" and c < MASTER
    padded = machine.device == "cpu"
    per_layer = saved_bytes(model, c, padded=padded)
    saved = T * (layers * (c * model.hidden_size if config.activation_checkpointing else per_layer))
    saved += T * 5 * c * model.hidden_size  # the stream, the last norm, scored states and their gradient
    running = T * (backward_bytes(model, c) + per_layer * config.activation_checkpointing)
    weights = c * shapes.layer * (2 if is_sharded else 1) * (is_sharded or casts)
    if config.memory == "offload":
        weights += 2 * MASTER * shapes.layer  # on their way from host memory, before they are cast
    if casts and not is_sharded and not config.activation_checkpointing:
        saved += c * (shapes.parameters - 2 * shapes.head)  # autograd keeps the cast weights of every layer
    layer_gradients = (c + 4) * shapes.layer * is_sharded
    head = (c * (is_sharded or casts) + 4 + c) * shapes.head
    logits = 2 * 4 * CHUNK_ELEMENTS
    if head + logits >= running + weights + layer_gradients:
        items["activations"], items["gathered"], items["logits"] = saved, head, logits
    else:
        items["activations"], items["gathered"], items["logits"] = saved + running, weights + layer_gradients, 0.0
    if config.memory == "exact-bf16":
        items["activations"] = max(items["activations"], OPTIMIZER_TEMPORARIES)


def pinned(count: int, itemsize: int) -> int:
    """Bytes of a pinned tensor: torch rounds each up to a power of two."""
    return 1 << (count * itemsize - 1).bit_length()


def host_bytes(shapes: Shapes, config: Config, machine: Machine) -> float:
    """Host memory of one node of GPUs.

    offload: pinned float32 weights and gradients, each tensor rounded up, and Adam's moments: 16P/W and more a process. A
    reference in host memory: cP a process, each layer rounded up. At a checkpoint the weights are exported from rank 0: cP.
    """
    if machine.device == "cpu":
        return 0.0
    c, W = machine.compute.itemsize, machine.gpus
    a_process = NODE_RUNTIME
    if config.memory == "offload":
        shards = [math.ceil(count / W) for count in shapes.sizes]
        a_process += sum(2 * pinned(count, MASTER) + 2 * MOMENT * count for count in shards)
    if config.needs_reference and config.reference_memory == "host":
        a_process += shapes.config.num_hidden_layers * pinned(shapes.layer, c) + c * shapes.head
    return machine.processes_per_node * a_process + c * shapes.parameters


def disk_bytes(shapes: Shapes, config: Config) -> int:
    """Disk for the checkpoints that are kept and the one being written, exported in two bytes a weight."""
    return sum(checkpoint_bytes(shapes.parameters, 2)) * (config.keep + 1)
