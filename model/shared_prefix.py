"""Attention of many continuations of few prompts in one forward: each prompt is computed once, however many continue it.

The input is one row of tokens, group after group: a prefix, then every suffix that continues it.

    positions     0 1 2 3 | 4 5 6 | 4 5 | 4 5 6 7        prefix | suffix | suffix | suffix

A suffix attends to its group's prefix and, causally, to itself, so its hidden states are those of prefix + suffix run alone.

Shapes: T tokens of the row, U keys laid out for the kernel, N groups, P longest prefix, B suffixes of all groups, S longest
suffix, H query heads, K key/value heads, D head dimension.
"""

from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.attention import CausalAttention, flash_attention
from model.precision import has_flash_kernels


class SharedPrefixAttention:
    """Hand it to the model as `cache`, with its `positions`.

    On CUDA in half precision the variable-length flash kernel does the work; elsewhere prefixes and suffixes are two padded
    batches (exact, any dtype).

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

    @property
    def before_suffixes(self) -> Tensor:
        """Where the token before each suffix token is in the row: the prefix's last for the first of a suffix, else the one to
        its left. No prefix may be 0."""
        places, at = [], 0
        for prefix, suffixes in self.groups:
            last, at = at + prefix - 1, at + prefix
            for length in suffixes:
                places += [torch.tensor([last]), torch.arange(at, at + length - 1)]
                at += length
        return torch.cat(places).to(self.device)

    def attend(self, layer: int, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> Tensor:
        if has_flash_kernels(q_BTHD):
            keys_U, *lengths = self._flash_layout
            return flash_attention(q_BTHD[0], k_BTKD[0, keys_U], v_BTKD[0, keys_U], *lengths)[None]
        layout = self._padded_layout
        prefix_qkv = [_lay_out(x[0], layout.prefix) for x in (q_BTHD, k_BTKD, v_BTKD)]
        q, k, v = (_lay_out(x[0], layout.suffix) for x in (q_BTHD, k_BTKD, v_BTKD))
        k, v = (torch.cat((p[layout.group_B], x), dim=1) for p, x in zip(prefix_qkv[1:], (k, v), strict=True))
        prefix_out = CausalAttention().attend(layer, *prefix_qkv).flatten(0, 1)[layout.prefix.place]
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        suffix_out = F.scaled_dot_product_attention(q, k, v, attn_mask=layout.visible, enable_gqa=True).transpose(1, 2)
        out_THD = torch.cat((prefix_out, suffix_out.flatten(0, 1)[layout.suffix.place]))
        return out_THD[layout.back_T][None]

    @cached_property
    def _padded_layout(self) -> "_PaddedLayout":
        prefixes, suffixes, group, at = [], [], [], 0  # begins and lengths
        for n, (prefix, lengths) in enumerate(self.groups):
            prefixes.append((at, prefix))
            at += prefix
            for length in lengths:
                suffixes.append((at, length))
                group.append(n)
                at += length
        prefix, suffix = _pad(prefixes, self.device), _pad(suffixes, self.device)
        group_B, P, S = torch.tensor(group, device=self.device), prefix.longest, suffix.longest
        real_NP = torch.arange(P, device=self.device) < torch.tensor(prefixes, device=self.device)[:, 1:]
        causal_SS = torch.ones(S, S, dtype=torch.bool, device=self.device).tril()
        visible_BST = torch.cat((real_NP[group_B, None].expand(-1, S, -1), causal_SS.expand(len(group), -1, -1)), dim=-1)
        back_T = torch.cat((prefix.token, suffix.token)).argsort()
        return _PaddedLayout(prefix, suffix, group_B, visible_BST[:, None], back_T)

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


class _Padded(NamedTuple):
    """Sequences of the row as a batch padded on the right: tokens in the row, their places in the batch, its shape."""

    token: Tensor
    place: Tensor
    rows: int
    longest: int


class _PaddedLayout(NamedTuple):
    """The two batches, each suffix's group, whether a suffix token sees a key [B, 1, S, P + S], and the way back to the row."""

    prefix: _Padded
    suffix: _Padded
    group_B: Tensor
    visible: Tensor
    back_T: Tensor


def _pad(sequences: list[tuple[int, int]], device: torch.device) -> _Padded:
    """(begin in the row, length) of each sequence -> where its tokens go."""
    longest = max(length for _, length in sequences)
    token = torch.cat([torch.arange(begin, begin + length) for begin, length in sequences])
    place = torch.cat([torch.arange(row * longest, row * longest + length) for row, (_, length) in enumerate(sequences)])
    return _Padded(token.to(device), place.to(device), len(sequences), longest)


def _lay_out(x_THD: Tensor, batch: _Padded) -> Tensor:
    padded = x_THD.new_zeros(batch.rows * batch.longest, *x_THD.shape[1:])
    return padded.index_copy(0, batch.place, x_THD[batch.token]).unflatten(0, (batch.rows, batch.longest))
