"""Low-rank adapters (LoRA, arXiv 2106.09685): y = W x + scale B (A x), with W frozen, and scale = alpha / rank.

B starts at zero, so that an adapted model begins as its base. Without its adapters it is its base at every moment, bit for bit,
and `shared_copy` returns that model: another view of the same memory.

Parameters are named as in files of peft, whose prefix checkpoint.py adds.
"""

import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from model.transformer import Linear, Transformer

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # all linear layers of a block

# fields of a peft configuration that this code follows, or that do not change what is computed; dropout is not applied, because
# the sampler and the trainer must agree. Any other field must be empty
FOLLOWED = {
    "auto_mapping", "base_model_name_or_path", "inference_mode", "lora_alpha", "lora_dropout", "megatron_core", "peft_type",
    "peft_version", "qalora_group_size", "r", "revision", "target_modules", "task_type", "use_rslora",
}  # fmt: skip
MEANS_NOTHING = {"bias": ["none"], "init_lora_weights": [True, "gaussian", "orthogonal"]}  # others change the base's weights


class AdaptedLinear(Linear):
    """A linear layer with an adapter. It takes over the weights of the layer it stands for, frozen."""

    def __init__(self, layer: Linear, rank: int, alpha: float) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.weight, self.bias = layer.weight.requires_grad_(False), layer.bias
        self.rank, self.alpha, self.scale = rank, alpha, alpha / rank
        place = dict(device=layer.weight.device, dtype=torch.promote_types(layer.weight.dtype, torch.float32))
        self.lora_A = Linear(layer.in_features, rank, bias=False, **place)
        self.lora_B = Linear(rank, layer.out_features, bias=False, **place)

    def forward(self, x: Tensor) -> Tensor:
        y, low = super().forward(x), self.lora_A(x)
        up = self.lora_B.weight.to(x.dtype)
        return torch.addmm(y.flatten(0, -2), low.flatten(0, -2), up.T, alpha=self.scale).view_as(y)  # one pass over y

    def merged(self) -> Tensor:
        """Return W + scale B A in at least float32."""
        return torch.addmm(self.weight.to(self.lora_A.weight.dtype), self.lora_B.weight, self.lora_A.weight, alpha=self.scale)


def add_adapters(model: Transformer, rank: int, alpha: float, targets: tuple[str, ...] = TARGETS, seed: int = 0) -> None:
    """Freeze a model and put an adapter on each of its layers that `targets` names, in place.

    A is drawn as peft draws it, on the CPU, so that it depends on the seed alone. B is zero.

    Raises:
        ValueError: the model has adapters; no such layer; a rank that is no number of dimensions of the layer.
    """
    if adapted_layers(model):
        raise ValueError("the model has an adapter already: merge it first (python -m rl.export RUN OUT --merge)")
    unknown = sorted(set(targets) - set(TARGETS))
    if unknown or not targets:
        raise ValueError(f"no linear layer of the blocks is named {', '.join(unknown)!r}: choose from {' '.join(TARGETS)}")
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for path, layer in list(model.named_modules()):
        parent, _, name = path.rpartition(".")
        if name not in targets:
            continue
        most = min(layer.in_features, layer.out_features)
        if not 1 <= rank <= most:
            raise ValueError(f"an adapter of {path} cannot have rank {rank}: choose from 1 to {most}, or other targets")
        adapted = AdaptedLinear(layer, rank, alpha)
        with torch.no_grad():
            drawn = torch.empty(rank, layer.in_features)
            adapted.lora_A.weight.copy_(nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator))
            adapted.lora_B.weight.zero_()
        setattr(model.get_submodule(parent), name, adapted)


def adapted_layers(model: Transformer) -> dict[str, AdaptedLinear]:
    """Return the layers that have an adapter, by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, AdaptedLinear)}


def adapter_parameters(model: Transformer) -> dict[str, nn.Parameter]:
    """Return the parameters of the adapters by name: all that is trained."""
    return {name: parameter for name, parameter in model.named_parameters() if ".lora_" in name}


def shared_copy(model: Transformer, *, with_adapters: bool) -> Transformer:
    """Return a frozen model on the base of an adapted one, which takes no memory but for copies of the adapters, if any."""
    adapters = adapter_parameters(model)
    shared: dict[int, nn.Module | Tensor] = {id(p): p for name, p in model.named_parameters() if name not in adapters}
    for layer in adapted_layers(model).values() if not with_adapters else ():
        plain = Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        plain.weight, plain.bias = layer.weight, layer.bias
        shared[id(layer)] = plain
    return copy.deepcopy(model, shared).requires_grad_(False)


@torch.no_grad()
def merged_weights(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters of an equal model without adapters, one at a time. Any model will do."""
    layers, adapters = adapted_layers(model), adapter_parameters(model)
    for name, parameter in model.named_parameters():
        path, _, kind = name.rpartition(".")
        if name not in adapters:
            yield name, layers[path].merged() if kind == "weight" and path in layers else parameter


def lora_setting(model: Transformer) -> tuple[int, float, tuple[str, ...]]:
    """Return rank, alpha and targets of an adapted model."""
    layers = adapted_layers(model)
    one, names = next(iter(layers.values())), {path.rpartition(".")[2] for path in layers}
    return one.rank, one.alpha, tuple(name for name in TARGETS if name in names)


def peft_config(model: Transformer) -> dict:
    """Return the configuration that peft rebuilds the adapters from."""
    rank, alpha, targets = lora_setting(model)
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": alpha, "target_modules": list(targets),
        "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False, "inference_mode": True,
    }  # fmt: skip


def add_adapters_of(model: Transformer, config: dict) -> None:
    """Put adapters on a model as a configuration of peft says; their weights are yet to be loaded.

    Raises:
        ValueError: something that this code does not compute; the message names the field. See also `add_adapters`.
    """
    if config.get("peft_type") != "LORA":
        raise ValueError(f"peft_type is {config.get('peft_type')!r}: only LORA adapters are read")
    set_fields = {name: value for name, value in config.items() if value and value not in MEANS_NOTHING.get(name, [])}
    if unread := sorted(set_fields.keys() - FOLLOWED):
        values = ", ".join(f"{name} ({config[name]!r})" for name in unread)
        raise ValueError(f"not supported: {values}. Merge the adapter into its base with peft, and load the result")
    rank, alpha, targets = (config.get(name) for name in ("r", "lora_alpha", "target_modules"))
    is_list = isinstance(targets, list) and all(isinstance(name, str) for name in targets)
    if type(rank) is not int or type(alpha) not in (int, float) or not is_list:
        raise ValueError("r, lora_alpha and target_modules must be an integer, a number and a list of layers' names")
    if config.get("use_rslora"):
        alpha *= math.sqrt(rank)  # its scale is alpha / sqrt(rank)
    add_adapters(model, rank, alpha, tuple(targets))
