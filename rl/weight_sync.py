"""Hands the trainer's weights to the sampler after every optimizer step."""

import torch

from model.transformer import Transformer


def make_sampler_model(policy: Transformer) -> Transformer:
    """The weights to sample with: the policy itself where it computes in the dtype of its weights, else a copy in that dtype.

    Float32 masters that compute in bfloat16 need the copy: it halves what every decode step has to read.
    """
    if policy.activation_dtype == policy.lm_head.weight.dtype:
        return policy
    with torch.device("meta"):
        replica = Transformer(policy.config)
    replica = replica.to(policy.activation_dtype).to_empty(device=policy.device).requires_grad_(False)
    if policy.config.tie_word_embeddings:
        replica.lm_head.weight = replica.model.embed_tokens.weight
    sync_weights(policy, replica)
    return replica


@torch.no_grad()
def sync_weights(policy: Transformer, sampler_model: Transformer) -> None:
    """Copy the policy into the sampler's model, in place: addresses stay valid. Nothing to do where they are one model."""
    if sampler_model is policy:
        return
    for source, target in zip(policy.parameters(), sampler_model.parameters(), strict=True):
        target.copy_(source)
