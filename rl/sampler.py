"""The sampler: batched generation from a KV cache, exact and independent of how it was scheduled.

    while something waits or lives:
        admit    waiting samples take free slots; prompts that are new are computed, once for all samples of a request
        step     one token for every live row; on CUDA a graph, and several steps between two looks at what has ended
        retire   what has ended is handed out, and the last rows move into the holes

Each sequence draws from uniforms of its own (draws.py), so a sample does not depend on its slot, batch, order or process.

Shapes: S row slots, B of them that are computed, M new tokens a slot can hold, V vocabulary, T tokens, L layers, K key/value
heads, D head dim, E embedding.
"""

from collections import deque
from collections.abc import Callable, Iterator
from functools import cache
from itertools import chain
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from model.kv_cache import KVCache, PromptRecorder
from model.transformer import Transformer
from rl.draws import draw_tokens, uniforms
from rl.records import Completion, Request
from rl.slots import PREFILL_TOKENS, slots_that_fit

GPU_STEPS = 8  # decode steps between two looks at what has ended
WARM_UP = 2  # steps before a capture, in which libraries make their workspaces
SHORTEST_GRAPHED = 128  # new tokens; capturing costs more than it saves where the longest completion is shorter

OnFinish = Callable[[int, int, Completion], None]


class Sampler:
    """Generates completions with one set of weights.

    Args:
        model: the weights; they may be updated in place between calls.
        stop_ids: token ids that end a completion.
        max_slots: rows decoded at once; further samples wait and enter as rows finish. "auto": what free memory holds.
        max_len: longest prompt plus completion, in tokens.
        policy_version: stamped on every completion; the owner of the weights keeps it up to date.
        sync_every: decode steps between two looks at what has ended; default 1 on a CPU, GPU_STEPS on CUDA.

    Raises:
        ValueError: max_slots, max_len or sync_every below 1, or no stop ids.
    """

    def __init__(self, model: Transformer, *, stop_ids, max_slots: int | Literal["auto"], max_len: int,
                 policy_version: int = 0, sync_every: int | None = None) -> None:  # fmt: skip
        self.sync_every = sync_every or (GPU_STEPS if model.device.type == "cuda" else 1)
        if (max_slots != "auto" and max_slots < 1) or max_len < 1 or self.sync_every < 1:
            raise ValueError(f"max_slots ({max_slots}), max_len ({max_len}) and sync_every must be at least 1")
        if not stop_ids:
            raise ValueError("the sampler needs at least one stop id")
        self.model, self.policy_version = model, policy_version
        self.stop_ids = torch.tensor(sorted(set(stop_ids)), device=model.device)
        self.max_slots, self.max_len = max_slots, max_len
        self.announced: int | None = None  # slots of the last line about memory

    @torch.inference_mode()
    def generate(self, requests: list[Request], *, on_finish: OnFinish | None = None) -> list[list[Completion]]:
        """Sample every request.

        Args:
            on_finish: called as `on_finish(request_index, sample_index, completion)` when a completion ends, in the order in
                which they end. An exception in it ends the call, with a note that names the sample.

        Returns:
            One list of `num_samples` completions for each request, in order.

        Raises:
            ValueError: a request that cannot be sampled, or max_slots is "auto" and memory holds not one row.
        """
        for index, request in enumerate(requests):
            _check(index, request, self.max_len)
        if not requests:
            return []
        slots = self.max_slots
        if slots == "auto":
            slots, arithmetic = slots_that_fit(self.model, requests)
            if slots != self.announced:
                tqdm.write(arithmetic)  # there may be a progress bar
                self.announced = slots
        results = Generation(self, requests, min(slots, sum(r.num_samples for r in requests)), on_finish).run()
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()  # what follows, an update, allocates in other sizes
        return results


