"""The homes of weights, gradients and optimizer: the one file that builds what `--memory` says.

    mode         trained parameters                      sampled with
    shard        float32, cut over the ranks             themselves on one CPU process, else a copy in the compute dtype
    exact-bf16   bfloat16, with the low half of float32  themselves on one GPU, else a copy
    offload      float32, in host memory                 a copy on the GPU

With --lora-rank none of them: every rank holds the whole model once, frozen in the compute dtype, and float32 adapters. The
sampler uses these very weights, and the reference is a view of them without the adapters.

The plan (memory.py) says what `auto` stands for. A copy is made for each rollout and gone in the update.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grad_norm_

from model.checkpoint import load_model
from model.folder import is_adapter
from model.lora import TARGETS, adapter_parameters, add_adapters, lora_setting, shared_copy
from model.transformer import Transformer
from rl.config import Config
from rl.distributed import make_mesh, world_size
from rl.optim import adamw, create_state
from rl.weights.exact_bf16 import ExactBF16AdamW
from rl.weights.sharding import full, load_sharded, whole


@dataclass
class TrainState:
    """The policy in training: everything a checkpoint restores, and the frozen reference beside it."""

    policy: Transformer  # updated in place; float32, with exact-bf16 bfloat16; it may be sharded
    optimizer: torch.optim.Optimizer
    reference: Transformer | None = None  # the frozen initial policy; None when beta is 0
    optimizer_steps: int = 0  # taken so far: the version of the policy
    skipped_in_a_row: int = 0  # steps with a loss or gradient that was not finite, since the last good one


def compute_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of activations: bfloat16 on a GPU, float32 on a CPU, where bfloat16 is slower."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def load_policy(config: Config, source: Path, device: torch.device) -> Transformer:
    """Load the weights that are trained to where `--memory` says, which is not auto any more; or a model with adapters.

    Raises:
        ValueError: `source` is an adapter, and the flags do not say so or name another shape.
    """
    if config.lora_rank or is_adapter(source):
        return _load_adapted(config, source, device)
    # whole float32 weights become bfloat16 in ExactBF16AdamW, which keeps what that takes from them; sharded ones cannot
    is_half = config.memory == "exact-bf16" and world_size() > 1
    dtype = torch.bfloat16 if is_half else torch.float32
    model = _load(source, device, dtype=dtype, offload=config.memory == "offload")
    model.activation_checkpointing = config.activation_checkpointing
    return model


def _load_adapted(config: Config, source: Path, device: torch.device) -> Transformer:
    model = load_frozen(source, device)
    if not is_adapter(source):
        add_adapters(model, config.lora_rank, config.lora_alpha, lora_targets(config), config.seed)
    rank, alpha, targets = lora_setting(model)
    if (rank, alpha, targets) != (config.lora_rank, config.lora_alpha, lora_targets(config)):
        flags = f"--lora-rank {rank} --lora-alpha {alpha:g} --lora-targets {','.join(targets)}"
        raise ValueError(f"{source} is an adapter: train it on with {flags}, or merge it first (python -m rl.export)")
    for parameter in adapter_parameters(model).values():
        parameter.requires_grad_(True)
    model.activation_checkpointing = config.activation_checkpointing
    return model


def lora_targets(config: Config) -> tuple[str, ...]:
    """Return the names of `--lora-targets`."""
    return TARGETS if config.lora_targets == "all" else tuple(config.lora_targets.split(","))


def load_reference(source: Path, device: torch.device, *, offload: bool, policy: Transformer | None = None) -> Transformer:
    """Load the frozen initial policy, in the dtype it computes in: whole on one process, else cut over the ranks.

    Args:
        policy: with adapters, as it was loaded: the reference then shares its weights, and has copies of adapters that the
            policy began with.
        offload: keep it in host memory (FSDP2); each layer visits the device while it computes. What judges or writes answers
            is a whole copy (`WholeWeights`), because a decode step would fetch every weight for one token.
    """
    if policy is not None:
        return shared_copy(policy, with_adapters=is_adapter(source))
    return _load(source, device, dtype=compute_dtype(device), offload=offload).requires_grad_(False)


def load_frozen(source: Path, device: torch.device) -> Transformer:
    """Load a whole model that is never trained, in the dtype it computes in."""
    return load_model(source, dtype=compute_dtype(device), device=device).requires_grad_(False)


def _load(source: Path, device: torch.device, *, dtype: torch.dtype, offload: bool) -> Transformer:
    compute = compute_dtype(device)
    if world_size() > 1 or offload:
        return load_sharded(source, make_mesh(device), device, dtype=dtype, compute=compute, offload=offload)
    model = load_model(source, dtype=dtype, device=device)
    model.compute_dtype = compute
    return model


def make_optimizer(policy: Transformer, config: Config) -> torch.optim.Optimizer:
    """Make AdamW on float32 masters; with --memory exact-bf16 the policy's weights become bfloat16 here, in place."""
    setting = dict(lr=config.lr, betas=(0.9, config.adam_beta2))
    if config.memory == "exact-bf16":
        return ExactBF16AdamW(policy.parameters(), **setting)
    optimizer = adamw([p for p in policy.parameters() if p.requires_grad], **setting)
    create_state(optimizer)
    return optimizer


