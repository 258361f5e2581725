"""AdamW for bfloat16 weights that lose nothing: each float32 master is kept as its bfloat16 and 16 low bits.

    master (float32) = weight (bfloat16, what the model computes and samples with) + low bits (int16)

The bit pattern of the weight, shifted up by 16, plus the signed low bits is the bit pattern of the master. So sampling needs no
copy of the weights, and a parameter takes 12 bytes beside its gradient: 2 + 2, and 4 + 4 of Adam's moments. A step rebuilds the
masters a slice at a time and hands them to torch's own AdamW, which makes it the float32 optimizer by construction.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from rl.optim import create_state

SLICE_ELEMENTS = 2**23  # masters rebuilt at a time; with what rebuilding and splitting need, about 0.2 GiB
BF16_NAN = 0x7FC0
LOW_BITS = "low_bits"  # name of that state


def split_master(master: Tensor) -> tuple[Tensor, Tensor]:
    """Split float32 into (bfloat16, int16 low bits), from which `join_master` makes the same bits again.

    The bfloat16 is the nearest one. Of a value halfway between two, the one larger in magnitude: 16 bits count either the
    half below a bfloat16 or the half above, not both, so halves cannot go to even.
    """
    bits = master.view(torch.int32)
    high = bits.add(0x8000) >> 16  # a carry moves into the exponent, as it should
    high.masked_fill_(master.isnan(), BF16_NAN)  # the carry would make -0 of a NaN whose bits are all set
    low = bits - (high << 16)
    return high.to(torch.int16).view(torch.bfloat16), low.to(torch.int16)


def join_master(weight: Tensor, low_bits: Tensor) -> Tensor:
    """Return the float32 master of a bfloat16 weight and its low bits: a new tensor."""
    return (weight.view(torch.int16).to(torch.int32) << 16).add_(low_bits).view(torch.float32)


class ExactBF16AdamW(torch.optim.Optimizer):
    """`torch.optim.AdamW` on float32 masters, of which the model sees the nearest bfloat16.

    Args:
        parameters: float32 ones are split here, in place, and are bfloat16 from then on; bfloat16 ones are taken as exact.
            Parameters sharded by FSDP2 must be bfloat16 already.
        lr, betas, weight_decay: as in torch.optim.AdamW.

    Gradients add up in float32 over the micro-batches of a step: call `prepare_gradients` before its first backward.

    Raises:
        ValueError: a parameter of another dtype, or a float32 one that is sharded.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, dict(lr=lr, betas=betas, weight_decay=weight_decay))
        low_bits = {p: _take_low_bits(p) for group in self.param_groups for p in group["params"]}
        create_state(self)
        for parameter, low in low_bits.items():
            self.state[parameter][LOW_BITS] = low
            parameter.grad_dtype = torch.float32

    @torch.no_grad()
    def step(self) -> None:
        """Make one step of AdamW on the masters; parameters without a gradient stay.

        Raises:
            ValueError: a gradient is not float32.
        """
        for group in self.param_groups:
            for parameter in (parameter for parameter in group["params"] if parameter.grad is not None):
                if parameter.grad.dtype != torch.float32:
                    raise ValueError(f"a gradient is {parameter.grad.dtype}: call prepare_gradients before the first backward")
                self._update(parameter, group)

    def _update(self, parameter: nn.Parameter, group: dict) -> None:
        state = self.state[parameter]
        stored = [parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"], state[LOW_BITS]]
        pieces = zip(*(_local(tensor).view(-1).split(SLICE_ELEMENTS) for tensor in stored), strict=True)
        for weight, gradient, exp_avg, exp_avg_sq, low_bits in pieces:
            master = join_master(weight, low_bits)
            adamw(
                [master], [gradient], [exp_avg], [exp_avg_sq], [], [state["step"].clone()],
                amsgrad=False, beta1=group["betas"][0], beta2=group["betas"][1], lr=group["lr"],
                weight_decay=group["weight_decay"], eps=1e-8, maximize=False, fused=True,
            )  # fmt: skip
            new_weight, new_low_bits = split_master(master)
            weight.copy_(new_weight)
            low_bits.copy_(new_low_bits)
        state["step"] += 1

    def load_state_dict(self, state_dict: dict) -> None:
        """Refuse: torch casts a loaded state to the dtype of its parameter, bfloat16, which destroys moments and low bits.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("the state of ExactBF16AdamW is loaded in place: see load_checkpoint in rl/run/checkpoint.py")


def prepare_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Give sharded bfloat16 parameters a float32 gradient of zeros to add to, because FSDP2 would start one in bfloat16.

    Plain parameters need none: their gradients are float32 by `grad_dtype`. Other optimizers need nothing.
    """
    if isinstance(optimizer, ExactBF16AdamW):
        for parameter in optimizer.state:
            if isinstance(parameter, DTensor) and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter, dtype=torch.float32, requires_grad=False)


def _local(tensor: Tensor) -> Tensor:
    """Return the part of a sharded tensor that is here, or the tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


@torch.no_grad()
def _take_low_bits(parameter: nn.Parameter) -> Tensor:
    """Make a parameter bfloat16, if it is not, and return what that takes from it."""
    if parameter.dtype == torch.bfloat16:
        return torch.zeros_like(parameter, dtype=torch.int16, requires_grad=False)
    if parameter.dtype != torch.float32 or isinstance(parameter, DTensor):
        raise ValueError(f"a parameter is {parameter.dtype}{' and sharded' if isinstance(parameter, DTensor) else ''}")
    parameter.data, low_bits = split_master(parameter.data.contiguous())
    return low_bits
