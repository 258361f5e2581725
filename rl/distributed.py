"""The processes of a run: one for each GPU, started by torchrun. `python train.py` is the same code with one process.

Every rank samples and judges its share of a step's questions, then all ranks learn the whole outcome, so that whatever is
decided from it is decided alike everywhere. Rank 0 alone writes and prints. Every collective here is a no-op for one process.
"""

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

_stores: list[dist.Store] = []  # the rendezvous of this process group, if a launcher made one


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def main_only(function: Callable) -> Callable:
    """Calls of the function do something on rank 0 and nothing elsewhere, where they return None."""

    @wraps(function)
    def on_main(*args, **kwargs):
        return function(*args, **kwargs) if is_main() else None

    return on_main


def pick_device(name: str) -> torch.device:
    """The device of `--device`; auto takes a CUDA GPU if there is one, each process of a machine its own.

    Raises:
        ValueError: cuda was asked for and is not there, or a machine runs more processes than it has GPUs.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError("--device cuda, but torch sees no CUDA GPU; use --device cpu, or install a CUDA build of torch")
    if not available or name == "cpu":
        return torch.device("cpu")
    index = int(os.environ.get("LOCAL_RANK", "0"))
    if index >= torch.cuda.device_count():
        raise ValueError(f"process {index} of this machine has no GPU: start at most {torch.cuda.device_count()} on it")
    return torch.device("cuda", index)


def _is_first(event: str) -> bool:
    """Whether no other rank has asked the same before."""
    try:
        return not _stores or _stores[0].add(event, 1) == 1
    except RuntimeError:  # the process that holds the store is gone
        return False


def print_once(message: str, occasion: int = 0) -> None:
    """Print what every rank may have come across; the first rank to say it on an occasion is the only one."""
    digest = hashlib.blake2b(f"{occasion} {message}".encode(), digest_size=8).hexdigest()
    if _is_first(f"said/{digest}"):
        print(message, file=sys.stdout if is_main() else sys.__stdout__, flush=True)


def make_mesh(device: torch.device) -> DeviceMesh:
    """All ranks in one row; one process without a launcher becomes a group of its own."""
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return init_device_mesh(device.type, (world_size(),), mesh_dim_names=("dp",))


def gather(value) -> list:
    """The value of every rank, by rank. Values are pickled on the way, within the run."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def sum_over_ranks(values: list[float]) -> list[float]:
    if world_size() == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    return total.tolist()


def split_over_ranks(items: list) -> list:
    """This rank's share of a list that every rank has: every world_size-th item."""
    return items[rank() :: world_size()]


def gather_split(share: list) -> list:
    """The opposite of `deal`: what the ranks made of their shares, item for item, in the order of the list."""
    shares = gather(share)
    return [shares[i % len(shares)][i // len(shares)] for i in range(sum(map(len, shares)))]


def broadcast_from_main(function: Callable[[], object]):
    """The result of a function that runs on rank 0, on every rank; a ValueError or OSError in it is raised everywhere."""
    if world_size() == 1:
        return function()
    with raise_on_all_ranks(ValueError, OSError):
        result = function() if is_main() else None
    return gather(result)[0]


@contextmanager
def raise_on_all_ranks(*kinds: type[Exception]) -> Iterator[None]:
    """Every rank enters, and learns at the end whether another one failed: an error of these kinds is raised on all of them.

    Without it one rank would leave, and the others wait for it in the next collective.
    """
    if world_size() == 1:
        yield
        return
    failure: Exception | None = None
    try:
        yield
    except kinds as error:
        failure = error
    failures = gather(None if failure is None else (next(k for k in kinds if isinstance(failure, k)), str(failure)))
    if failure is not None:
        raise failure
    for kind, message in filter(None, failures):
        raise kind(message)
