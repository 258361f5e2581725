"""The processes of a run: one for each GPU, started by torchrun. `python train.py` is the same code with one process.

Every rank samples and judges its share of a step's questions, then all ranks learn the whole outcome, so that whatever is
decided from it is decided alike everywhere. Rank 0 alone writes and prints. Every collective here is a no-op for one process.
"""

import hashlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from functools import wraps
from typing import NoReturn

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.rendezvous import rendezvous

HEAD_START = 2.0  # seconds by which the process that failed first ends before the others: torchrun then names the right one
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


@contextmanager
def one_voice() -> Iterator[None]:
    """Before the processes have joined: what all of them would print, one prints."""
    with ExitStack() as silence:
        if os.environ.get("RANK", "0") != "0":
            nowhere = silence.enter_context(open(os.devnull, "w"))
            silence.enter_context(redirect_stdout(nowhere))
            silence.enter_context(redirect_stderr(nowhere))
        yield


@contextmanager
def process_group(device: str, timeout_minutes: float) -> Iterator[None]:
    """Joins the other processes that torchrun (or anything else that sets RANK and WORLD_SIZE) has started.

    A process that raises says why and leaves at once, without waiting for collectives that will never end: the others follow
    when their connection to it breaks, or when torchrun ends them, and only the first shows a traceback. Silences the output
    of all ranks but 0.

    Args:
        device: `--device`; decides the backend. Objects and tensors in host memory always travel by gloo.
        timeout_minutes: a collective that takes longer is an error. Ranks wait for the slowest rollout in one.
    """
    if dist.is_initialized():  # joined already
        yield
        return
    output = sys.stdout
    if "WORLD_SIZE" in os.environ:
        _join(pick_device(device), timeout_minutes)
    if not is_main():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the end of the process
    try:
        yield
    except BaseException as error:
        if world_size() > 1:
            _leave_at_once(error)
        raise
    else:
        if world_size() > 1:
            dist.barrier()  # a process that ends early can abort the others
    finally:
        sys.stdout = output
        _stores.clear()
        if dist.is_initialized():
            dist.destroy_process_group()


def _join(device: torch.device, timeout_minutes: float) -> None:
    timeout = timedelta(minutes=timeout_minutes)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, number, count = next(rendezvous("env://", timeout=timeout))
    _stores.append(store)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.PrefixStore("run", store), rank=number, world_size=count, timeout=timeout)


def _leave_at_once(error: BaseException) -> NoReturn:
    code = 1
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else 1
        _is_first("failed")  # it has said its line: what breaks on the others needs no traceback
    elif _is_first("failed"):
        print(f"rank {rank()} of {world_size()} failed:", file=sys.stderr)
        traceback.print_exception(error)
    else:
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        print(f"rank {rank()} of {world_size()} ends after the failure of another one ({reason})", file=sys.stderr)
        time.sleep(HEAD_START)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _is_first(event: str) -> bool:
    """Whether no other rank has asked the same before."""
    try:
        return not _stores or _stores[0].add(event, 1) == 1
    except RuntimeError:  # the process that holds the store is gone
        return False


def leave(code: int) -> NoReturn:
    """End a process whose work is done. One of several skips the interpreter's teardown, in which gloo now and then aborts."""
    if "WORLD_SIZE" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def say_once(message: str, occasion: int = 0) -> None:
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


def deal(items: list) -> list:
    """This rank's share of a list that every rank has: every world_size-th item."""
    return items[rank() :: world_size()]


def gather_dealt(share: list) -> list:
    """The opposite of `deal`: what the ranks made of their shares, item for item, in the order of the list."""
    shares = gather(share)
    return [shares[i % len(shares)][i // len(shares)] for i in range(sum(map(len, shares)))]


def from_main(function: Callable[[], object]):
    """The result of a function that runs on rank 0, on every rank; a ValueError or OSError in it is raised everywhere."""
    if world_size() == 1:
        return function()
    with shared_fate(ValueError, OSError):
        result = function() if is_main() else None
    return gather(result)[0]


@contextmanager
def shared_fate(*kinds: type[Exception]) -> Iterator[None]:
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
