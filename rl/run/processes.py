"""The start and the end of the processes of a run: one for each GPU, started by torchrun or anything else that sets RANK.

`python train.py` is the same code with one process.
"""

import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from rl.distributed import BACKENDS, is_first, is_main, pick_device, rank, use_store, world_size

TIMEOUT_MINUTES = 120.0  # that a process waits for others, whose rollouts may take longer than its own
NCCL_MINUTES = 15.0  # the same on GPUs: NCCL moves weights and gradients, right after the processes have met over gloo
HEAD_START = 2.0  # seconds by which the process that failed first ends before the others: torchrun then names the right one


def set_up_torch() -> None:
    """Set what a run's numbers and memory depend on and torch leaves to the environment, before anything is computed."""
    # micro-batches differ in length: memory that was cut for one would not serve the next
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

    # products of a few rows are split and summed in parts, others are not: parts rounded to bfloat16 would be a difference
    # between sampler and trainer
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.set_float32_matmul_precision("highest")  # log-probs are float32 products: no TF32, whatever the image says


@contextmanager
def silence_other_ranks() -> Iterator[None]:
    """Let the first process of each machine alone print, before the processes have joined."""
    if os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")) == "0":
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


@contextmanager
def process_group(device: str, timeout_minutes: float = TIMEOUT_MINUTES) -> Iterator[None]:
    """Set torch up, and join the other processes that torchrun (or anything else that sets RANK and WORLD_SIZE) has started.

    A process that raises says why and leaves at once, without waiting for collectives that will never end. The others follow
    when their connection to it breaks, or when torchrun ends them. Only the first shows a traceback. Only rank 0 prints.

    Args:
        device: `--device`; decides the backend. Objects and tensors in host memory always travel by gloo.
        timeout_minutes: a collective over gloo that takes longer is an error. Ranks wait for the slowest rollout in one.
    """
    set_up_torch()
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
        use_store(None)
        if dist.is_initialized():
            dist.destroy_process_group()


def _join(device: torch.device, timeout_minutes: float) -> None:
    timeout = timedelta(minutes=timeout_minutes)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, number, count = next(rendezvous("env://", timeout=timeout))
    use_store(store)
    store = dist.PrefixStore("run", store)
    dist.init_process_group(BACKENDS[device.type], store=store, rank=number, world_size=count, timeout=timeout)
    if device.type == "cuda":  # else a hung kernel would hold all GPUs for as long as a rollout may take
        dist.group.WORLD._get_backend(device)._set_default_timeout(timedelta(minutes=NCCL_MINUTES))


def _leave_at_once(error: BaseException) -> NoReturn:
    """End this process after an error, with a traceback if it is the first one to fail."""
    code = 1
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else 1
        is_first("failed")  # it has said its line: what breaks on the others needs no traceback
    elif is_first("failed"):
        print(f"rank {rank()} of {world_size()} failed:", file=sys.stderr)
        traceback.print_exception(error)
    else:
        summary = next(iter(str(error).strip().splitlines()), "")
        reason = f"{type(error).__name__}: {summary}"
        print(f"rank {rank()} of {world_size()} ends after the failure of another one ({reason})", file=sys.stderr)
        time.sleep(HEAD_START)
    leave(code)


def leave(code: int) -> NoReturn:
    """End a process. One of several skips the interpreter's teardown, in which gloo sometimes aborts."""
    if "WORLD_SIZE" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
