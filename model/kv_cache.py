"""The KV cache of the sampler: a prompt's keys and values once for its whole group, what each row has generated beside it.

A group is one prompt; its rows are the samples that continue it. Decoding attends to both parts in one softmax:

    scores = [ q . K_prompt | q . K_suffix ]      out = p_prompt V_prompt + p_suffix V_suffix

The prompt part is one product per group over all of its rows, so the prompt is read once a step instead of once a row.

Live rows are always slots 0..B-1 and live groups 0..N-1: whoever frees a slot moves the last one into the hole, so that every
product runs over a dense, contiguous part of the cache and never over unused memory. The caches start as zeros, because
masked garbage is harmless but masked NaN is not (0 * NaN).

Shapes: L layers, S row slots, B live rows, N live groups, R rows of the largest live group, P longest live prompt, M new
tokens a slot can hold, T longest live suffix, H query heads, K key/value heads, G query heads per key/value head, D head dim.
"""

import torch
from torch import Tensor

from model.attention import CausalAttention
from model.config import ModelConfig
from model.transformer import at_least_fp32


def kv_bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of one token, over all layers."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * dtype.itemsize


class PrefillCache:
    """Causal attention that keeps the keys and values it is given: one entry a layer, each [B, T, K, D]."""

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def attend(self, layer: int, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> Tensor:
        self.keys.append(k_BTKD)
        self.values.append(v_BTKD)
        return CausalAttention().attend(layer, q_BTHD, k_BTKD, v_BTKD)


class GroupedCache:
    """Keys and values of the live rows and of the prompts they share.

    Args:
        config: shapes of the model.
        rows, groups: slots for rows and for prompts.
        max_prompt, max_new: tokens a prompt slot and a row slot hold.
        dtype, device: those of the activations.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        rows: int,
        groups: int,
        max_prompt: int,
        max_new: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        L, K, D = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
        self.prompt_kv = torch.zeros(2, L, groups, K, max_prompt, D, dtype=dtype, device=device)
        self.suffix_kv = torch.zeros(2, L, rows, K, max_new, D, dtype=dtype, device=device)
        self.prompt_lengths = torch.zeros(groups, dtype=torch.long, device=device)
        self.kv_heads = K
        self.device = device

    def store_prompt(self, group: int, prefill: PrefillCache, index: int, length: int) -> None:
        """Copy the first `length` tokens of sequence `index` of a prefill into prompt slot `group`."""
        for part, tensors in enumerate((prefill.keys, prefill.values)):
            for layer, x_BTKD in enumerate(tensors):
                self.prompt_kv[part, layer, group, :, :length] = x_BTKD[index, :length].transpose(0, 1)
        self.prompt_lengths[group] = length

    def move_prompt(self, source: int, target: int) -> None:
        self.prompt_kv[:, :, target] = self.prompt_kv[:, :, source]
        self.prompt_lengths[target] = self.prompt_lengths[source]

    def move_rows(self, sources: Tensor, targets: Tensor, length: int) -> None:
        """Move the first `length` generated tokens of some rows to other slots."""
        self.suffix_kv[:, :, targets, :, :length] = self.suffix_kv[:, :, sources, :, :length]

    def arrange(self, group_of_row: list[int]) -> None:
        """Say which group each live row belongs to; call after rows or groups have changed.

        Rows of a group need not be neighbours: each gets a place (group, rank) in a padded [N, R] table, through which the
        prompt product of all groups is one batched multiplication.
        """
        rank, seen = [], [0] * (max(group_of_row) + 1)
        for group in group_of_row:
            rank.append(seen[group])
            seen[group] += 1
        self.N, self.R = len(seen), max(seen)
        groups_B, rank_B = torch.tensor([group_of_row, rank], device=self.device)
        lengths_B = self.prompt_lengths[groups_B]
        self.P = int(lengths_B.max())
        heads_K = torch.arange(self.kv_heads, device=self.device)
        place_BK = (groups_B[:, None] * self.kv_heads + heads_K) * self.R + rank_B[:, None]
        self.place = place_BK.flatten()
        self.rows_B = torch.arange(len(rank), device=self.device)
        unused_BP = torch.arange(self.P, device=self.device) >= lengths_B[:, None]
        self.unused_prompt = unused_BP[:, None, None] if bool(unused_BP.any()) else None

    def begin_step(self, length_B: Tensor) -> None:
        """Say how many generated tokens each live row already holds; the step appends one more to each."""
        self.length_B = length_B
        shortest, longest = (int(x) for x in length_B.aminmax())
        self.T = longest + 1
        beyond_BT = torch.arange(self.T, device=self.device) > length_B[:, None]
        self.unused_suffix = beyond_BT[:, None, None] if shortest != longest else None

    def attend(self, layer: int, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> Tensor:
        """Append one token to every live row and attend from it; T of the arguments is 1."""
        B, _, H, D = q_BTHD.shape
        K, G, N, R, P, T = self.kv_heads, H // self.kv_heads, self.N, self.R, self.P, self.T
        suffix_k, suffix_v = self.suffix_kv[:, layer, :B]
        suffix_k[self.rows_B, :, self.length_B] = k_BTKD[:, 0]
        suffix_v[self.rows_B, :, self.length_B] = v_BTKD[:, 0]
        suffix_k, suffix_v = suffix_k[:, :, :T].flatten(0, 1), suffix_v[:, :, :T].flatten(0, 1)  # (B K) T D
        prompt_k, prompt_v = self.prompt_kv[:, layer, :N, :, :P].flatten(1, 2)  # (N K) P D

        q = q_BTHD.reshape(B * K, G, D) * D**-0.5
        padded_q = q.new_zeros(N * K * R, G, D).index_copy_(0, self.place, q)
        prompt_scores = padded_q.view(N * K, R * G, D) @ prompt_k.transpose(1, 2)
        prompt_scores = prompt_scores.view(N * K * R, G, P)[self.place].view(B, K, G, P)
        suffix_scores = (q @ suffix_k.transpose(1, 2)).view(B, K, G, T)
        if self.unused_prompt is not None:
            prompt_scores.masked_fill_(self.unused_prompt, -torch.inf)
        if self.unused_suffix is not None:
            suffix_scores.masked_fill_(self.unused_suffix, -torch.inf)

        scores = at_least_fp32(torch.cat((prompt_scores, suffix_scores), dim=-1))
        weights = scores.softmax(-1).to(q.dtype).view(B * K, G, P + T)
        padded_w = q.new_zeros(N * K * R, G, P).index_copy_(0, self.place, weights[..., :P])
        prompt_out = (padded_w.view(N * K, R * G, P) @ prompt_v).view(N * K * R, G, D)[self.place]
        out = prompt_out + weights[..., P:] @ suffix_v
        return out.view(B, 1, H, D)
