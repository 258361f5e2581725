"""The sampler's KV cache: every row has a slot of fixed size that holds its prompt and what it has generated.

Addresses never change, so that a decode step over the cache can be captured in a CUDA graph. The cache starts as zeros, because
masked garbage is harmless but masked NaN is not (0 * NaN).

Shapes: L layers, S slots, B live rows, M tokens of a slot, T tokens of a prompt, H query heads, K key/value heads, D head dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.attention import PackedAttention, has_flash_kernels, varlen_options
from model.config import ModelConfig


def kv_bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes that one token's keys and values take in all layers."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * dtype.itemsize


class PromptRecorder:
    """Attention over prompts laid end to end that keeps the keys and values it is given."""

    def __init__(self, lengths: list[int], device: torch.device) -> None:
        self.lengths, self.packed = lengths, PackedAttention.of_sequences(lengths, device)
        self.layers: list[Tensor] = []

    def attend(self, layer: int, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> Tensor:
        self.layers.append(torch.cat((k_BTKD, v_BTKD)))
        return self.packed.attend(layer, q_BTHD, k_BTKD, v_BTKD)

    def take(self) -> tuple[Tensor, ...]:
        """Keys and values of each prompt, [2, L, T, K, D]."""
        return torch.stack(self.layers, dim=1).split(self.lengths, dim=2)


class KVCache:
    """Keys and values of `slots` rows of up to `max_len` tokens."""

    def __init__(self, config: ModelConfig, *, slots: int, max_len: int, dtype: torch.dtype, device: torch.device) -> None:
        L, K, D = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
        flash = has_flash_kernels(torch.empty(0, dtype=dtype, device=device))  # they want the heads of a token side by side
        token_head = (max_len, K) if flash else (K, max_len)  # on a CPU SDPA is up to 1.7 times as fast this way round
        kv = torch.zeros(2, L, slots, *token_head, D, dtype=dtype, device=device)
        self.kv = kv if flash else kv.transpose(3, 4)
        self.cu_q = torch.arange(slots + 1, dtype=torch.int32, device=device)  # one query a row
        self.cu_k = self.cu_q * max_len  # where each slot begins
        self.slot_S = torch.arange(slots, device=device)

    def store_prompt(self, slot: int, kv_2LTKD: Tensor) -> None:
        """Copy the keys and values of a prompt into a slot."""
        self.kv[:, :, slot, : kv_2LTKD.shape[2]] = kv_2LTKD

    def move(self, sources: Tensor, targets: Tensor, length: int) -> None:
        """Copy the first `length` tokens of some slots into others."""
        self.kv[:, :, targets, :length] = self.kv[:, :, sources, :length]

    def begin_step(self, position_B: Tensor, live_B: Tensor, longest: int | None = None) -> None:
        """Say where each row's new token belongs. A dead row repeats its last place, and attends to one token.

        Args:
            longest: tokens of the longest live row, where the host knows it: attention then reads no further.
        """
        self.position_B, self.length_B = position_B, (position_B * live_B + 1).int()
        self.longest = longest or self.kv.shape[3]
        if has_flash_kernels(self.kv):
            return  # they read lengths, no mask
        seen_BM = torch.arange(self.longest, device=position_B.device) < self.length_B[:, None]
        self.bias_B11M = torch.zeros_like(seen_BM, dtype=self.kv.dtype).masked_fill_(~seen_BM, -torch.inf)[:, None, None]

    def attend(self, layer: int, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> Tensor:
        """Append one token to every row and attend from it; T of the arguments is 1."""
        B, slot_B = len(q_BTHD), self.slot_S[: len(q_BTHD)]
        k_SMKD, v_SMKD = self.kv[0, layer], self.kv[1, layer]
        k_SMKD[slot_B, self.position_B], v_SMKD[slot_B, self.position_B] = k_BTKD[:, 0], v_BTKD[:, 0]
        if has_flash_kernels(q_BTHD):
            cu_q, cu_k = self.cu_q[: B + 1], self.cu_k[: B + 1]
            return flash_decode(q_BTHD[:, 0], k_SMKD[:B], v_SMKD[:B], cu_q, cu_k, self.length_B)[:, None]
        # the query heads that share a key/value head are the rows of one product
        q_BKGD = q_BTHD.unflatten(2, (k_SMKD.shape[2], -1))[:, 0]
        k_BKMD, v_BKMD = (x[:B, : self.longest].transpose(1, 2) for x in (k_SMKD, v_SMKD))
        return F.scaled_dot_product_attention(q_BKGD, k_BKMD, v_BKMD, attn_mask=self.bias_B11M).reshape(q_BTHD.shape)


def flash_decode(q_BHD: Tensor, k_BMKD: Tensor, v_BMKD: Tensor, cu_q: Tensor, cu_k: Tensor, length_B: Tensor) -> Tensor:
    """Attention from one query a row to the first `length_B` tokens of its slot; CUDA and half precision only.

    The window stays open on both sides: only then does the kernel read K and V once for all query heads that share them. One
    split of the keys, where it can be asked for, keeps a row's result independent of how many rows are beside it.
    """
    from torch.nn.attention.varlen import varlen_attn

    M = k_BMKD.shape[1]
    k, v = k_BMKD.flatten(0, 1), v_BMKD.flatten(0, 1)
    if "seqused_k" in varlen_options():
        return varlen_attn(q_BHD, k, v, cu_q, cu_k, 1, M, enable_gqa=True, seqused_k=length_B, num_splits=1)
    # torch 2.11: the kernel has the argument, its public wrapper does not
    return torch.ops.aten._flash_attention_forward(q_BHD, k, v, cu_q, cu_k, 1, M, 0.0, False, False, seqused_k=length_B)[0]
