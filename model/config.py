"""ModelConfig: the fields of a Hugging Face `config.json` that decide the logits, and a refusal of every other variant."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Family:
    """The differences between families of dense decoders. To add one, add an entry to FAMILIES."""

    architecture: str  # the class in transformers
    qkv_bias: bool = False  # bias on q, k, v
    qk_norm: bool = False  # RMSNorm on each head of q and k, before RoPE
    default_context: int = 32_768  # where a config.json does not say max_position_embeddings
    rope_types: tuple[str, ...] = ("default",)


FAMILIES = {  # by `model_type`
    "qwen2": Family("Qwen2ForCausalLM", qkv_bias=True),  # Qwen2, Qwen2.5
    "qwen3": Family("Qwen3ForCausalLM", qk_norm=True),
    "llama": Family("LlamaForCausalLM", default_context=2_048, rope_types=("default", "llama3")),  # also SmolLM2, TinyLlama
}
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
class RopeScaling:
    """The `llama3` scaling of RoPE: long waves are slowed down by `factor`, short ones kept (`slowed_down`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: float

    def __post_init__(self) -> None:
        for name, value in self.__dict__.items():
            if type(value) not in (int, float) or value <= 0:
                raise ValueError(f"config.json: {name} of rope_type llama3 must be a number above 0, it is {value!r}")
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError("config.json: high_freq_factor of rope_type llama3 must be above low_freq_factor")


@dataclass(frozen=True)
class ModelConfig:
    """Shapes and constants of one model; names are those of the Hugging Face configuration."""

    model_type: str  # a key of FAMILIES
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
    rope_scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        if self.model_type not in FAMILIES:
            raise ValueError(f"model_type {self.model_type!r} is not supported; use one of {', '.join(FAMILIES)}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) must be even: RoPE rotates pairs")

    @property
    def family(self) -> Family:
        return FAMILIES[self.model_type]

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
            rope_scaling=_rope_scaling(config),
            tie_word_embeddings=config.get("tie_word_embeddings") or cls.tie_word_embeddings,
            max_position_embeddings=config.get("max_position_embeddings") or FAMILIES[config["model_type"]].default_context,
        )

    def to_hf(self, dtype: str) -> dict:
        """The `config.json` of this model, with old- and new-style names for RoPE and dtype.

        transformers 5 writes only `rope_parameters`; versions before 5 then read a RoPE base of 10,000 without a word,
        so both are written.
        """
        scaling = self.rope_scaling and {"rope_type": "llama3", **self.rope_scaling.__dict__}
        return {
            "architectures": [self.family.architecture],
            **self.__dict__,
            "attention_dropout": 0.0,
            "hidden_act": "silu",
            "rope_parameters": {"rope_type": "default", **(scaling or {}), "rope_theta": self.rope_theta},
            "rope_scaling": scaling,
            "use_sliding_window": False,
            "dtype": dtype,
            "torch_dtype": dtype,
        }


def _rope_theta(config: dict) -> float:
    """RoPE base: `rope_parameters` (transformers >= 5), else `rope_theta` (before), else the families' default."""
    new_style = (config.get("rope_parameters") or {}).get("rope_theta")
    return float(new_style or config.get("rope_theta") or ModelConfig.rope_theta)


def _rope_scaling(config: dict) -> RopeScaling | None:
    """RoPE scaling: `rope_parameters` (transformers >= 5), else `rope_scaling`; every type but llama3 is refused before."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if _rope_type(rope) == "default":
        return None
    return RopeScaling(**{spec.name: rope.get(spec.name) for spec in fields(RopeScaling)})


def _rope_type(rope: dict) -> str:
    return rope.get("rope_type", rope.get("type", "default"))


def _refuse_malformed(config: dict) -> None:
    for field, (kind, fits) in _KINDS.items():
        value = config.get(field)
        if value is not None and not fits(value):
            raise ValueError(f"config.json: {field} must be {kind}, it is {value!r}")


def _refuse_unsupported(config: dict) -> None:
    """Raise a ValueError that names the first field whose meaning this model would silently ignore."""

    def refuse(field: str, why: str) -> None:
        raise ValueError(f"config.json: {field} = {config.get(field)!r} is not supported: {why}")

    # the family, and what it is stored as
    family = FAMILIES.get(config.get("model_type"))
    if family is None:
        refuse("model_type", f"only the dense families {', '.join(FAMILIES)} are implemented")
    for field in ("num_experts", "num_local_experts"):
        if config.get(field):
            refuse(field, "mixture-of-experts layers are not implemented")
    if config.get("quantization_config"):
        refuse("quantization_config", "load the unquantised checkpoint")
    # attention and MLP
    for field in ("rope_scaling", "rope_parameters"):
        if _rope_type(config.get(field) or {}) not in family.rope_types:
            refuse(field, f"of RoPE only {' and '.join(family.rope_types)} is implemented for {config['model_type']}")
    if config.get("use_sliding_window"):
        refuse("use_sliding_window", "every layer attends to the whole context")
    if any(kind != "full_attention" for kind in config.get("layer_types") or ()):
        refuse("layer_types", "every layer attends to the whole context")
    if config.get("hidden_act", "silu") != "silu":
        refuse("hidden_act", "the MLP is SwiGLU")
    if config.get("attention_dropout"):
        refuse("attention_dropout", "policy-gradient log-probs need a deterministic forward; set it to 0.0")
    if config.get("attention_bias") and not family.qkv_bias:
        refuse("attention_bias", f"{config['model_type']} is implemented without biases")
    if config.get("mlp_bias"):
        refuse("mlp_bias", "the MLP is implemented without biases")
    if (config.get("pretraining_tp") or 1) != 1:
        refuse("pretraining_tp", "products are not cut into slices; set it to 1, which gives the same logits up to rounding")