class Generation:
    """One `generate` call. Live rows are always slots 0..live-1.

    Attributes:
        waiting: (request, sample) of the samples that have no slot yet.
        owners: (request, sample) in each live slot.
        seen: tokens of each live slot at the last look, which tell the order in which rows have ended since.
        prompts: of the request some of whose samples still wait: logits after its prompt, keys and values.
    """

    def __init__(self, sampler: Sampler, requests: list[Request], slots: int, on_finish: OnFinish | None) -> None:
        self.model, self.requests, self.on_finish = sampler.model, requests, on_finish
        self.sync_every, self.stop_ids, self.policy_version = sampler.sync_every, sampler.stop_ids, sampler.policy_version
        self.waiting = deque((r, i) for r, request in enumerate(requests) for i in range(request.num_samples))
        self.results: list[list[Completion | None]] = [[None] * request.num_samples for request in requests]
        self.owners: list[tuple[int, int]] = []
        self.seen: list[int] = []
        self.prompts: dict[int, tuple[Tensor, Tensor]] = {}
        self.longest_new = max(max(request.limits) for request in requests)
        self.greedy, self.nucleus = any(r.temperature == 0 for r in requests), any(r.top_p < 1 for r in requests)
        device, model = self.model.device, self.model
        longest = max(len(r.prompt_ids) + max(r.limits) for r in requests)
        self.cache = KVCache(model.config, slots=slots, max_len=longest, dtype=model.activation_dtype, device=device)

        def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        # buffers that never move: a decode step over them can be a CUDA graph
        self.slot_S = torch.arange(slots, device=device)
        self.token_S, self.position_S = zeros(slots, dtype=torch.long), zeros(slots, dtype=torch.long)  # to be fed, and where
        self.count_S, self.limit_S = zeros(slots, dtype=torch.long), zeros(slots, dtype=torch.long)  # new tokens
        self.live_S, self.stopped_S = zeros(slots, dtype=torch.bool), zeros(slots, dtype=torch.bool)
        self.temperature_S, self.top_p_S = (torch.ones(slots, dtype=torch.float64, device=device) for _ in range(2))
        # one column more than tokens: a row that has ended goes on writing behind its last token, where nobody reads
        width = self.longest_new + 1
        self.uniform_SM, self.logp_SM = zeros(slots, width, dtype=torch.float64), zeros(slots, width, dtype=torch.float64)
        self.ids_SM = zeros(slots, width, dtype=torch.long)

    def run(self) -> list[list[Completion]]:
        worth_it = self.longest_new >= SHORTEST_GRAPHED and not self.nucleus  # a sort may wait for the device
        graphs = self._capture() if worth_it and self.model.device.type == "cuda" else {}
        while self.waiting or self.owners:
            self._admit()
            live = len(self.owners)
            rows = min((size for size in graphs if size >= live), default=live)
            for _ in range(self.sync_every):
                graphs[rows].replay() if graphs else self._step(rows)
            self._retire()
        return self.results

    def _admit(self) -> None:
        """Give free slots to waiting samples, compute their prompts, and draw their first tokens."""
        first = len(self.owners)
        entering = [self.waiting.popleft() for _ in range(min(len(self.slot_S) - first, len(self.waiting)))]
        if not entering:
            return
        slots_of: dict[int, list[int]] = {}
        for slot, (r, i) in enumerate(entering, start=first):
            slots_of.setdefault(r, []).append(slot)
            request, limit = self.requests[r], self.requests[r].limits[i]
            self.position_S[slot], self.count_S[slot], self.limit_S[slot] = len(request.prompt_ids) - 1, 0, limit
            self.live_S[slot], self.stopped_S[slot] = True, False
            self.temperature_S[slot], self.top_p_S[slot] = request.temperature, request.top_p
            self.uniform_SM[slot, :limit] = uniforms(request.seed_key, i, limit)
        self.owners, self.seen = self.owners + entering, self.seen + [1] * len(entering)  # the token that is drawn now

        # each prompt is computed once and copied into its slots; it is kept only if samples of its request still wait
        kept, logits, more = {}, {}, self.waiting[0][0] if self.waiting else None
        new = sorted(slots_of.keys() - self.prompts.keys())
        for r, (logits_V, kv_2LTKD) in chain(self.prompts.items(), self._prefill(new)):
            for slot in slots_of[r]:
                self.cache.store_prompt(slot, kv_2LTKD)
            logits[r] = logits_V
            if r == more:
                kept[r] = logits_V, kv_2LTKD.clone()  # a part of what was computed: the whole of it would stay otherwise
        self.prompts = kept
        self._emit(slice(first, len(self.owners)), torch.stack([logits[r] for r, _ in entering]))

    def _prefill(self, new: list[int]) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
        """Run the prompts of some requests end to end, a few at a time: (request, (last logits, keys and values))."""
        device = self.model.device
        while new:
            count = 1
            while count < len(new) and sum(len(self.requests[r].prompt_ids) for r in new[: count + 1]) <= PREFILL_TOKENS:
                count += 1
            batch, new = new[:count], new[count:]
            prompts = [self.requests[r].prompt_ids for r in batch]
            ids_T = torch.tensor([token for prompt in prompts for token in prompt], device=device)
            position_T = torch.cat([torch.arange(len(prompt)) for prompt in prompts]).to(device)
            recorder = PromptRecorder([len(prompt) for prompt in prompts], device)
            hidden_TE = self.model(ids_T[None], position_T[None], cache=recorder)[0]
            yield from zip(
                batch, zip(self.model.logits(hidden_TE[recorder.packed.ends]), recorder.take(), strict=True), strict=True
            )

    def _step(self, B: int) -> None:
        """One token for the first B slots. On CUDA only operations on buffers that stay where they are, none of which waits."""
        longest = int(self.position_S[:B].max()) + 1 if self.token_S.device.type == "cpu" else None
        self.cache.begin_step(self.position_S[:B], self.live_S[:B], longest)
        hidden_B1E = self.model(self.token_S[:B, None], self.position_S[:B, None], cache=self.cache)
        self._emit(slice(0, B), self.model.logits(hidden_B1E[:, 0]))

    def _emit(self, rows: slice, logits_BV: Tensor) -> None:
        """Draw the next token of some rows; those alive append it. A row ends with a stop id or its last allowed token."""
        slot_B, count_B, live_B = self.slot_S[rows], self.count_S[rows], self.live_S[rows]
        top_p_B = self.top_p_S[rows] if self.nucleus else None
        uniform_B = self.uniform_SM[slot_B, count_B]
        token_B, logp_B = draw_tokens(logits_BV, uniform_B, self.temperature_S[rows], top_p_B, some_greedy=self.greedy)
        self.token_S[rows] = token_B
        self.ids_SM[slot_B, count_B], self.logp_SM[slot_B, count_B] = token_B, logp_B.to(self.logp_SM.dtype)
        count_B = count_B + live_B
        stopped_B = (token_B[:, None] == self.stop_ids).any(-1) & live_B
        self.count_S[rows] = count_B
        self.position_S[rows] += live_B
        self.stopped_S[rows] |= stopped_B
        self.live_S[rows] = live_B & ~stopped_B & (count_B < self.limit_S[rows])

    def _retire(self) -> None:
        """Hand out what has ended since the last look, in that order, and move the last live rows into the holes."""
        live = len(self.owners)
        alive, counts, stopped = torch.stack((self.live_S, self.count_S, self.stopped_S))[:, :live].tolist()
        ended = [slot for slot in range(live) if not alive[slot]]
        for slot in sorted(ended, key=lambda slot: counts[slot] - self.seen[slot]):
            self._deliver(slot, counts[slot], bool(stopped[slot]))

        # live rows are slots 0, 1, 2, ... again
        self.seen, stay = counts, live - len(ended)
        sources = [slot for slot in range(stay, live) if alive[slot]]
        targets = [slot for slot in ended if slot < stay]
        if sources:
            source, target = (torch.tensor(x, device=self.slot_S.device) for x in (sources, targets))
            self.cache.move(source, target, int(self.position_S[source].max()))
            for name, state in vars(self).items():
                if name.endswith(("_S", "_SM")) and name != "slot_S":
                    state[target] = state[source]
            self.live_S[source] = False
            for a, b in zip(sources, targets, strict=True):
                self.owners[b], self.seen[b] = self.owners[a], self.seen[a]
        del self.owners[stay:], self.seen[stay:]

    def _deliver(self, slot: int, count: int, stopped: bool) -> None:
        r, i = self.owners[slot]
        request = self.requests[r]
        completion = self.results[r][i] = Completion(
            ids=self.ids_SM[slot, :count].tolist(),
            logprobs=self.logp_SM[slot, :count].tolist(),
            finish_reason="stop" if stopped else "length",
            temperature=request.temperature,
            top_p=request.top_p,
            policy_version=self.policy_version,
        )
        if self.on_finish is not None:
            try:
                with torch.inference_mode(False), torch.no_grad():  # tensors that it keeps are ordinary ones
                    self.on_finish(r, i, completion)
            except BaseException as error:
                error.add_note(f"in on_finish of sample {i} of request {r} (seed key {request.seed_key!r})")
                raise

    def _capture(self) -> dict[int, torch.cuda.CUDAGraph]:
        """A graph of the step for powers of two and multiples of 32 rows, largest first, in one memory pool.

        Every slot is dead meanwhile: the steps run for warming up advance nothing.
        """
        slots = len(self.slot_S)
        sizes = sorted({size for size in {1, 2, 4, 8, 16, *range(32, slots, 32)} if size < slots} | {slots}, reverse=True)
        graphs, pool, side = {}, torch.cuda.graph_pool_handle(), _side_stream(self.model.device)
        for size in sizes:
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    self._step(size)
            torch.cuda.current_stream().wait_stream(side)
            graphs[size] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graphs[size], pool=pool, stream=side, capture_error_mode="thread_local"):
                self._step(size)
        return graphs


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One stream for all captures: cuBLAS keeps a workspace for each stream it has met."""
    return torch.cuda.Stream(device)


def _check(index: int, request: Request, max_len: int) -> None:
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
    if (needed := len(request.prompt_ids) + max(request.limits)) > max_len:
        refuse(f"prompt and completion need {needed} tokens, max_len is {max_len}")
