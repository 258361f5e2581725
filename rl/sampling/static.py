"""Decoding in static slots, for a GPU: one CUDA graph of the decode step a batch size, results looked at every few steps.

A row keeps its slot until it ends; within the steps between two looks a row that has ended stands still. Only when nobody waits
any more do the last rows move together, so that a graph of fewer rows serves them. On other devices the same step runs eagerly.

Shapes: S row slots, B of them that are computed, V vocabulary, L layers, T tokens of a prompt, K key/value heads, D head dim.
"""

from functools import cache

import torch
from torch import Tensor

from model.static_cache import StaticCache
from rl.records import Completion
from rl.sampling.grouped import Generation

SYNC_EVERY = 8  # decode steps between two looks at what has ended
WARM_UP = 2  # steps before a capture, in which libraries make their workspaces
SHORTEST_GRAPHED = 128  # new tokens; capturing costs more than it saves where the longest completion is shorter


def graph_sizes(slots: int) -> list[int]:
    """Batch sizes worth a graph of their own, largest first: powers of two, and multiples of 32."""
    sizes = {1, 2, 4, 8, 16, *range(32, slots, 32)}
    return sorted({size for size in sizes if size < slots} | {slots}, reverse=True)


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One stream for all captures: cuBLAS keeps a workspace for each stream it has met."""
    return torch.cuda.Stream(device)


class StaticGeneration(Generation):
    """Rows in the slots of a StaticCache.

    Attributes:
        sync_every: decode steps between two looks at what has ended.
        prompts: keys and values of prompts that are computed and whose last sample has not entered.
        seen: tokens each slot had at the last look, to tell the order in which rows ended since.
    """

    def __init__(self, *args, sync_every: int = SYNC_EVERY) -> None:
        super().__init__(*args)
        self.sync_every = sync_every
        count = len(self.owners)
        self.cache = StaticCache(
            self.model.config,
            slots=count,
            max_len=max(len(request.prompt_ids) + max(request.limits) for request in self.requests),
            dtype=self.model.activation_dtype,
            device=self.model.device,
        )
        self.prompts: dict[int, Tensor] = {}
        self.seen = [0] * count
        self.sizes = graph_sizes(count)
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def run(self) -> list[list[Completion]]:
        worth_it = self.longest_new >= SHORTEST_GRAPHED and not self.slots.some_top_p  # a sort may wait for the device
        if self.model.device.type == "cuda" and worth_it:
            self.graphs = self._capture()
        while self.waiting or any(owner is not None for owner in self.owners):
            self._admit()
            rows = self._rows()
            for _ in range(self.sync_every):
                self._advance(rows)
            self._retire()
        return self.results

    def step(self, B: int) -> None:
        """One token for the first B slots. Only tensor operations on buffers that stay where they are, none of which waits."""
        slots = self.slots
        self.cache.begin_step(slots.position_S[:B], slots.live_S[:B])
        hidden_B1E = self.model(slots.token_S[:B, None], slots.position_S[:B, None], cache=self.cache)
        slots.emit(slice(0, B), self.model.logits(hidden_B1E[:, 0]))

    def store(self, r: int, kv_2LTKD: Tensor) -> None:
        for slot, owner in enumerate(self.owners):
            if owner is not None and owner[0] == r:
                self.cache.store_prompt(slot, kv_2LTKD)
        if self.waiting and self.waiting[0][0] == r:
            self.prompts[r] = kv_2LTKD.clone()  # a part of what was computed: the whole of it would stay otherwise

    def forget(self, r: int) -> None:
        super().forget(r)
        self.prompts.pop(r, None)

    def _capture(self) -> dict[int, torch.cuda.CUDAGraph]:
        """A graph of the step for each batch size, largest first, in one memory pool; while every slot is dead.

        The steps run for warming up advance nothing: they draw for dead rows.
        """
        graphs, pool = {}, torch.cuda.graph_pool_handle()
        side = _side_stream(self.model.device)
        for size in self.sizes:
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    self.step(size)
            torch.cuda.current_stream().wait_stream(side)
            graphs[size] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graphs[size], pool=pool, stream=side, capture_error_mode="thread_local"):
                self.step(size)
        return graphs

    def _advance(self, rows: int) -> None:
        if self.graphs:
            self.graphs[rows].replay()
        else:
            self.step(rows)

    def _rows(self) -> int:
        """The smallest batch size that holds every live row; rows behind it move into free slots."""
        live = [slot for slot, owner in enumerate(self.owners) if owner is not None]
        rows = min(size for size in self.sizes if size >= max(len(live), 1))
        sources = [slot for slot in live if slot >= rows]
        targets = [slot for slot in range(rows) if self.owners[slot] is None][: len(sources)]
        for source, target in zip(sources, targets, strict=True):
            r = self.owners[source][0]
            self.cache.move(source, target, len(self.requests[r].prompt_ids) + self.seen[source])
            self.owners[target], self.owners[source] = self.owners[source], None
            self.seen[target] = self.seen[source]
        if sources:
            source, target = (torch.tensor(x, device=self.model.device) for x in (sources, targets))
            self.slots.move(source, target)
        return rows

    def _admit(self) -> None:
        """Fill free slots with waiting samples and draw their first tokens."""
        known = set(self.prompts)
        entering = self.take_waiting([slot for slot, owner in enumerate(self.owners) if owner is None])
        if not entering:
            return
        for slot, (r, _) in entering.items():
            self.seen[slot] = 1  # the token drawn below: it does not count as one since the last look
            if r in known:
                self.cache.store_prompt(slot, self.prompts[r])
        slot_B = torch.tensor(list(entering), device=self.model.device)
        self.slots.emit(slot_B, self.first_logits_of(list(entering.values())))

    def _retire(self) -> None:
        """Look at what has ended since the last look, and hand it out in the order in which it ended."""
        slots = self.slots
        state = torch.stack((slots.live_S.long(), slots.count_S, slots.stopped_S.long())).tolist()
        ended = [slot for slot, owner in enumerate(self.owners) if owner is not None and not state[0][slot]]
        for slot in sorted(ended, key=lambda slot: state[1][slot] - self.seen[slot]):
            self.deliver(slot, state[1][slot], bool(state[2][slot]))
        self.seen = state[1]
