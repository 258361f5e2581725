"""Attention over whole sequences: a padded batch, or sequences packed end to end. Decoding is in kv_cache.py.

Every kind of attention is an object with `attend(layer, q_BTHD, k_BTKD, v_BTKD) -> out_BTHD`, handed to the model as `cache`.

Shapes: B sequences, T tokens, H query heads, K key/value heads, D head dimension.
"""

import inspect
from functools import cache, cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from model.precision import has_flash_kernels


class CausalAttention:
    """Each row of the batch is one sequence, padded on the right (padding is after every real token, so never seen)."""

    def attend(self, layer: int, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q_BTHD, k_BTKD, v_BTKD))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)


class PackedAttention:
    """One row holds several sequences end to end; tokens attend causally within their own sequence.

    So linear layers, norms and the head run over real tokens alone. Attention itself uses the variable-length flash kernel on
    CUDA in half precision; elsewhere it lays the sequences out in a padded batch, several short ones to a row, and gathers the
    result back (exact, any dtype).

    Args:
        lengths: tokens of each sequence, in order; their sum is T.
    """

    def __init__(self, lengths: list[int], device: torch.device) -> None:
        self.lengths, self.device = lengths, device
        self.longest = max(lengths)
        self.cu_seqlens = F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).to(device, torch.int32)

    def attend(self, layer: int, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> Tensor:
        assert q_BTHD.shape[:2] == (1, sum(self.lengths)), "packed input is one row of all sequences"
        if has_flash_kernels(q_BTHD):
            cu, longest = self.cu_seqlens, self.longest
            return flash_attention(q_BTHD[0], k_BTKD[0], v_BTKD[0], cu, cu, longest, longest)[None]
        place_T, _, visible = self._layout
        q, k, v = (self._lay_out(x[0]).transpose(1, 2) for x in (q_BTHD, k_BTKD, v_BTKD))
        causal = visible is None
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=causal, enable_gqa=True)
        return out.transpose(1, 2).flatten(0, 1)[place_T][None]

    @cached_property
    def _layout(self) -> tuple[Tensor, int, Tensor | None]:
        """Place of each token in a padded batch, rows of that batch, and who may attend to whom (None: plain causal)."""
        begins, rows = first_fit(self.lengths, self.longest)
        sequence_T = torch.arange(len(self.lengths)).repeat_interleave(torch.tensor(self.lengths))
        within_T = torch.cat([torch.arange(length) for length in self.lengths])
        place_T = torch.tensor(begins)[sequence_T] + within_T
        visible = None
        if rows < len(self.lengths):
            owner_RT = torch.full((rows * self.longest,), -1).index_copy(0, place_T, sequence_T).view(rows, self.longest)
            visible = (owner_RT[:, :, None] == owner_RT[:, None, :]).tril()[:, None].to(self.device)
        return place_T.to(self.device), rows, visible

    def _lay_out(self, x_THD: Tensor) -> Tensor:
        place_T, rows, _ = self._layout
        padded = x_THD.new_zeros(rows * self.longest, *x_THD.shape[1:])
        return padded.index_copy(0, place_T, x_THD).unflatten(0, (rows, self.longest))


def flash_attention(
    q_THD: Tensor, k_UKD: Tensor, v_UKD: Tensor, cu_q: Tensor, cu_k: Tensor, longest_q: int, longest_k: int
) -> Tensor:
    """Causal attention of sequences laid end to end, by the variable-length kernel: CUDA and half precision only.

    A sequence may have more keys than queries (U tokens instead of T): its queries are then its last tokens.
    """
    from torch.nn.attention.varlen import varlen_attn

    # torch 2.11 lets the kernel handle unequal head counts by itself; later versions want to be told
    gqa = {"enable_gqa": True} if "enable_gqa" in varlen_options() else {}
    return varlen_attn(q_THD, k_UKD, v_UKD, cu_q, cu_k, longest_q, longest_k, window_size=(-1, 0), **gqa)


@cache
def varlen_options() -> frozenset[str]:
    """What the public wrapper of the variable-length kernel can be told; it grew from torch 2.11 on."""
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)


def first_fit(lengths: list[int], row_length: int) -> tuple[list[int], int]:
    """Place sequences into rows of equal length, longest first, each into the first row with room for it.

    Returns:
        Where each sequence begins in the rows laid end to end, and the number of rows.
    """
    begins, filled = [0] * len(lengths), []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((row for row, used in enumerate(filled) if used + lengths[index] <= row_length), len(filled))
        if row == len(filled):
            filled.append(0)
        begins[index] = row * row_length + filled[row]
        filled[row] += lengths[index]
    return begins, len(filled)
