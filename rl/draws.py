"""Random draws that are pure functions: each sequence has uniforms of its own, made from (seed_key, sample index) before it
starts and indexed by position, and a token is found by inverting the cumulative distribution.

Nothing here waits for the device, so that a draw can be part of a CUDA graph.

Shapes: B rows, V vocabulary, K blocks of it, W tokens of a block.
"""

import hashlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 256  # tokens of the vocabulary summed together before a token is looked for


def uniforms(seed_key, sample: int, count: int) -> Tensor:
    """`count` uniforms in [0, 1), float64 on the CPU: a pure function of (seed_key, sample)."""
    digest = hashlib.blake2b(f"{seed_key!r}/{sample}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.rand(count, generator=generator, dtype=torch.float64)


def draw_tokens(
    logits_BV: Tensor, uniform_B: Tensor, temperature_B: Tensor, top_p_B: Tensor | None = None, *, some_greedy: bool = True
) -> tuple[Tensor, Tensor]:
    """Sample one token a row by inverse CDF.

    Args:
        top_p_B: None when every row keeps the whole distribution, which saves sorting it.
        some_greedy: whether a temperature may be 0; False saves the search for the largest logit.

    Returns:
        token_B, and its log-prob logp_B under softmax(logits / temperature) (under softmax(logits) where temperature is 0).
    """
    greedy_B = temperature_B == 0
    divisor_B = temperature_B.masked_fill(greedy_B, 1.0) if some_greedy else temperature_B
    probs_BV = (logits_BV / divisor_B.to(logits_BV.dtype)[:, None]).softmax(-1)
    token_B = _invert_cdf(probs_BV if top_p_B is None else _keep_nucleus(probs_BV, top_p_B), uniform_B)
    if some_greedy:
        token_B = torch.where(greedy_B, logits_BV.argmax(-1), token_B)
    return token_B, probs_BV.gather(1, token_B[:, None])[:, 0].log()


def _invert_cdf(mass_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """The token at which the cumulative mass first exceeds `uniform` of the total.

    First the block of tokens, then the token in it: a float64 running sum over a whole vocabulary would cost as much as a
    good part of the model. Sums are float64 where they are long or decide; a block is summed in the dtype of the mass.
    """
    B, V = mass_BV.shape
    blocks_BKW = mass_BV.view(B, -1, math.gcd(V, BLOCK))
    cdf_BK = blocks_BKW.sum(-1).double().cumsum(-1)
    target_B1 = uniform_B[:, None] * cdf_BK[:, -1:]
    block_B1 = _first_above(cdf_BK, target_B1)
    before_B1 = F.pad(cdf_BK, (1, 0)).gather(1, block_B1)
    W = blocks_BKW.shape[2]
    inside_BW = blocks_BKW.gather(1, block_B1[:, :, None].expand(B, 1, W))[:, 0].double().cumsum(-1)
    return (block_B1 * W + _first_above(inside_BW, target_B1 - before_B1))[:, 0]


def _first_above(cdf_BK: Tensor, target_B1: Tensor) -> Tensor:
    """Index of the first sum above the target. Targets stay below the last sum: the search ends where there is mass."""
    below_last_B1 = torch.nextafter(cdf_BK[:, -1:], cdf_BK.new_zeros(()))
    return torch.searchsorted(cdf_BK, torch.minimum(target_B1, below_last_B1), right=True)


def _keep_nucleus(mass_BV: Tensor, top_p_B: Tensor) -> Tensor:
    """Zero all but the smallest set of most likely tokens whose mass reaches top_p."""
    sorted_BV, order_BV = mass_BV.double().sort(dim=-1, descending=True, stable=True)
    before_BV = sorted_BV.cumsum(-1) - sorted_BV
    kept_BV = sorted_BV.masked_fill(before_BV >= top_p_B[:, None], 0.0).to(mass_BV.dtype)
    nucleus_BV = torch.zeros_like(mass_BV).scatter_(1, order_BV, kept_BV)
    return torch.where(top_p_B[:, None] < 1, nucleus_BV, mass_BV)  # a row without a cut keeps every token, whatever its company
