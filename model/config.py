"""ModelConfig: the fields of a Hugging Face `config.json` that decide the logits, and a refusal of every other variant."""

from dataclasses import dataclass

SUPPORTED_MODEL_TYPES = ("qwen2", "qwen3")
_REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_KINDS = {  # field: (what it must be, the check); a field may also be absent or null
    **dict.fromkeys(
        (*_REQUIRED, "num_key_value_heads", "head_dim", "max_position_embeddings"),
        ("a whole number of at least 1", lambda value: type(value) is int and value >= 1),
    ),
    **dict.fromkeys(
        ("rms_norm_eps", "rope_theta"), ("a number above 0", lambda value: type(value) in (int, float) and value > 0)
    ),
    **dict.fromkeys(("rope_scaling", "rope_parameters"), ("an object", lambda value: isinstance(value, dict))),
    "layer_types": ("a list", lambda value: isinstance(value, list)),
    "tie_word_embeddings": ("true or false", lambda value: isinstance(value, bool)),
}


@dataclass(frozen=True)
class ModelConfig:
    """Shapes and constants of one Qwen2 or Qwen3 model; names are those of the Hugging Face configuration."""

    model_type: str  # "qwen2": bias on q, k, v.  "qwen3": RMSNorm on each head of q and k, before RoPE.
    vocab_size: int  # rows of the embedding; may exceed the tokenizer's ids (padded for the hardware)
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int  # not always hidden_size / num_attention_heads
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 32_768

    def __post_init__(self) -> None:
        if self.model_type not in SUPPORTED_MODEL_TYPES:
            raise ValueError(f"model_type {self.model_type!r} is not supported; use one of {SUPPORTED_MODEL_TYPES}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) must be even: RoPE rotates pairs")

    @property
    def qkv_bias(self) -> bool:
        return self.model_type == "qwen2"

    @property
    def qk_norm(self) -> bool:
        return self.model_type == "qwen3"

    @classmethod
    def from_hf(cls, config: dict) -> "ModelConfig":
        """Read a Hugging Face `config.json`, written by any transformers version.

        Raises:
            ValueError: a field is missing, malformed, or asks for what this model does not compute; the field is named.
        """
        missing = [name for name in _REQUIRED if config.get(name) is None]
        if missing:
            raise ValueError(f"config.json lacks {', '.join(missing)}")
        _refuse_malformed(config)
        _refuse_unsupported(config)
        heads = config["num_attention_heads"]
        return cls(
            model_type=config["model_type"],
            **{name: config[name] for name in _REQUIRED},
            num_key_value_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            rms_norm_eps=config.get("rms_norm_eps") or cls.rms_norm_eps,
            rope_theta=_rope_theta(config),
            tie_word_embeddings=config.get("tie_word_embeddings") or cls.tie_word_embeddings,
            max_position_embeddings=config.get("max_position_embeddings") or cls.max_position_embeddings,
        )

    def to_hf(self, dtype: str) -> dict:
        """The `config.json` of this model, with old- and new-style names for RoPE and dtype.

        transformers 5 writes only `rope_parameters`; versions before 5 then read a RoPE base of 10,000 without a word,
        so both are written.
        """
        return {
            "architectures": [{"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}[self.model_type]],
            **self.__dict__,
            "attention_dropout": 0.0,
            "hidden_act": "silu",
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "rope_scaling": None,
            "use_sliding_window": False,
            "dtype": dtype,
            "torch_dtype": dtype,
        }


def _rope_theta(config: dict) -> float:
    """RoPE base: `rope_parameters` (transformers >= 5), else `rope_theta` (before), else the families' default."""
    new_style = (config.get("rope_parameters") or {}).get("rope_theta")
    return float(new_style or config.get("rope_theta") or ModelConfig.rope_theta)


def _refuse_malformed(config: dict) -> None:
    for field, (kind, fits) in _KINDS.items():
        value = config.get(field)
        if value is not None and not fits(value):
            raise ValueError(f"config.json: {field} must be {kind}, it is {value!r}")


def _refuse_unsupported(config: dict) -> None:
    """Raise a ValueError that names the first field whose meaning this model would silently ignore."""

    def refuse(field: str, why: str) -> None:
        raise ValueError(f"config.json: {field} = {config.get(field)!r} is not supported: {why}")

    if config.get("model_type") not in SUPPORTED_MODEL_TYPES:
        refuse("model_type", f"only the dense families {SUPPORTED_MODEL_TYPES} are implemented")
    for field in ("num_experts", "num_local_experts"):
        if config.get(field):
            refuse(field, "mixture-of-experts layers are not implemented")
    if config.get("quantization_config"):
        refuse("quantization_config", "load the unquantised checkpoint")
    for field in ("rope_scaling", "rope_parameters"):
        rope = config.get(field) or {}
        if rope.get("rope_type", rope.get("type", "default")) != "default":
            refuse(field, "only unscaled RoPE is implemented")
    if config.get("use_sliding_window"):
        refuse("use_sliding_window", "every layer attends to the whole context")
    if any(kind != "full_attention" for kind in config.get("layer_types") or ()):
        refuse("layer_types", "every layer attends to the whole context")
    if config.get("hidden_act", "silu") != "silu":
        refuse("hidden_act", "the MLP is SwiGLU")
    if config.get("attention_dropout"):
        refuse("attention_dropout", "policy-gradient log-probs need a deterministic forward; set it to 0.0")
    if config["model_type"] == "qwen3" and config.get("attention_bias"):
        refuse("attention_bias", "Qwen3 is implemented without biases")
