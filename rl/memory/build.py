"""Where weights, gradients and optimizer live: the one place that looks at `--memory`.

    mode         trained parameters                      sampled with
    shard        float32, cut over the ranks             themselves on one CPU process, else a copy in the compute dtype
    exact-bf16   bfloat16, with the low half of float32  themselves on one GPU, else a copy
    offload      float32, in host memory                 a copy on the GPU

The plan (choice.py) says what `auto` stands for, and whether the copy stays through the update or is made for each
rollout.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from model import Transformer, load_model
from rl.config import Config
from rl.distributed import make_mesh, world_size
from rl.memory.streaming import stream_from_host
from rl.sharding import load_sharded
from rl.update import make_optimizer
from rl.weight_sync import WholeWeights


@dataclass
class Policy:
    """What is trained, and how.

    Attributes:
        weights: of the model, as the sampler uses them.
    """

    model: Transformer
    optimizer: torch.optim.Optimizer
    weights: WholeWeights


def compute_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU, float32 on a CPU, where bfloat16 is slower."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def build_policy(config: Config, source: Path, device: torch.device, *, keep_copy: bool) -> Policy:
    """Load the policy of a run and make its optimizer.

    Args:
        config: with `--memory` decided.
        keep_copy: the sampler's copy stays through the update.
    """
    compute, offload = compute_dtype(device), config.memory == "offload"
    if world_size() > 1 or offload:
        stored = torch.bfloat16 if config.memory == "exact-bf16" else torch.float32
        model = load_sharded(source, make_mesh(device), device, dtype=stored, compute=compute, offload=offload)
    else:
        model = load_model(source, dtype=torch.float32, device=device)
        model.compute_dtype = compute
    model.activation_checkpointing = config.activation_checkpointing
    optimizer = make_optimizer(model, config)
    return Policy(model, optimizer, WholeWeights(model, keep=keep_copy))


def build_reference(config: Config, source: Path, device: torch.device) -> Transformer:
    """The frozen initial policy, in the dtype it computes in: in host memory, cut over the ranks, or whole on one process."""
    compute = compute_dtype(device)
    if config.reference_memory == "host":
        return stream_from_host(load_model(source, dtype=compute, device=torch.device("cpu")), device)
    if world_size() > 1:
        model = load_sharded(source, make_mesh(device), device, dtype=compute, compute=compute)
        return model.requires_grad_(False)
    return load_frozen(source, device)


def load_frozen(source: Path, device: torch.device) -> Transformer:
    """A whole model that is never trained, in the dtype it computes in."""
    return load_model(source, dtype=compute_dtype(device), device=device).requires_grad_(False)
