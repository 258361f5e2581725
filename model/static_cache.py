"""The KV cache of the sampler on a GPU: each row slot holds its prompt and what it has generated, at fixed addresses.

So a decode step over it can be captured in a CUDA graph. Attention runs over each row's own length: by the variable-length
flash kernel on CUDA in half precision, by masked attention over whole slots elsewhere (the definition, for tests). The cache
starts as zeros, because masked garbage is harmless but masked NaN is not (0 * NaN).

Shapes: L layers, S slots, B slots that are computed, M tokens of a slot, T tokens of a prompt, H query heads, K key/value
heads, D head dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.attention import varlen_options
from model.config import ModelConfig
from model.precision import has_flash_kernels


class StaticCache:
    """Keys and values of `slots` rows of up to `max_len` tokens."""

    def __init__(self, config: ModelConfig, *, slots: int, max_len: int, dtype: torch.dtype, device: torch.device) -> None:
        L, K, D = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
        self.kv = torch.zeros(2, L, slots, max_len, K, D, dtype=dtype, device=device)
        self.slot_S = torch.arange(slots, device=device)
        self.cu_q = torch.arange(slots + 1, dtype=torch.int32, device=device)  # one query a row
        self.cu_k = self.cu_q * max_len  # where each slot begins

    def store_prompt(self, slot: int, kv_2LTKD: Tensor) -> None:
        """Copy the keys and values of a prompt into a slot."""
        self.kv[:, :, slot, : kv_2LTKD.shape[2]] = kv_2LTKD

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of a slot into another."""
        self.kv[:, :, target, :length] = self.kv[:, :, source, :length]

    def begin_step(self, position_B: Tensor, live_B: Tensor) -> None:
        """Say where each row's new token belongs. A dead row repeats its last place, and attends to a single token."""
        self.position_B = position_B
        self.length_B = (position_B * live_B + 1).int()

    def attend(self, layer: int, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> Tensor:
        """Append one token to every row and attend from it; T of the arguments is 1."""
        B = len(q_BTHD)
        k_SMKD, v_SMKD = self.kv[0, layer], self.kv[1, layer]
        slot_B = self.slot_S[:B]
        k_SMKD[slot_B, self.position_B], v_SMKD[slot_B, self.position_B] = k_BTKD[:, 0], v_BTKD[:, 0]
        if has_flash_kernels(q_BTHD):
            cu_q, cu_k = self.cu_q[: B + 1], self.cu_k[: B + 1]
            return flash_decode(q_BTHD[:, 0], k_SMKD[:B], v_SMKD[:B], cu_q, cu_k, self.length_B)[:, None]
        seen_BM = torch.arange(k_SMKD.shape[1], device=q_BTHD.device) < self.length_B[:, None]
        q, k, v = q_BTHD.transpose(1, 2), k_SMKD[:B].transpose(1, 2), v_SMKD[:B].transpose(1, 2)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen_BM[:, None, None], enable_gqa=True).transpose(1, 2)


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
