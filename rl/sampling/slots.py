"""What the sampler knows of each row on the device: the token to be fed, its place, its draws, and what it has generated.

The buffers never move, and advancing them never waits for the device, so that a decode step can be a CUDA graph.

Shapes: S row slots, B of them that are computed, M new tokens a slot can hold, V vocabulary.
"""

import torch
from torch import Tensor

from rl.records import Request
from rl.sampling.draws import draw_tokens, uniforms


class Slots:
    """State of S rows, each dead or alive. A row ends with a stop id or with its last allowed token; then it stays as it is.

    Args:
        requests: everything that will be sampled; decides how long the buffers are and what a draw has to reckon with.
        stop_ids: ids that end a row, on the device.
    """

    def __init__(self, count: int, requests: list[Request], stop_ids: Tensor) -> None:
        device, longest = stop_ids.device, max(max(request.limits) for request in requests)
        self.stop_ids = stop_ids
        self.some_greedy = any(request.temperature == 0 for request in requests)
        self.some_top_p = any(request.top_p < 1 for request in requests)

        def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        self.slot_S = torch.arange(count, device=device)
        self.token_S = zeros(count, dtype=torch.long)  # drawn, not yet fed
        self.position_S = zeros(count, dtype=torch.long)  # of that token
        self.count_S = zeros(count, dtype=torch.long)  # tokens generated
        self.limit_S = zeros(count, dtype=torch.long)
        self.live_S = zeros(count, dtype=torch.bool)
        self.stopped_S = zeros(count, dtype=torch.bool)  # ended with a stop id
        self.temperature_S = torch.ones(count, dtype=torch.float64, device=device)
        self.top_p_S = torch.ones(count, dtype=torch.float64, device=device)
        # one column more than tokens: a row that has ended goes on writing behind its last token, where nobody reads
        self.uniform_SM = zeros(count, longest + 1, dtype=torch.float64)
        self.ids_SM = zeros(count, longest + 1, dtype=torch.long)
        self.logp_SM = zeros(count, longest + 1, dtype=torch.float64)

    def fill(self, slot: int, request: Request, sample: int) -> None:
        """Put a sample into a dead slot; `emit` gives it its first token."""
        limit = request.limits[sample]
        self.position_S[slot] = len(request.prompt_ids) - 1
        self.count_S[slot] = 0
        self.limit_S[slot] = limit
        self.live_S[slot] = True
        self.stopped_S[slot] = False
        self.temperature_S[slot] = request.temperature
        self.top_p_S[slot] = request.top_p
        self.uniform_SM[slot, :limit] = uniforms(request.seed_key, sample, limit)

    def emit(self, rows: slice | Tensor, logits_BV: Tensor) -> None:
        """Draw the next token of some rows (a range of slots, or their indices); those alive append it."""
        slot_B, count_B, live_B = self.slot_S[rows], self.count_S[rows], self.live_S[rows]
        uniform_B = self.uniform_SM[slot_B, count_B]
        top_p_B = self.top_p_S[rows] if self.some_top_p else None
        token_B, logp_B = draw_tokens(logits_BV, uniform_B, self.temperature_S[rows], top_p_B, some_greedy=self.some_greedy)
        self.token_S[rows] = token_B
        self.ids_SM[slot_B, count_B] = token_B
        self.logp_SM[slot_B, count_B] = logp_B.to(self.logp_SM.dtype)
        count_B = count_B + live_B
        stopped_B = (token_B[:, None] == self.stop_ids).any(-1) & live_B
        self.count_S[rows] = count_B
        self.position_S[rows] += live_B
        self.stopped_S[rows] |= stopped_B
        self.live_S[rows] = live_B & ~stopped_B & (count_B < self.limit_S[rows])

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Move live rows into dead slots; the slots they leave are dead."""
        for name, state in vars(self).items():
            if name.endswith(("_S", "_SM")) and name != "slot_S":
                state[targets] = state[sources]
        self.live_S[sources] = False
