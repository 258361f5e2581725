"""Weights in oneDNN's blocked layout, for decoding on a CPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from model.transformer import MLP, Attention, Linear, Transformer

EXPECTED_ROWS = 32  # rows of the input that oneDNN lays weights out for; products with other numbers are as fast


def packable(model: Transformer) -> bool:
    """Whether every weight is float32 on a CPU, the activations are too, and this torch has the operators and they work."""
    dtypes = {model.activation_dtype, *(parameter.dtype for parameter in model.parameters())}
    if dtypes != {torch.float32} or model.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    operators = torch.ops.mkldnn  # not public: asked for by name, and tried out
    return hasattr(operators, "_reorder_linear_weight") and hasattr(operators, "_linear_pointwise") and _works()


def _works() -> bool:
    weight, x = torch.arange(24.0).view(4, 6), torch.ones(3, 6)
    return torch.equal(multiply_packed(x, pack(weight), None), x @ weight.T)


def pack(weight: Tensor) -> Tensor:
    """A copy of a weight in oneDNN's layout."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), EXPECTED_ROWS)


def multiply_packed(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


@contextmanager
def packed_weights(model: Transformer) -> Iterator[None]:
    """Within it, the linear layers and the head of a packable model multiply by packed copies of their weights.

    For the few rows of a decode step that is up to 3 times as fast as F.linear where MKL does not use the processor's widest
    instructions. Layers with a common input (q, k and v; gate and up) become one product. The copies take as much memory as the
    weights, and do not follow changes of the weights.
    """
    joined = [module.joinable for module in model.modules() if isinstance(module, Attention | MLP)]
    linears = [module for module in model.modules() if isinstance(module, Linear)]
    try:
        for group in joined:
            group[0].joint_product = _joint_product(group)
        for linear in set(linears) - {linear for group in joined for linear in group}:
            linear.product = partial(multiply_packed, packed=pack(linear.weight), bias=linear.bias)
        yield
    finally:
        for linear in linears:
            linear.product = linear.joint_product = None


def _joint_product(group: tuple[Linear, ...]) -> Callable[[Tensor], tuple[Tensor, ...]]:
    packed, sizes = pack(torch.cat([linear.weight for linear in group])), [linear.out_features for linear in group]
    bias = None if group[0].bias is None else torch.cat([linear.bias for linear in group])
    return lambda x: multiply_packed(x, packed, bias).split(sizes, dim=-1)
