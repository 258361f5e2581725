"""The decoder of all families in config.py. Parameters are named as in Hugging Face checkpoints, so no name map is needed.

Weights may be float32 masters while the computation is bfloat16 (`compute_dtype`): layers cast their weights as they use them.
Norms, RoPE angles and logits are computed in at least float32; a float64 model is float64 throughout.

Shapes: B sequences, T tokens, V vocabulary, E embedding, F feed-forward, H query heads, K key/value heads, D head dimension.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.attention import HALF_PRECISION, CausalAttention
from model.config import ModelConfig, RopeScaling


def at_least_fp32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in HALF_PRECISION else x


class Linear(nn.Linear):
    """A linear layer that computes in its input's dtype, whatever dtype its weights are stored in."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class Head(Linear):
    """The output projection. It hands its weight to whatever computes with it: a sharded weight is whole only in here."""

    def forward(self, hidden: Tensor, compute) -> Tensor:
        return compute(hidden, self.weight)


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, normalised in at least float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # one kernel on CUDA; the weight stays outside, because models were trained with the normalised input rounded before it
        return F.rms_norm(x, self.weight.shape, None, self.eps) * self.weight.to(x.dtype)


def rope_angles(positions_BT: Tensor, config: ModelConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos, and sin with the sign that `rotate` needs, each [B, T, 1, D]; the angles are computed in at least float32.

    No buffer holds them: a model built on the meta device would load garbage into it.
    """
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    exponent = torch.arange(0, config.head_dim, 2, device=positions_BT.device, dtype=wide) / config.head_dim
    wave = config.rope_theta**exponent  # tokens of one radian
    if config.rope_scaling is not None:
        wave = slowed_down(wave, config.rope_scaling)
    angle = positions_BT[..., None, None].to(wide) / wave
    cos, sin = angle.cos(), angle.sin()
    return torch.cat((cos, cos), dim=-1).to(dtype), torch.cat((-sin, sin), dim=-1).to(dtype)


def slowed_down(wave: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3's RoPE scaling: divide frequencies by `factor`, but keep those that turn often within the original context.

    Between `low_freq_factor` and `high_freq_factor` turns the frequency is interpolated.
    """
    turns = scaling.original_max_position_embeddings / (2 * math.pi * wave)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = kept.clamp(0, 1)
    return wave / (kept + (1 - kept) / scaling.factor)


def rotate(x_BTHD: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Rotary position embedding in the rotate-half convention: (a, b) -> (a cos - b sin, b cos + a sin)."""
    return x_BTHD * cos + x_BTHD.roll(x_BTHD.shape[-1] // 2, dims=-1) * signed_sin


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        q_size, kv_size = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.q_proj = Linear(config.hidden_size, q_size, bias=config.family.qkv_bias)
        self.k_proj = Linear(config.hidden_size, kv_size, bias=config.family.qkv_bias)
        self.v_proj = Linear(config.hidden_size, kv_size, bias=config.family.qkv_bias)
        self.o_proj = Linear(q_size, config.hidden_size, bias=False)
        norm = config.family.qk_norm
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if norm else nn.Identity()
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if norm else nn.Identity()

    def forward(self, x_BTE: Tensor, cos: Tensor, sin: Tensor, attention) -> Tensor:
        B, T, _ = x_BTE.shape
        q, k, v = self.q_proj(x_BTE), self.k_proj(x_BTE), self.v_proj(x_BTE)
        q_BTHD = self.q_norm(q.view(B, T, self.heads, self.head_dim))
        k_BTKD = self.k_norm(k.view(B, T, self.kv_heads, self.head_dim))
        v_BTKD = v.view(B, T, self.kv_heads, self.head_dim)
        qk = rotate(torch.cat((q_BTHD, k_BTKD), dim=2), cos, sin)  # one rotation for both: half the small operations
        q_BTHD, k_BTKD = qk.split((self.heads, self.kv_heads), dim=2)
        return self.o_proj(attention.attend(self.layer, q_BTHD, k_BTKD, v_BTKD).flatten(2))


class MLP(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x_BTE: Tensor, cos: Tensor, sin: Tensor, attention) -> Tensor:
        x_BTE = x_BTE + self.self_attn(self.input_layernorm(x_BTE), cos, sin, attention)
        return x_BTE + self.mlp(self.post_attention_layernorm(x_BTE))


class Decoder(nn.Module):
    """Everything below the head; the level that Hugging Face checkpoints prefix with `model.`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Transformer(nn.Module):
    """A causal language model.

    Attributes:
        config: shapes and constants.
        compute_dtype: dtype of activations; None means the dtype of the weights.
        compute_device: where inputs belong; None means where the weights are.
        activation_checkpointing: recompute each layer in backward instead of keeping its activations.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype: torch.dtype | None = None
        self.compute_device: torch.device | None = None
        self.activation_checkpointing = False
        self.model = Decoder(config)
        self.lm_head = Head(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def device(self) -> torch.device:
        return self.compute_device or self.lm_head.weight.device

    @property
    def activation_dtype(self) -> torch.dtype:
        return self.compute_dtype or self.lm_head.weight.dtype

    def init_weights(self, generator: torch.Generator, std: float = 0.02) -> None:
        """Normal matrices of the given standard deviation, zero biases, unit norms; in place."""
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=std, generator=generator)
            else:
                nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)

    def forward(self, ids_BT: Tensor, positions_BT: Tensor | None = None, cache=None, head=None) -> Tensor:
        """Final hidden states, after the last norm.

        Args:
            ids_BT: token ids.
            positions_BT: position of each token in its own sequence; default 0, 1, 2, ... in every row.
            cache: how tokens attend to each other, an object with `attend` (attention.py, kv_cache.py);
                default: each row is one sequence, padded on the right.
            head: computes something from (hidden_BTE, weight_VE), to be returned in place of the hidden states.

        Returns:
            hidden_BTE in the activation dtype.
        """
        if positions_BT is None:
            positions_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device).expand_as(ids_BT)
        attention = CausalAttention() if cache is None else cache
        x_BTE = self.model.embed_tokens(ids_BT).to(self.activation_dtype)
        cos, sin = rope_angles(positions_BT, self.config, x_BTE.dtype)
        for block in self.model.layers:
            if self.activation_checkpointing and torch.is_grad_enabled():
                x_BTE = checkpoint(block, x_BTE, cos, sin, attention, use_reentrant=False)
            else:
                x_BTE = block(x_BTE, cos, sin, attention)
        hidden_BTE = self.model.norm(x_BTE)
        return hidden_BTE if head is None else self.lm_head(hidden_BTE, head)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states [..., E] -> [..., V], in at least float32."""
        hidden_NE, weight_VE = hidden.flatten(0, -2), self.lm_head.weight
        # for the few rows of a decode step, a CPU multiplies by parts of the vocabulary up to 1.5 times as fast as by all of it
        parts = [head_logits(hidden_NE, part) for part in weight_VE.split(len(weight_VE) if hidden.is_cuda else 512)]
        return (torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]).unflatten(0, hidden.shape[:-1])


def head_logits(hidden_NE: Tensor, weight_VE: Tensor) -> Tensor:
    """hidden @ weight.T, never rounded below float32: the one product behind every log-prob, in sampler and trainer alike.

    Products of bfloat16 operands are exact in float32, so this equals a float32 head fed with the rounded operands.
    """
    weight_VE = weight_VE.to(hidden_NE.dtype)
    if hidden_NE.is_cuda and hidden_NE.dtype in HALF_PRECISION:
        return torch.mm(hidden_NE, weight_VE.T, out_dtype=torch.float32)
    return at_least_fp32(hidden_NE) @ at_least_fp32(weight_VE).T
