"""Attention over whole sequences: a padded batch, or sequences packed end to end. Decoding is in kv_cache.py.

Every kind of attention is an object with `attend(layer, q_BTHD, k_BTKD, v_BTKD) -> out_BTHD`, handed to the model as `cache`.

Shapes: B sequences, T tokens of the row, U keys laid out for the kernel, N shared prefixes, P longest of them, S longest
sequence, H query heads, K key/value heads, D head dimension.
"""

import inspect
from functools import cache, cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

HALF_PRECISION = (torch.bfloat16, torch.float16)


def has_flash_kernels(x: Tensor) -> bool:
    """Return whether the flash kernels take this tensor: on CUDA, in half precision."""
    return x.is_cuda and x.dtype in HALF_PRECISION


class CausalAttention:
    """Each row of the batch is one sequence, padded on the right (padding is after every real token, so never seen)."""

    def attend(self, layer: int, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q_BTHD, k_BTKD, v_BTKD))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)


class PackedAttention:
    """One row of tokens holds several groups end to end: a prefix, then every suffix that continues it.

        positions     0 1 2 3 | 4 5 6 | 4 5 | 4 5 6 7        prefix | suffix | suffix | suffix

    A suffix attends to its group's prefix and, causally, to itself, so its hidden states are those of prefix + suffix run
    alone. A prefix is computed once, however many suffixes continue it. A sequence of its own is a group (0, [length]).

    On CUDA in half precision the variable-length flash kernel does the work. Elsewhere sequences are laid out in a padded
    batch, and shared prefixes in a second one (exact, any dtype).

    Args:
        groups: (tokens of the prefix, tokens of each suffix) of each group, in the order of the row; only a prefix may be 0.
    """

    def __init__(self, groups: list[tuple[int, list[int]]], device: torch.device) -> None:
        assert all(suffixes and min(suffixes) > 0 for _, suffixes in groups), "empty suffix"
        self.groups, self.device = groups, device
        # a prefix with a single suffix is no shared one: the two are one sequence
        self.merged = [(p, s) if p and len(s) > 1 else (0, [p + s[0], *s[1:]]) for p, s in groups]

    @classmethod
    def of_sequences(cls, lengths: list[int], device: torch.device) -> "PackedAttention":
        """Make the attention of sequences that share nothing."""
        return cls([(0, [length]) for length in lengths], device)

    @property
    def positions_1T(self) -> Tensor:
        """Position of each token of the row in its own sequence."""
        ranges = [r for p, suffixes in self.groups for r in (range(p), *(range(p, p + s) for s in suffixes))]
        return torch.cat([torch.arange(r.start, r.stop) for r in ranges])[None].to(self.device)

    @property
    def ends(self) -> list[int]:
        """The place of the last token of each suffix in the row."""
        return [begin + length - 1 for _, begin, length in self._suffixes]

    @property
    def before_suffixes(self) -> Tensor:
        """The place of the token before each suffix token in the row; no prefix may be 0.

        That is the prefix's last token for the first of a suffix, and the left neighbour for the others.
        """
        places = []
        for last_of_prefix, begin, length in self._suffixes:
            places += [torch.tensor([last_of_prefix]), torch.arange(begin, begin + length - 1)]
        return torch.cat(places).to(self.device)

    @property
    def _suffixes(self) -> list[tuple[int, int, int]]:
        """(the prefix's last token, first token, length) of each suffix."""
        found, at = [], 0
        for prefix, suffixes in self.groups:
            at += prefix
            last = at - 1
            for length in suffixes:
                found.append((last, at, length))
                at += length
        return found

    def attend(self, layer: int, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> Tensor:
        qkv_THD = q_BTHD[0], k_BTKD[0], v_BTKD[0]
        if has_flash_kernels(q_BTHD):
            keys_U, *lengths = self._flash_layout
            q, k, v = qkv_THD if keys_U is None else (qkv_THD[0], qkv_THD[1][keys_U], qkv_THD[2][keys_U])
            return flash_attention(q, k, v, *lengths)[None]
        layout = self._padded_layout
        q, k, v = (layout.sequences.lay_out(x) for x in qkv_THD)
        if layout.prefixes is None:
            return CausalAttention().attend(layer, q, k, v).flatten(0, 1)[layout.sequences.place][layout.back_T][None]

        # shared prefixes attend to themselves; sequences to the prefix of their group and to themselves
        prefix_qkv = [layout.prefixes.lay_out(x) for x in qkv_THD]
        prefix_out = CausalAttention().attend(layer, *prefix_qkv).flatten(0, 1)[layout.prefixes.place]
        k, v = (torch.cat((p[layout.prefix_B], x), dim=1) for p, x in zip(prefix_qkv[1:], (k, v), strict=True))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=layout.visible, enable_gqa=True).transpose(1, 2)
        out_THD = torch.cat((prefix_out, out.flatten(0, 1)[layout.sequences.place]))
        return out_THD[layout.back_T][None]

    @cached_property
    def _padded_layout(self) -> "_Layout":
        prefixes, sequences, prefix_of, at = [], [], [], 0  # begins and lengths
        for prefix, suffixes in self.merged:
            if prefix:
                prefixes.append((at, prefix))
                at += prefix
            for length in suffixes:
                sequences.append((at, length))
                prefix_of.append(len(prefixes) - 1 if prefix else -1)
                at += length
        padded = _Padded.of(sequences, self.device)
        if not prefixes:
            return _Layout(None, padded, None, None, padded.token.argsort())

        # sequences without a prefix see none of the one they are given
        shared, prefix_B = _Padded.of(prefixes, self.device), torch.tensor(prefix_of, device=self.device)
        real_NP = torch.arange(shared.longest, device=self.device) < torch.tensor(prefixes, device=self.device)[:, 1:]
        causal_SS = torch.ones(padded.longest, padded.longest, dtype=torch.bool, device=self.device).tril()
        real_BP = real_NP[prefix_B.clamp(min=0)] & (prefix_B >= 0)[:, None]
        both = real_BP[:, None].expand(-1, padded.longest, -1), causal_SS.expand(len(sequences), -1, -1)
        back_T = torch.cat((shared.token, padded.token)).argsort()
        return _Layout(shared, padded, prefix_B.clamp(min=0), torch.cat(both, dim=-1)[:, None], back_T)

    @cached_property
    def _flash_layout(self) -> tuple[Tensor | None, Tensor, Tensor, int, int]:
        """Keys in the kernel's order (None: as they are), bounds of its sequences in queries and keys, the longest of both."""
        keys, q_lengths, k_lengths, at = [], [], [], 0
        for prefix, suffixes in self.merged:
            prefix_keys = torch.arange(at, at + prefix)
            keys.append(prefix_keys)
            at += prefix
            for length in suffixes:
                keys += [prefix_keys, torch.arange(at, at + length)]
                at += length
            q_lengths += [prefix, *suffixes] if prefix else suffixes  # an empty prefix is no sequence
            k_lengths += [prefix, *(prefix + length for length in suffixes)] if prefix else suffixes
        cu_q, cu_k = (F.pad(torch.tensor(x).cumsum(0), (1, 0)).to(self.device, torch.int32) for x in (q_lengths, k_lengths))
        keys_U = torch.cat(keys).to(self.device) if any(prefix for prefix, _ in self.merged) else None
        return keys_U, cu_q, cu_k, max(q_lengths), max(k_lengths)


