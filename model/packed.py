"""Weights in oneDNN's blocked layout, for decoding on a CPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

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
    """Within it, a packable model multiplies by packed copies of the weights of its layers and of its head.

    For the few rows of a decode step that is up to 3 times as fast as F.linear where MKL does not use the processor's widest
    instructions. Layers with a common input (q, k and v; gate and up) become one product. The copies take as much memory as the
    weights, and do not follow changes of the weights. The model's own code knows nothing of them: methods of its modules are
    replaced, and put back.
    """
    replaced: list[tuple[nn.Module, str]] = []

    def replace(owner: nn.Module, method: str, product: Callable[[Tensor], object]) -> None:
        setattr(owner, method, product)
        replaced.append((owner, method))

    try:
        for module in model.modules():
            if isinstance(module, Attention):
                replace(module, "project", _joint_product([module.q_proj, module.k_proj, module.v_proj]))
                replace(module.o_proj, "forward", _product(module.o_proj))
            elif isinstance(module, MLP):
                replace(module, "project", _joint_product([module.gate_proj, module.up_proj]))
                replace(module.down_proj, "forward", _product(module.down_proj))
        replace(model, "logits", _product(model.lm_head))
        yield
    finally:
        for owner, method in replaced:
            delattr(owner, method)


def _product(linear: Linear) -> Callable[[Tensor], Tensor]:
    packed, bias = pack(linear.weight), linear.bias
    return lambda x: multiply_packed(x, packed, bias)


def _joint_product(linears: list[Linear]) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """One product that gives the outputs of all of some layers."""
    packed, sizes = pack(torch.cat([linear.weight for linear in linears])), [linear.out_features for linear in linears]
    bias = None if linears[0].bias is None else torch.cat([linear.bias for linear in linears])
    return lambda x: multiply_packed(x, packed, bias).split(sizes, dim=-1)
