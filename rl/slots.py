"""The number of rows that the sampler can decode at once in the memory that is free."""

import os
from pathlib import Path

import torch

from model.config import ModelConfig
from model.kv_cache import kv_bytes_per_token
from model.transformer import Transformer
from rl.records import Request

PREFILL_TOKENS = 8192  # prompt tokens of one prefill forward
MOST_SLOTS = 256  # of "auto"; more rows hardly raise the tokens per second (a GPU's decode step is bound by the cache by then)
USED_SHARE = 0.9  # of free memory: allocators round up, and others want some too
LOGIT_COPIES = 4  # float32 arrays [rows, vocabulary] that a draw holds at once
ROUND_TO = 16
DRAW_BYTES = 24  # uniform, id and log-prob of a new token


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated in one piece: on CUDA what the driver has, on a CPU what the system calls available,
    shared by the processes that torchrun has started on it. Where the system does not say (macOS), half of its memory.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what stays reserved then is in pieces, which one large cache cannot use
        return torch.cuda.mem_get_info(device)[0]
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    report = Path("/proc/meminfo")
    if report.exists():
        lines = dict(line.split(":", 1) for line in report.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024 // processes
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 // processes


def slots_that_fit(model: Transformer, requests: list[Request]) -> tuple[int, str]:
    """Rows whose cache and draws fit into free memory, at most MOST_SLOTS, and a line about them.

    Raises:
        ValueError: not one row fits.
    """
    config, dtype = model.config, model.activation_dtype
    longest_new = max(max(request.limits) for request in requests)
    tokens = max(len(request.prompt_ids) for request in requests) + longest_new
    per_token, draws = kv_bytes_per_token(config, dtype), draw_bytes(config, longest_new)
    longest_prefill = min(sum(len(request.prompt_ids) for request in requests), max(PREFILL_TOKENS, tokens))
    prefill = prefill_bytes(config, dtype, longest_prefill)
    free = free_bytes(model.device)
    fitting = int(USED_SHARE * free - prefill) // (tokens * per_token + draws)
    if fitting < 1:
        raise ValueError(
            f"not one row fits into {USED_SHARE:.0%} of {free / 2**30:.1f} GiB free, less {prefill / 2**30:.1f} GiB to compute "
            f"prompts: it takes {tokens:,} tokens x {per_token:,} bytes and {draws / 2**20:.1f} MiB for draws. "
            "Lower --max-new-tokens or --max-prompt-tokens, or free memory"
        )
    rounded = fitting // ROUND_TO * ROUND_TO or fitting  # a little more or less free memory should not change the batch
    slots = min(rounded, MOST_SLOTS)
    return slots, f"sampler: {slots:,} rows at once of {fitting:,} that fit into {free / 2**30:.1f} GiB of free memory"


def draw_bytes(config: ModelConfig, new_tokens: int) -> int:
    """Bytes that drawing takes for a row: its logits and their relatives, and what is kept of each new token."""
    return LOGIT_COPIES * 4 * config.vocab_size + DRAW_BYTES * new_tokens


def prefill_bytes(config: ModelConfig, dtype: torch.dtype, tokens: int) -> int:
    """Bytes that computing prompts of so many tokens together takes: their keys and values twice, and a layer's activations."""
    width = 4 * config.hidden_size + 3 * config.intermediate_size
    return tokens * (2 * kv_bytes_per_token(config, dtype) + width * dtype.itemsize)
