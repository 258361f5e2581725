"""Optimizers and learning-rate schedules. A schedule is a pure function of the step, so resuming needs no state."""

import math
from collections import defaultdict

import torch
from torch import Tensor, nn

from rl.config import Config


def adamw(parameters, *, lr: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW on float32 masters, without weight decay, in one fused kernel."""
    return torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=0.0, fused=True)


def create_state(optimizer: torch.optim.Optimizer) -> None:
    """Give Adam its state before the first step, with moments in at least float32.

    It would be made lazily, and a checkpoint of an optimizer without state makes torch run a hidden step: the next real one
    would be the second to the bias correction.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            dtype = torch.promote_types(parameter.dtype, torch.float32)
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, dtype=dtype),
                "exp_avg_sq": torch.zeros_like(parameter, dtype=dtype),
            }


def lr_factor(step: int, *, warmup_steps: int, total_steps: int, schedule: str, decay_share: float = 1.0) -> float:
    """Multiple of the base learning rate at `step` (from 0).

    Args:
        warmup_steps: linear rise over so many steps; the first step already has 1 / warmup_steps.
        schedule: "constant", or a decay to 0 at total_steps, "linear" or "cosine".
        decay_share: the decay takes this last part of all steps.
    """
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    begin = max(warmup_steps, round(total_steps * (1 - decay_share)))
    progress = min(1.0, max(0.0, (step - begin) / max(1, total_steps - begin)))
    decay = {"constant": 1.0, "linear": 1.0 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}[schedule]
    return warmup * decay


def learning_rate(config: Config, step: int) -> float:
    """Return the learning rate of a training step (from 0)."""
    schedule = "linear" if config.lr_schedule == "wsd" else config.lr_schedule
    setting = dict(warmup_steps=config.warmup_steps, total_steps=config.steps, schedule=schedule, decay_share=0.5)
    return config.lr * lr_factor(step, **setting)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton-Schulz, for matrices (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    In float32, unlike torch.optim.Muon, whose bfloat16 iteration is emulated on most CPUs and takes eight times as long.
    """

    def __init__(self, parameters, *, lr: float, momentum: float = 0.95, weight_decay: float = 0.01, ns_steps: int = 5) -> None:
        super().__init__(parameters, dict(lr=lr, momentum=momentum, weight_decay=weight_decay, ns_steps=ns_steps))

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    by_shape[weight.shape].append(weight)
            for (rows, columns), weights in by_shape.items():
                scale = max(1.0, rows / columns) ** 0.5
                directions = [self._direction(weight, group["momentum"]) for weight in weights]
                updates = orthogonalise(torch.stack(directions), group["ns_steps"])  # equal shapes in one product
                for weight, update in zip(weights, updates, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * scale)

    def _direction(self, weight: nn.Parameter, momentum: float) -> Tensor:
        """Nesterov momentum."""
        buffer = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
        buffer.lerp_(weight.grad, 1 - momentum)
        return weight.grad.lerp(buffer, momentum)


def orthogonalise(matrices: Tensor, steps: int) -> Tensor:
    """Push all singular values of each matrix of a stack towards 1, by the quintic Newton-Schulz iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    is_tall = x.shape[-2] > x.shape[-1]
    x = x.mT if is_tall else x
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x


def matrices_and_rest(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The 2-D weights inside the layers (for Muon), and everything else: embedding, head, norms, biases."""
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and ".layers." in n]
    chosen = set(map(id, matrices))
    return matrices, [p for p in model.parameters() if id(p) not in chosen]
