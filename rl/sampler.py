"""The sampler: batched generation from a KV cache, exact and independent of how it was scheduled.

Each sequence draws from uniforms of its own (sampling/draws.py), so a sample does not depend on the slot, batch, order or
process it ran in. On a CPU rows leave the batch as they end (sampling/grouped.py); on CUDA they keep their slots, and a decode
step is a graph (sampling/static.py). Both draw the same tokens.
"""

from contextlib import nullcontext
from typing import Literal

import torch
from tqdm import tqdm

from model.packed import packable, packed_weights
from model.transformer import Transformer
from rl.records import Completion, Request
from rl.sampling.grouped import GroupedGeneration, OnFinish
from rl.sampling.slot_count import slots_that_fit
from rl.sampling.static import SYNC_EVERY, StaticGeneration


class Sampler:
    """Generates completions with one set of weights.

    Args:
        model: the weights; they may be updated in place between calls.
        stop_ids: token ids that end a completion.
        max_slots: rows decoded at once; further samples wait and enter as rows finish. "auto": what free memory holds
            (sampling/slot_count.py), decided and printed when a call begins.
        max_len: longest prompt plus completion, in tokens.
        policy_version: stamped on every completion; the owner of the weights keeps it up to date.
        static_slots: keep rows in their slots; default: on CUDA only.
        sync_every: decode steps between two looks at what has ended, with static slots.
        pack: on a CPU in float32, decode from a copy of the weights in a faster layout (packed.py). It lives for the length of
            a call and takes as much memory as the weights.

    Raises:
        ValueError: max_slots, max_len or sync_every below 1, or no stop ids.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        stop_ids,
        max_slots: int | Literal["auto"],
        max_len: int,
        policy_version: int = 0,
        static_slots: bool | None = None,
        sync_every: int = SYNC_EVERY,
        pack: bool = True,
    ) -> None:
        if (max_slots != "auto" and max_slots < 1) or max_len < 1 or sync_every < 1:
            raise ValueError(f"max_slots ({max_slots}), max_len ({max_len}) and sync_every ({sync_every}) must be at least 1")
        if not stop_ids:
            raise ValueError("the sampler needs at least one stop id")
        self.model = model
        self.stop_ids = torch.tensor(sorted(set(stop_ids)), device=model.device)
        self.max_slots, self.max_len = max_slots, max_len
        self.policy_version, self.pack, self.sync_every = policy_version, pack, sync_every
        self.static_slots = model.device.type == "cuda" if static_slots is None else static_slots
        self.announced: int | None = None  # slots of the last line about memory

    @torch.inference_mode()
    def generate(self, requests: list[Request], *, on_finish: OnFinish | None = None) -> list[list[Completion]]:
        """Sample every request.

        Args:
            requests: any number, of any mix of lengths and temperatures.
            on_finish: called as `on_finish(request_index, sample_index, completion)` when a completion ends, in the order in
                which they end. An exception in it ends the call, with a note that names the sample.

        Returns:
            One list of `num_samples` completions for each request, in order.

        Raises:
            ValueError: an empty prompt, a prompt that leaves no room within max_len, a setting out of range, or max_slots is
                "auto" and memory holds not one row.
        """
        for index, request in enumerate(requests):
            self._check(index, request)
        if not requests:
            return []
        pack = self.pack and not self.static_slots and packable(self.model)
        slots = min(self._slots(requests, pack), sum(request.num_samples for request in requests))
        run = (self.model, requests, slots, self.stop_ids, self.policy_version, on_finish)
        if self.static_slots:
            results = StaticGeneration(*run, sync_every=self.sync_every).run()
        else:
            with packed_weights(self.model) if pack else nullcontext():
                results = GroupedGeneration(*run).run()
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()  # what follows, an update, allocates in other sizes
        return results

    def _slots(self, requests: list[Request], pack: bool) -> int:
        if self.max_slots != "auto":
            return self.max_slots
        slots, arithmetic = slots_that_fit(self.model, requests, pack=pack)
        if slots != self.announced:
            tqdm.write(arithmetic)  # there may be a progress bar
            self.announced = slots
        return slots

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
