"""Wall time of the phases of a step."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Adds up seconds by phase: `with clock("rollout"): ...`; on CUDA the device is waited for at the end of each."""

    def __init__(self) -> None:
        self.restart()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self._seconds[phase] += time.perf_counter() - begin

    def metrics(self, sampled_tokens: float, trained_tokens: float) -> dict[str, float]:
        """time/*, step_time and perf/* since the last call or restart; starts the next step."""
        now = time.perf_counter()
        metrics = {f"time/{phase}": seconds for phase, seconds in self._seconds.items()}
        metrics["step_time"] = now - self._begin
        metrics["perf/rollout_tokens_per_s"] = sampled_tokens / max(self._seconds["rollout"], 1e-9)
        metrics["perf/train_tokens_per_s"] = trained_tokens / max(self._seconds["update"], 1e-9)
        if torch.cuda.is_initialized():
            metrics["perf/peak_mem_gb"] = torch.cuda.max_memory_allocated() / 1e9
            torch.cuda.reset_peak_memory_stats()
        self.restart()
        return metrics

    def restart(self) -> None:
        """Begin a step now."""
        self._seconds, self._begin = defaultdict(float), time.perf_counter()
