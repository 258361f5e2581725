"""Models sharded over the ranks by FSDP2: each rank holds a part of every parameter; a layer is whole only while it computes.

Blocks, embedding and head are units of their own. All ranks must call forward and backward of a sharded model equally often.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from model.attention import HALF_PRECISION
from model.checkpoint import copy_weights, read_json
from model.config import ModelConfig
from model.transformer import Transformer


def load_sharded(
    source: Path, mesh: DeviceMesh, device: torch.device, *, dtype: torch.dtype, compute: torch.dtype, offload: bool = False
) -> Transformer:
    """Load a sharded model from a checkpoint folder; each rank reads its own rows of each tensor.

    Every unit is sharded again after its forward, so that no rank computes with whole parameters of before an optimizer step.

    Args:
        device: the device that computes; its memory holds the parameters, too, unless they are offloaded.
        dtype: dtype of the parameters.
        compute: dtype of activations, and of parameters while they are whole. Gradients are summed in at least float32.
        offload: keep parameters, gradients and optimizer in host memory.

    Raises:
        ValueError: see `load_model`.
    """
    # the model without memory
    config = ModelConfig.from_hf(read_json(source / "config.json"))
    with torch.device("meta"):
        model = Transformer(config).to(dtype)
    model.compute_dtype, model.compute_device = compute, device

    # its units; the head of a tied model is the embedding: both then belong to the root
    policy = MixedPrecisionPolicy(
        param_dtype=None if compute == dtype else compute,
        reduce_dtype=torch.float32 if dtype in HALF_PRECISION else dtype,
        cast_forward_inputs=False,
    )
    offloading = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if offload else OffloadPolicy()
    units = [] if config.tie_word_embeddings else [model.model.embed_tokens, model.lm_head]
    for unit in [*units, *model.model.layers, model]:
        fully_shard(unit, mesh=mesh, mp_policy=policy, offload_policy=offloading, reshard_after_forward=True)

    # memory and weights
    model.to_empty(device="cpu" if offload else device)
    copy_weights(model, source, rows_held)
    return model.eval()


def rows_held(parameter: nn.Parameter) -> tuple[Tensor, int]:
    """Return a parameter's rows on this rank, and the number of the first. Shards are `torch.chunk`'s: some may be empty."""
    if not isinstance(parameter, DTensor):
        return parameter, 0
    mesh = parameter.device_mesh
    rows = -(-parameter.shape[0] // mesh.size())
    return parameter.to_local(), min(mesh.get_local_rank() * rows, parameter.shape[0])


def whole(parameter: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a parameter without gradient, gathered if it is sharded: all ranks call this in the same order."""
    return full(parameter.detach().to(device=device, dtype=dtype))


def full(tensor: Tensor) -> Tensor:
    """Return a whole tensor, gathered if it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def whole_weights(model: Transformer, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters by name, so that no more than one of them is whole at a time."""
    for name, parameter in model.named_parameters():
        yield name, whole(parameter, dtype, model.device)