def group_rows(ids_BT: Tensor, mask_BT: Tensor) -> tuple[list[tuple[int, list[int]]], Tensor, Tensor, Tensor]:
    """Find rows of a padded batch that share a prompt, which is everything before the first token of `mask_BT`.

    Returns:
        The groups of a PackedAttention, the prompt tokens, the rows that begin a group, and the suffix tokens (from the first
        to the last of `mask_BT`).
    """
    column_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
    prompt_B = mask_BT.int().argmax(1)  # 0 where nothing is scored
    length_B = torch.where(mask_BT, column_T + 1, 0).amax(1)  # up to the last scored token
    is_prompt_BT = column_T < prompt_B[:, None]
    is_suffix_BT = (column_T < length_B[:, None]) & ~is_prompt_BT
    differs_BT = (ids_BT != ids_BT.roll(1, 0)) & is_prompt_BT
    begins_B = differs_BT.any(1) | (prompt_B != prompt_B.roll(1)) | (torch.arange(len(ids_BT), device=ids_BT.device) == 0)
    groups: list[tuple[int, list[int]]] = []
    for begins, prompt, length in torch.stack((begins_B, prompt_B, length_B), dim=1).tolist():
        if length and begins:
            groups.append((prompt, []))
        if length:
            groups[-1][1].append(length - prompt)
    return groups, is_prompt_BT, begins_B, is_suffix_BT


class _Padded(NamedTuple):
    """Sequences of the row as a batch padded on the right: tokens in the row, their places in the batch, its shape."""

    token: Tensor
    place: Tensor
    rows: int
    longest: int

    @classmethod
    def of(cls, sequences: list[tuple[int, int]], device: torch.device) -> "_Padded":
        """Lay out sequences given as (begin in the row, length)."""
        longest = max(length for _, length in sequences)
        token = torch.cat([torch.arange(begin, begin + length) for begin, length in sequences])
        place = torch.cat([torch.arange(row * longest, row * longest + n) for row, (_, n) in enumerate(sequences)])
        return cls(token.to(device), place.to(device), len(sequences), longest)

    def lay_out(self, x_THD: Tensor) -> Tensor:
        padded = x_THD.new_zeros(self.rows * self.longest, *x_THD.shape[1:])
        return padded.index_copy(0, self.place, x_THD[self.token]).unflatten(0, (self.rows, self.longest))


class _Layout(NamedTuple):
    """The two batches, each sequence's prefix, whether its tokens see a key [B, 1, S, P + S], and the way back to the row."""

    prefixes: _Padded | None
    sequences: _Padded
    prefix_B: Tensor | None
    visible: Tensor | None
    back_T: Tensor


def flash_attention(
    q_THD: Tensor, k_UKD: Tensor, v_UKD: Tensor, cu_q: Tensor, cu_k: Tensor, longest_q: int, longest_k: int
) -> Tensor:
    """Attend causally in sequences laid end to end, by the variable-length kernel: CUDA and half precision only.

    A sequence may have more keys than queries (U tokens instead of T): its queries are then its last tokens.
    """
    from torch.nn.attention.varlen import varlen_attn

    # torch 2.11 lets the kernel handle unequal head counts by itself; later versions want to be told
    gqa = {"enable_gqa": True} if "enable_gqa" in varlen_options() else {}
    return varlen_attn(q_THD, k_UKD, v_UKD, cu_q, cu_k, longest_q, longest_k, window_size=(-1, 0), **gqa)


@cache
def varlen_options() -> frozenset[str]:
    """Return what the public wrapper of the variable-length kernel can be told; it grew from torch 2.11 on."""
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)
