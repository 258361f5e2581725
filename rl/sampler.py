"""The sampler: batched generation from a KV cache, exact and independent of how it was scheduled.

Each sequence draws from uniforms of its own (draws.py), so a sample does not depend on the slot, batch, order or process it ran
in. On a CPU rows leave the batch as they end (generation.py); on CUDA they keep their slots, and a decode step is a graph
(static_generation.py). Both draw the same tokens.
"""

from contextlib import nullcontext

import torch

from model.packed import packable, packed_weights
from model.transformer import Transformer
from rl.generation import GroupedGeneration, OnFinish
from rl.records import Completion, Request


class Sampler:
    """Generates completions with one set of weights.

    Args:
        model: the weights; they may be updated in place between calls.
        stop_ids: token ids that end a completion.
        max_slots: rows decoded at once; further samples wait and enter as rows finish.
        max_len: longest prompt plus completion, in tokens.
        policy_version: stamped on every completion; the owner of the weights keeps it up to date.

    Raises:
        ValueError: max_slots or max_len below 1, or no stop ids.
    """

    def __init__(self, model: Transformer, *, stop_ids, max_slots: int, max_len: int, policy_version: int = 0, pack: bool = True) -> None:
        if max_slots < 1 or max_len < 1:
            raise ValueError(f"max_slots ({max_slots}) and max_len ({max_len}) must be at least 1")
        if not stop_ids:
            raise ValueError("the sampler needs at least one stop id")
        self.model = model
        self.stop_ids = torch.tensor(sorted(set(stop_ids)), device=model.device)
        self.max_slots, self.max_len = max_slots, max_len
        self.policy_version, self.pack = policy_version, pack

    @torch.inference_mode()
    def generate(self, requests: list[Request], *, on_finish: OnFinish | None = None) -> list[list[Completion]]:
        """Sample every request.

        Args:
            requests: any number, of any mix of lengths and temperatures.
            on_finish: called as `on_finish(request_index, sample_index, completion)` when a completion ends, in the order in
                which they end. An exception in it ends the call.

        Returns:
            One list of `num_samples` completions for each request, in order.

        Raises:
            ValueError: an empty prompt, a prompt that leaves no room within max_len, or a setting out of range.
        """
        for index, request in enumerate(requests):
            self._check(index, request)
        if not requests:
            return []
        slots = min(self.max_slots, sum(request.num_samples for request in requests))
        with packed_weights(self.model) if self.pack and packable(self.model) else nullcontext():
            return GroupedGeneration(self.model, requests, slots, self.stop_ids, self.policy_version, on_finish).run()

    def _check(self, index: int, request: Request) -> None:
        def refuse(problem: str) -> None:
            raise ValueError(f"request {index} (seed key {request.seed_key!r}): {problem}")

        if not request.prompt_ids:
            refuse("the prompt is empty")
        if request.num_samples < 1 or min(request.limits, default=0) < 1:
            refuse("num_samples and max_new_tokens must be at least 1")
        if len(request.limits) != request.num_samples:
            refuse(f"{len(request.limits)} values of max_new_tokens for {request.num_samples} samples")
        if request.temperature < 0 or not 0 < request.top_p <= 1:
            refuse("temperature must not be negative and top_p must be in (0, 1]")
        needed = len(request.prompt_ids) + max(request.limits)
        if needed > self.max_len:
            refuse(f"prompt and completion need {needed} tokens, max_len is {self.max_len}")
