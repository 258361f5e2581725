"""Where a run computes: one process on one device."""

import os

import torch


def refuse_many_processes() -> None:
    """A clear end for `torchrun --nproc-per-node 8`, instead of eight runs that overwrite each other.

    Raises:
        ValueError: started by a launcher with more than one process.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count > 1:
        raise ValueError(f"started as one of {count} processes; training runs on one: use torchrun --nproc-per-node 1")


def pick_device(name: str) -> torch.device:
    """The device of `--device`; auto takes a CUDA GPU if there is one.

    Raises:
        ValueError: cuda was asked for and is not there.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError("--device cuda, but torch sees no CUDA GPU; use --device cpu, or install a CUDA build of torch")
    return torch.device("cuda" if available and name in ("auto", "cuda") else "cpu")
