"""The KV cache of the sampler on a CPU: a prompt's keys and values once for its whole group, each row's own beside them.

A group is one prompt; its rows are the samples that continue it. The prompt's part of attention is one product per group over
all of its rows, so the prompt is read once a step instead of once a row. It gives an output and the logarithm of its softmax's
normaliser. That enters the row's own softmax as one more score, in a column kept for it, whose weight is then the prompt's:

    weights = softmax([lse_prompt | q . K_suffix])      out = weights_0 out_prompt + weights_1.. V_suffix

Live rows are always slots 0..B-1 and live groups 0..N-1: whoever frees a slot moves the last one into the hole, so that every
product runs over a dense, contiguous part of the cache and never over unused memory. The caches start as zeros, because
masked garbage is harmless but masked NaN is not (0 * NaN).

Shapes: L layers, S row slots, B live rows, N live groups, R rows of the largest live group, T tokens of a prompt, P those of
the longest live one, C columns of the longest live suffix (the prompt's and one a token), H query heads, K key/value heads, G
query heads per key/value head, D head dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.attention import PackedAttention
from model.config import ModelConfig
from model.precision import HALF_PRECISION, at_least_fp32

GROWTH = 64  # tokens by which the suffixes' cache grows


def kv_bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes that one token's keys and values take in all layers."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * dtype.itemsize


class PromptRecorder:
    """Attention over prompts laid end to end that keeps the keys and values it is given.

    Args:
        lengths: tokens of each prompt, in order.
    """

    def __init__(self, lengths: list[int], device: torch.device) -> None:
        self.packed = PackedAttention(lengths, device)
        self.layers: list[Tensor] = []

    def attend(self, layer: int, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> Tensor:
        self.layers.append(torch.cat((k_BTKD, v_BTKD)))
        return self.packed.attend(layer, q_BTHD, k_BTKD, v_BTKD)

    def take(self) -> tuple[Tensor, ...]:
        """Keys and values of each prompt, [2, L, T, K, D]."""
        return torch.stack(self.layers, dim=1).split(self.packed.lengths, dim=2)


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
        self.suffix_k = torch.zeros(L, rows, K, D, 1, dtype=dtype, device=device)  # column 0 stays zero
        self.suffix_v = torch.zeros(L, rows, K, 1, D, dtype=dtype, device=device)
        self.most_columns = 1 + max_new
        self.prompt_lengths = torch.zeros(groups, dtype=torch.long, device=device)
        self.kv_heads = K
        self.score_dtype = torch.float32 if dtype in HALF_PRECISION else dtype
        self.device = device

    def store_prompt(self, group: int, kv_2LTKD: Tensor) -> None:
        """Copy the keys and values of a prompt into prompt slot `group`."""
        length = kv_2LTKD.shape[2]
        self.prompt_kv[:, :, group, :, :length] = kv_2LTKD.transpose(2, 3)
        self.prompt_lengths[group] = length

    def move_prompt(self, source: int, target: int) -> None:
        self.prompt_kv[:, :, target] = self.prompt_kv[:, :, source]
        self.prompt_lengths[target] = self.prompt_lengths[source]

    def move_rows(self, sources: Tensor, targets: Tensor, length: int) -> None:
        """Move the first `length` generated tokens of some rows to other slots."""
        self.suffix_k[:, targets, ..., : length + 1] = self.suffix_k[:, sources, ..., : length + 1]
        self.suffix_v[:, targets, :, : length + 1] = self.suffix_v[:, sources, :, : length + 1]

    def arrange(self, group_of_row: list[int]) -> None:
        """Say which group each live row belongs to; call after rows or groups have changed.

        Rows of a group need not be neighbours: each gets a place (group, rank) in a padded [N, R] table, through which the
        prompt product of all groups is one batched multiplication. Places without a row repeat row 0, and nobody reads them.
        """
        rank, seen = [], [0] * (max(group_of_row) + 1)
        for group in group_of_row:
            rank.append(seen[group])
            seen[group] += 1
        N, R, K = len(seen), max(seen), self.kv_heads
        groups_B, rank_B = torch.tensor([group_of_row, rank], device=self.device)
        row_NR = torch.zeros(N, R, dtype=torch.long, device=self.device)
        row_NR[groups_B, rank_B] = self.rows_B = torch.arange(len(rank), device=self.device)
        heads_K = torch.arange(K, device=self.device)
        self.N, self.R = N, R
        self.source = (row_NR[:, None] * K + heads_K[:, None]).flatten()  # (N K R) <- (B K)
        self.place = ((groups_B[:, None] * K + heads_K) * R + rank_B[:, None]).flatten()  # (B K) <- (N K R)
        lengths_N = self.prompt_lengths[:N]
        self.P = int(lengths_N.max())
        unused_NP = torch.arange(self.P, device=self.device) >= lengths_N[:, None]
        bias_NP = self._minus_infinity_where(unused_NP)
        self.prompt_bias = bias_NP.repeat_interleave(K, dim=0)[:, None] if N > 1 else None  # (N K) 1 P
        # one view a layer, made here because slicing costs as much as a small product
        self.prompt_k, self.prompt_v = (x.flatten(1, 2).unbind(0) for x in self.prompt_kv[:, :, :N, :, : self.P])

    def begin_step(self, length_B: Tensor) -> None:
        """Say how many generated tokens each live row already holds; the step appends one more to each."""
        shortest, longest = torch.stack(length_B.aminmax()).tolist()
        self.C = longest + 2
        if self.suffix_v.shape[3] < self.C:
            self._grow(min(self.suffix_v.shape[3] + GROWTH, self.most_columns))
        self.aligned = shortest == longest
        B = len(length_B)
        self.live_k, self.live_v = self.suffix_k[:, :B].unbind(0), self.suffix_v[:, :B].unbind(0)
        self.used_k = self.suffix_k[:, :B, ..., : self.C].flatten(1, 2).unbind(0)
        self.used_v = self.suffix_v[:, :B, :, : self.C].flatten(1, 2).unbind(0)
        if not self.aligned:
            self.column_B = length_B + 1
            beyond_BC = torch.arange(self.C, device=self.device) > self.column_B[:, None]
            self.suffix_bias = self._minus_infinity_where(beyond_BC)[:, None, None]

    def _minus_infinity_where(self, hidden: Tensor) -> Tensor:
        """A bias to be added to scores: adding is several times as fast as filling under a mask that is broadcast."""
        bias = torch.zeros(hidden.shape, dtype=self.score_dtype, device=self.device)
        return bias.masked_fill_(hidden, -torch.inf)

    def _grow(self, columns: int) -> None:
        """Make room for more tokens. Short rows keep the products over a cache that is no wider than they need."""
        more = columns - self.suffix_v.shape[3]
        self.suffix_k = F.pad(self.suffix_k, (0, more))
        self.suffix_v = F.pad(self.suffix_v, (0, 0, 0, more))

    def attend(self, layer: int, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> Tensor:
        """Append one token to every live row and attend from it; T of the arguments is 1."""
        B, _, H, D = q_BTHD.shape
        K, G, N, R, C = self.kv_heads, H // self.kv_heads, self.N, self.R, self.C
        suffix_k, suffix_v = self.live_k[layer], self.live_v[layer]
        if self.aligned:  # an indexed write costs several times as much
            suffix_k[..., C - 1], suffix_v[:, :, C - 1] = k_BTKD[:, 0], v_BTKD[:, 0]
        else:
            suffix_k[self.rows_B, ..., self.column_B], suffix_v[self.rows_B, :, self.column_B] = k_BTKD[:, 0], v_BTKD[:, 0]

        q = q_BTHD.reshape(B * K, G * D) * D**-0.5
        grouped_q = q.index_select(0, self.source).view(N * K, R * G, D)
        prompt_out, lse = self._attend_prompts(layer, grouped_q)
        prompt_out = prompt_out.view(N * K * R, G, D).index_select(0, self.place)

        scores = at_least_fp32(torch.bmm(q.view(B * K, G, D), self.used_k[layer]))
        scores[..., 0] = lse.view(N * K * R, G).index_select(0, self.place)
        if not self.aligned:
            scores.view(B, K, G, C).add_(self.suffix_bias)
        weights = scores.softmax(-1).to(q.dtype)
        out = torch.bmm(weights, self.used_v[layer]).addcmul_(weights[..., :1], prompt_out)
        return out.view(B, 1, H, D)

    def _attend_prompts(self, layer: int, q: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of scaled queries [(N K), (R G), D] to the prompts, and the logarithm of its softmax's normaliser."""
        scores = at_least_fp32(torch.bmm(q, self.prompt_k[layer].transpose(1, 2)))
        if self.prompt_bias is not None:
            scores += self.prompt_bias
        weights = scores.softmax(-1)
        lse = scores.amax(-1) - weights.amax(-1).log()  # the largest weight is exp(largest score - lse), and never tiny
        return torch.bmm(weights.to(q.dtype), self.prompt_v[layer]), lse
