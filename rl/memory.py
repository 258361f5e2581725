"""Where weights, gradients and optimizer live: the one place that looks at `--memory`.

    mode     trained parameters                    sampled with
    shard    float32, cut over the ranks           themselves on one CPU process, else a copy in the compute dtype
    offload  the same, in host memory              a copy on the GPU

The copy stays through the update if there is room, and is otherwise made for each rollout.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from model import Transformer, load_model
from rl.config import Config
from rl.distributed import gather, make_mesh, world_size
from rl.sharding import load_sharded
from rl.update import make_optimizer
from rl.weight_sync import PlainWeights

GRADIENT_BYTES = 4  # of a parameter
WORKING_BYTES = 17 * 2**30  # of an update: activations, logits, whole layers, the CUDA context


@dataclass
class Policy:
    """What is trained, and how.

    Attributes:
        weights: of the model, as the sampler uses them.
    """

    model: Transformer
    optimizer: torch.optim.Optimizer
    weights: PlainWeights


def compute_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU, float32 on a CPU, where bfloat16 is slower."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def memory_mode(config: Config) -> str:
    """What `--memory auto` stands for."""
    return "shard" if config.memory == "auto" else config.memory


def build_policy(config: Config, source: Path, device: torch.device) -> Policy:
    """Load the policy of a run and make its optimizer."""
    mode, compute = memory_mode(config), compute_dtype(device)
    if world_size() > 1 or mode == "offload":
        mesh = make_mesh(device)
        model = load_sharded(source, mesh, device, dtype=torch.float32, compute=compute, offload=mode == "offload")
    else:
        model = load_model(source, device=device)
        model.compute_dtype = compute
    model.activation_checkpointing = config.activation_checkpointing
    optimizer = make_optimizer(model, config)
    return Policy(model, optimizer, PlainWeights(model, keep=_has_room_for_copy(model, device, mode)))


def build_reference(source: Path, device: torch.device) -> Transformer:
    """The frozen initial policy, in the dtype it computes in: cut over the ranks, or whole on one process."""
    compute = compute_dtype(device)
    if world_size() > 1:
        model = load_sharded(source, make_mesh(device), device, dtype=compute, compute=compute)
        return model.requires_grad_(False)
    return load_frozen(source, device)


def load_frozen(source: Path, device: torch.device) -> Transformer:
    """A whole model that is never trained, in the dtype it computes in."""
    return load_model(source, dtype=compute_dtype(device), device=device).requires_grad_(False)


def _has_room_for_copy(model: Transformer, device: torch.device, mode: str) -> bool:
    """Whether the sampler's copy can stay on the device while gradients and activations are there; alike on all ranks."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    parameters = sum(p.numel() for p in model.parameters())
    gradients = 0 if mode == "offload" else parameters * GRADIENT_BYTES / world_size()
    return min(gather(free)) - parameters * model.activation_dtype.itemsize - gradients > WORKING_BYTES
