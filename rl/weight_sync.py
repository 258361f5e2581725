"""Hands the trainer's weights to the sampler after every optimizer step."""

import torch
from torch.distributed.tensor import DTensor

from model.transformer import Transformer
from rl.sharding import whole


def make_sampler_model(policy: Transformer) -> Transformer:
    """The weights to sample with: the policy itself where it is whole and computes in the dtype of its weights, else a copy.

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
    """A whole model with the weights of one that is sharded or of another dtype, there while it is used: `with weights: ...`

    All ranks enter together, and then compute at their own pace. The model object stays the same; its memory comes and goes.

    Args:
        source: the model whose weights these are.
        keep: hold on to the memory between uses; 2 bytes a parameter that an update then lacks.

    Attributes:
        model: to be used inside the context; the source itself if that will do.
    """

    def __init__(self, source: Transformer, *, keep: bool) -> None:
        self.source, self.keep = source, keep
        self.model = make_sampler_model(source)
        self._is_filled = True
        if not keep:
            self._release()

    def refresh(self) -> None:
        """The source has changed. A copy that was let go of is made anew when it is needed."""
        if self._is_filled:
            sync_weights(self.source, self.model)

    def __enter__(self) -> Transformer:
        if not self._is_filled:
            for parameter in self._copies():
                parameter.untyped_storage().resize_(parameter.numel() * parameter.itemsize)
            sync_weights(self.source, self.model)
            self._is_filled = True
        return self.model

    def __exit__(self, *exception) -> None:
        if not self.keep:
            self._release()

    def _release(self) -> None:
        self._is_filled = False
        for parameter in self._copies():
            parameter.untyped_storage().resize_(0)

    def _copies(self) -> list[torch.nn.Parameter]:
        return [] if self.model is self.source else list(self.model.parameters())