def clip_gradients(policy: Transformer, max_norm: float | None) -> float:
    """Clip the gradient of all ranks and return its norm before. Adapters' gradients are averaged first, sharded ones are."""
    gradients = [p.grad for p in adapter_parameters(policy).values() if p.grad is not None]
    if gradients and world_size() > 1:
        total = torch.cat([gradient.flatten() for gradient in gradients])  # one message
        dist.all_reduce(total)
        for gradient, part in zip(gradients, total.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient) / world_size())
    return full(clip_grad_norm_(policy.parameters(), max_norm or math.inf)).item()


def make_sampler_model(policy: Transformer) -> Transformer:
    """Return the weights to sample with: the policy itself where it is whole and of the compute dtype, else a copy.

    Float32 masters that compute in bfloat16 need the copy: it halves what every decode step has to read. Sharded ones need it
    because ranks decode at their own pace, and a sharded forward keeps them in step.
    """
    weight = policy.lm_head.weight
    if policy.activation_dtype == weight.dtype and not isinstance(weight, DTensor):
        return policy
    with torch.device("meta"):
        replica = Transformer(policy.config)
    replica = replica.to(policy.activation_dtype).to_empty(device=policy.device).requires_grad_(False)
    if policy.config.tie_word_embeddings:
        replica.lm_head.weight = replica.model.embed_tokens.weight
    sync_weights(policy, replica)
    return replica.eval()


@torch.no_grad()
def sync_weights(policy: Transformer, sampler_model: Transformer) -> None:
    """Copy the policy into the sampler's model, in place: addresses stay valid. Nothing to do where they are one model.

    The weights of a sharded policy are gathered one after another: all ranks call this together.
    """
    if sampler_model is policy:
        return
    for source, target in zip(policy.parameters(), sampler_model.parameters(), strict=True):
        target.copy_(whole(source, target.dtype, target.device))


class WholeWeights:
    """A whole copy of a model that is sharded or of another dtype, in memory while it is used: `with weights: ...`

    All ranks enter together, and then compute at their own pace. The model object stays the same; its memory comes and goes.

    Attributes:
        model: for use inside the context; the source itself if it is whole and of the compute dtype.
    """

    def __init__(self, source: Transformer) -> None:
        self.source, self.model = source, make_sampler_model(source)
        self._copies = [] if self.model is source else list(self.model.parameters())
        self.__exit__()

    def refresh(self) -> None:
        """Make the copy now, with the weights that the source has now; the next use finds it."""
        for parameter in self._copies:
            parameter.untyped_storage().resize_(parameter.numel() * parameter.itemsize)
        sync_weights(self.source, self.model)
        self._is_filled = True

    def __enter__(self) -> Transformer:
        if not self._is_filled:
            self.refresh()
        return self.model

    def __exit__(self, *exception) -> None:
        for parameter in self._copies:
            parameter.untyped_storage().resize_(0)
        self._is_filled = False
