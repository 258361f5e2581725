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

    So linear layers, norms and the head run over real tokens alone. Attention itself uses the variable-length flash kernel on
    CUDA in half precision; elsewhere it spreads the sequences out into a padded batch and gathers the result back (exact, any
    dtype).

    Args:
        lengths: tokens of each sequence, in order; their sum is T.
    """

    def __init__(self, lengths: list[int], device: torch.device) -> None:
        self.lengths = lengths
        self.longest = max(lengths)
        lengths_B = torch.tensor(lengths)
        self.cu_seqlens = F.pad(lengths_B.cumsum(0), (1, 0)).to(device, torch.int32)
        is_token_BT = torch.arange(self.longest) < lengths_B[:, None]
        self.place_T = is_token_BT.flatten().nonzero()[:, 0].to(device)  # of each token in the padded batch

    def attend(self, layer: int, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> Tensor:
        assert q_BTHD.shape[:2] == (1, len(self.place_T)), "packed input is one row of all sequences"
        if q_BTHD.is_cuda and q_BTHD.dtype in (torch.bfloat16, torch.float16):
            return self._flash(q_BTHD[0], k_BTKD[0], v_BTKD[0])[None]
        out = CausalAttention().attend(layer, *(self._pad(x[0]) for x in (q_BTHD, k_BTKD, v_BTKD)))
        return out.flatten(0, 1)[self.place_T][None]

    def _pad(self, x_THD: Tensor) -> Tensor:
        padded = x_THD.new_zeros(len(self.lengths) * self.longest, *x_THD.shape[1:])
        return padded.index_copy(0, self.place_T, x_THD).unflatten(0, (len(self.lengths), self.longest))

    def _flash(self, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        # torch 2.11 lets the kernel handle unequal head counts by itself; later versions want to be told.
        gqa = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
        cu, longest = self.cu_seqlens, self.longest
        return varlen_attn(q_THD, k_TKD, v_TKD, cu, cu, longest, longest, window_size=(-1, 0), **gqa)
