"""One `generate` call: samples enter slots in order, their prompts are computed once, and completions leave as they end.

GroupedGeneration is the CPU's: rows leave the batch at the step they end. static.py has the GPU's.

Shapes: S row slots, B live rows, N prompts, T tokens, L layers, K key/value heads, D head dim, V vocabulary, E embedding.
"""

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from model.kv_cache import GroupedCache, PromptRecorder
from model.transformer import Transformer
from rl.records import Completion, Request
from rl.sampling.slots import Slots

PREFILL_TOKENS = 8192  # prompt tokens of one prefill forward

OnFinish = Callable[[int, int, Completion], None]


class Generation:
    """What both ways of decoding have in common. A subclass has `run`, and a `store` for new prompts.

    Attributes:
        waiting: (request, sample) of the samples that have no slot yet.
        owners: (request, sample) in each slot, None in a free one.
        first_logits: of each request whose prompt is computed and whose last sample has not entered: logits after its prompt.
    """

    def __init__(
        self,
        model: Transformer,
        requests: list[Request],
        slots: int,
        stop_ids: Tensor,
        policy_version: int,
        on_finish: OnFinish | None,
    ) -> None:
        self.model, self.requests, self.policy_version, self.on_finish = model, requests, policy_version, on_finish
        self.waiting = deque((r, i) for r, request in enumerate(requests) for i in range(request.num_samples))
        self.results: list[list[Completion | None]] = [[None] * request.num_samples for request in requests]
        self.slots = Slots(slots, requests, stop_ids)
        self.owners: list[tuple[int, int] | None] = [None] * slots
        self.first_logits: dict[int, Tensor] = {}

    @property
    def longest_prompt(self) -> int:
        return max(len(request.prompt_ids) for request in self.requests)

    @property
    def longest_new(self) -> int:
        return max(max(request.limits) for request in self.requests)

    def take_waiting(self, free: list[int]) -> dict[int, tuple[int, int]]:
        """Give free slots to waiting samples, compute the prompts among them that are new: {slot: (request, sample)}."""
        entering = {slot: self.waiting.popleft() for slot in free[: len(self.waiting)]}
        for slot, (r, i) in entering.items():
            self.owners[slot] = (r, i)
            self.slots.fill(slot, self.requests[r], i)
        self.prefill(sorted({r for r, _ in entering.values()} - self.first_logits.keys()))
        return entering

    def first_logits_of(self, entering: list[tuple[int, int]]) -> Tensor:
        """Logits [B, V] that entering samples draw their first token from; forgotten once their request has entered wholly."""
        logits_BV = torch.stack([self.first_logits[r] for r, _ in entering])
        for r, i in entering:
            if i == self.requests[r].num_samples - 1:
                self.forget(r)
        return logits_BV

    def forget(self, r: int) -> None:
        """No further sample of request r will enter."""
        del self.first_logits[r]

    def store(self, r: int, kv_2LTKD: Tensor) -> None:
        """Keep the keys and values of the prompt of request r, some of whose samples have just been given slots."""
        raise NotImplementedError

    def prefill(self, new: list[int]) -> None:
        """Run the prompts of some requests end to end, a few at a time; keep their keys, values and last logits."""
        lengths = [len(request.prompt_ids) for request in self.requests]
        device = self.model.device
        while new:
            count = 1
            while count < len(new) and sum(lengths[r] for r in new[: count + 1]) <= PREFILL_TOKENS:
                count += 1
            batch, new = new[:count], new[count:]
            ids_T = torch.tensor([token for r in batch for token in self.requests[r].prompt_ids], device=device)
            position_T = torch.cat([torch.arange(lengths[r]) for r in batch]).to(device)
            recorder = PromptRecorder([lengths[r] for r in batch], device)
            hidden_TE = self.model(ids_T[None], position_T[None], cache=recorder)[0]
            ends_N = recorder.packed.cu_seqlens[1:] - 1
            logits_NV = self.model.logits(hidden_TE[ends_N])
            for r, logits_V, kv_2LTKD in zip(batch, logits_NV, recorder.take(), strict=True):
                self.store(r, kv_2LTKD)
                self.first_logits[r] = logits_V

    def deliver(self, slot: int, count: int, stopped: bool) -> None:
        """Hand out the completion of a slot and free it."""
        r, i = self.owners[slot]
        self.owners[slot] = None
        request = self.requests[r]
        completion = self.results[r][i] = Completion(
            ids=self.slots.ids_SM[slot, :count].tolist(),
            logprobs=self.slots.logp_SM[slot, :count].tolist(),
            finish_reason="stop" if stopped else "length",
            temperature=request.temperature,
            top_p=request.top_p,
            policy_version=self.policy_version,
        )
        if self.on_finish is not None:
            named = _NameErrors(f"in on_finish of sample {i} of request {r} (seed key {request.seed_key!r})")
            with named, torch.inference_mode(False), torch.no_grad():  # tensors that it keeps are ordinary ones
                self.on_finish(r, i, completion)


