"""Ranks and collectives. Every collective here does nothing for one process.

Every rank samples and judges its share of a step's questions. Then all ranks gather the whole outcome, so that all decide the
same from it. Rank 0 alone writes and prints.
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

BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}  # by the device that computes

_stores: list[dist.Store] = []  # the one of `use_store`


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def main_only(function: Callable) -> Callable:
    """Make a function that runs on rank 0 alone; elsewhere it returns None."""

    @wraps(function)
    def on_main(*args, **kwargs):
        return function(*args, **kwargs) if is_main() else None

    return on_main


def pick_device(name: str) -> torch.device:
    """Return the device of `--device`; auto takes a CUDA GPU if there is one, each process of a machine its own.

    Raises:
        ValueError: there is no CUDA GPU, or a machine runs more processes than it has GPUs.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError("--device cuda, but torch sees no CUDA GPU; use --device cpu, or install a CUDA build of torch")
    if not available or name == "cpu":
        return torch.device("cpu")
    index, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    processes = max(index + 1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if processes > count:  # all of them say so, because only the first of a machine is heard (silence_other_ranks)
        raise ValueError(f"{processes} processes on a machine with {count} GPUs: start at most {count} on it")
    return torch.device("cuda", index)


def use_store(store: dist.Store | None) -> None:
    """Set the store in which ranks count events: the launcher's rendezvous; None at the end of the process group."""
    _stores[:] = [] if store is None else [store]


def is_first(event: str) -> bool:
    """Count an event, and return whether this rank is the first to do so."""
    try:
        return not _stores or _stores[0].add(event, 1) == 1
    except RuntimeError:  # the process that holds the store is gone
        return False


def print_once(message: str, occasion: int = 0) -> None:
    """Print a message that several ranks may have: only the first rank prints it on an occasion."""
    digest = hashlib.blake2b(f"{occasion} {message}".encode(), digest_size=8).hexdigest()
    if is_first(f"said/{digest}"):
        print(message, file=sys.stdout if is_main() else sys.__stdout__, flush=True)


def make_mesh(device: torch.device) -> DeviceMesh:
    """Return all ranks in one row; one process without a launcher becomes a group of its own."""
    if not dist.is_initialized():
        dist.init_process_group(BACKENDS[device.type], store=dist.HashStore(), rank=0, world_size=1)
    return init_device_mesh(device.type, (world_size(),), mesh_dim_names=("dp",))


def gather(value) -> list:
    """Return the value of every rank, by rank. Values are pickled on the way, within the run."""
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
    """Return this rank's share of a list that every rank has: every world_size-th item."""
    return items[rank() :: world_size()]


def merge_stats(stats: list[dict[str, float]]) -> dict[str, float]:
    """Add up the counts of all ranks; of a latency take the largest."""
    return {name: (max if "latency" in name else sum)(part[name] for part in stats) for name in stats[0]}


def gather_split(share: list) -> list:
    """Return the ranks' results for their shares of `split_over_ranks`, item for item, in the order of the list."""
    shares = gather(share)
    return [shares[i % len(shares)][i // len(shares)] for i in range(sum(map(len, shares)))]


def broadcast_from_main(function: Callable[[], object]):
    """Run a function on rank 0 and return its result on every rank; a ValueError or OSError in it is raised everywhere."""
    if world_size() == 1:
        return function()
    with raise_on_all_ranks(ValueError, OSError):
        result = function() if is_main() else None
    return gather(result)[0]


@contextmanager
def raise_on_all_ranks(*kinds: type[Exception]) -> Iterator[None]:
    """Raise an error of these kinds on all ranks if one rank has it. Every rank must enter.

    Without it one rank would leave, and the others would wait for it in the next collective.
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
