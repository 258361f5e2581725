"""What is computed in which precision: activations may be half, what decides is at least float32."""

import torch
from torch import Tensor

HALF_PRECISION = (torch.bfloat16, torch.float16)


def at_least_fp32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in HALF_PRECISION else x


def has_flash_kernels(x: Tensor) -> bool:
    """Whether the flash kernels take this tensor: on CUDA, in half precision."""
    return x.is_cuda and x.dtype in HALF_PRECISION
