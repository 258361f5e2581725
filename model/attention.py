"""Attention over whole sequences: a padded batch, or sequences packed end to end. Decoding is in kv_cache.py.

Every kind of attention is an object with `attend(layer, q_BTHD, k_BTKD, v_BTKD) -> out_BTHD`, handed to the model as `cache`.

Shapes: B sequences, T tokens, H query heads, K key/value heads, D head dimension.
"""

import inspect

import torch
import torch.nn.functional as F
from torch import Tensor


class CausalAttention:
    """Each row of the batch is one sequence, padded on the right (padding is after every real token, so never seen)."""

    def attend(self, layer: int, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q_BTHD, k_BTKD, v_BTKD))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)


class PackedAttention:
    """One row holds several sequences end to end; tokens attend causally within their own sequence.

    Uses the variable-length flash kernel on CUDA in half precision, and one SDPA call a sequence elsewhere (exact, any dtype).

    Args:
        lengths: tokens of each sequence, in order; their sum is T.
    """

    def __init__(self, lengths: list[int], device: torch.device) -> None:
        self.lengths = lengths
        self.max_length = max(lengths)
        self.cu_seqlens = F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).to(device, torch.int32)

    def attend(self, layer: int, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> Tensor:
        assert q_BTHD.shape[:2] == (1, sum(self.lengths)), "packed input is one row of all sequences"
        if q_BTHD.is_cuda and q_BTHD.dtype in (torch.bfloat16, torch.float16):
            return self._flash(q_BTHD[0], k_BTKD[0], v_BTKD[0])[None]
        pieces = zip(*(x.split(self.lengths, dim=1) for x in (q_BTHD, k_BTKD, v_BTKD)), strict=True)
        return torch.cat([CausalAttention().attend(layer, q, k, v) for q, k, v in pieces], dim=1)

    def _flash(self, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        # torch 2.11 lets the kernel handle unequal head counts by itself; later versions want to be told.
        gqa = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
        cu, longest = self.cu_seqlens, self.max_length
        return varlen_attn(q_THD, k_TKD, v_TKD, cu, cu, longest, longest, window_size=(-1, 0), **gqa)