class _NameErrors:
    """Adds a note to an error that passes."""

    def __init__(self, note: str) -> None:
        self.note = note

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, traceback) -> None:
        if error is not None:
            error.add_note(self.note)


class GroupedGeneration(Generation):
    """Live rows are slots 0..B-1 and live prompts are groups 0..N-1 of a GroupedCache: holes are closed as rows end."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.live = 0  # B
        self.groups: list[int] = []  # request of each live prompt
        self.cache = GroupedCache(
            self.model.config,
            rows=len(self.owners),
            groups=min(len(self.owners), len(self.requests)),
            max_prompt=self.longest_prompt,
            max_new=self.longest_new,
            dtype=self.model.activation_dtype,
            device=self.model.device,
        )

    def run(self) -> list[list[Completion]]:
        while self.waiting or self.live:
            if self.waiting and self.live < len(self.owners):
                self._admit()
            else:
                self._decode()
            self._retire()
        return self.results

    def store(self, r: int, kv_2LTKD: Tensor) -> None:
        self.cache.store_prompt(len(self.groups), kv_2LTKD)
        self.groups.append(r)

    def _admit(self) -> None:
        entering = self.take_waiting(list(range(self.live, len(self.owners))))
        rows = slice(self.live, self.live + len(entering))
        self.live = rows.stop
        self.slots.emit(rows, self.first_logits_of(list(entering.values())))
        self._arrange()

    def _decode(self) -> None:
        """One token for every live row."""
        slots, live = self.slots, slice(0, self.live)
        self.cache.begin_step(slots.count_S[live] - 1)  # generated tokens whose keys and values are in the cache
        hidden_B1E = self.model(slots.token_S[live, None], slots.position_S[live, None], cache=self.cache)
        slots.emit(live, self.model.logits(hidden_B1E[:, 0]))

    def _retire(self) -> None:
        """Take finished rows out and close the holes they leave."""
        live_B = self.slots.live_S[: self.live]
        if bool(live_B.all()):
            return
        finished = (~live_B).nonzero()[:, 0].tolist()
        for slot in finished:
            self.deliver(slot, int(self.slots.count_S[slot]), bool(self.slots.stopped_S[slot]))
        self._compact_rows(finished)
        self._compact_groups()
        self._arrange()

    def _compact_rows(self, finished: list[int]) -> None:
        """Move live rows from the end of the batch into the slots of finished ones."""
        B = self.live - len(finished)
        sources = [slot for slot in range(B, self.live) if self.owners[slot] is not None]
        targets = [slot for slot in finished if slot < B]
        if sources:
            source, target = (torch.tensor(x, device=self.model.device) for x in (sources, targets))
            self.cache.move_rows(source, target, int(self.slots.count_S[source].max()) - 1)
            self.slots.move(source, target)
            for a, b in zip(sources, targets, strict=True):
                self.owners[b], self.owners[a] = self.owners[a], None
        self.live = B

    def _compact_groups(self) -> None:
        """Free the prompts that no live or waiting sample needs, and move the last prompt into each hole."""
        needed = {owner[0] for owner in self.owners[: self.live]} | self.first_logits.keys()
        group = 0
        while group < len(self.groups):
            if self.groups[group] in needed:
                group += 1
                continue
            last = len(self.groups) - 1
            if group < last:
                self.cache.move_prompt(last, group)
                self.groups[group] = self.groups[last]
            del self.groups[last]

    def _arrange(self) -> None:
        if self.live:
            group_of = {r: group for group, r in enumerate(self.groups)}
            self.cache.arrange([group_of[r] for r, _ in self.owners[: self.live]])
