"""Attention of many continuations of few prompts in one forward: each prompt is computed once, however many continue it.

The input is one row of tokens, group after group: a prefix, then every suffix that continues it.

    positions     0 1 2 3 | 4 5 6 | 4 5 | 4 5 6 7        prefix | suffix | suffix | suffix

A suffix attends to its group's prefix and, causally, to itself, so its hidden states are those of prefix + suffix run alone.

Shapes: T tokens of the row, U keys laid out for the kernel, B suffixes of a group, P prefix, S longest suffix of a group,
H query heads, K key/value heads, D head dimension.
"""

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from model.attention import CausalAttention, flash_attention


class SharedPrefixAttention:
    """Hand it to the model as `cache`, with its `positions`.

    On CUDA in half precision the variable-length flash kernel does the work; elsewhere each group is a padded batch (exact, any
    dtype).

    Args:
        groups: (tokens of the prefix, tokens of each suffix) of each group, in the order of the row; only a prefix may
            be 0.
    """

    def __init__(self, groups: list[tuple[int, list[int]]], device: torch.device) -> None:
        assert all(suffixes and min(suffixes) > 0 for _, suffixes in groups), "empty suffix"
        self.groups, self.device = groups, device

    @property
    def positions_1T(self) -> Tensor:
        """Position of each token of the row in its own sequence."""
        ranges = [r for p, suffixes in self.groups for r in (range(p), *(range(p, p + s) for s in suffixes))]
        return torch.cat([torch.arange(r.start, r.stop) for r in ranges])[None].to(self.device)

    @property
    def ends(self) -> list[int]:
        """Where the last token of each suffix is in the row."""
        ends, at = [], 0
        for prefix, suffixes in self.groups:
            at += prefix
            for length in suffixes:
                at += length
                ends.append(at - 1)
        return ends

    def attend(self, layer: int, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> Tensor:
        if q_BTHD.is_cuda and q_BTHD.dtype in (torch.bfloat16, torch.float16):
            keys_U, *lengths = self._flash_layout
            return flash_attention(q_BTHD[0], k_BTKD[0, keys_U], v_BTKD[0, keys_U], *lengths)[None]
        sizes = [prefix + sum(suffixes) for prefix, suffixes in self.groups]
        parts = zip(self.groups, *(x[0].split(sizes) for x in (q_BTHD, k_BTKD, v_BTKD)), strict=True)
        return torch.cat([_attend_group(*group, q, k, v) for group, q, k, v in parts])[None]

    @cached_property
    def _flash_layout(self) -> tuple[Tensor, Tensor, Tensor, int, int]:
        """Which keys follow each other for the kernel, and the bounds and longest of its sequences in queries and in keys."""
        keys, q_lengths, k_lengths, at = [], [], [], 0
        for prefix, suffixes in self.groups:
            prefix_keys = torch.arange(at, at + prefix)
            keys.append(prefix_keys)
            at += prefix
            for length in suffixes:
                keys += [prefix_keys, torch.arange(at, at + length)]
                at += length
            q_lengths += [prefix, *suffixes]
            k_lengths += [prefix, *(prefix + length for length in suffixes)]
        q_lengths, k_lengths = [n for n in q_lengths if n], [n for n in k_lengths if n]  # an empty prefix is no sequence
        cu_q, cu_k = (F.pad(torch.tensor(x).cumsum(0), (1, 0)).to(self.device, torch.int32) for x in (q_lengths, k_lengths))
        return torch.cat(keys).to(self.device), cu_q, cu_k, max(q_lengths), max(k_lengths)


def _attend_group(prefix: int, suffixes: list[int], q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
    """One group: the prefix by itself, then its suffixes as a batch padded on the right."""
    prefix_qkv = [x[None, :prefix] for x in (q_THD, k_TKD, v_TKD)]
    prefix_out = CausalAttention().attend(0, *prefix_qkv)[0]
    q, k, v = (pad_sequence(x[prefix:].split(suffixes), batch_first=True) for x in (q_THD, k_TKD, v_TKD))
    B, S = q.shape[:2]
    k, v = (torch.cat((p.expand(B, -1, -1, -1), x), dim=1) for p, x in zip(prefix_qkv[1:], (k, v), strict=True))
    seen = torch.ones(S, prefix + S, dtype=torch.bool, device=q.device).tril(prefix)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out_BSHD = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True).transpose(1, 2)
    return torch.cat([prefix_out, *(out[:length] for out, length in zip(out_BSHD, suffixes, strict=True))])
