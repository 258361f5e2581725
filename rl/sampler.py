"""The sampler: batched generation from a KV cache, exact and independent of how it was scheduled.

Each sequence draws from uniforms of its own, made from (seed_key, sample index) before it starts and indexed by position, and
a token is found by inverting the cumulative distribution. So a sample does not depend on the slot, batch, order or process it
ran in.

Shapes: S row slots, B live rows, N prompts, T tokens, V vocabulary, M new tokens.
"""

import hashlib
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from model.kv_cache import GroupedCache, PrefillCache
from model.transformer import Transformer
from rl.records import Completion, Request

PREFILL_TOKENS = 8192  # padded prompt tokens of one prefill forward

OnFinish = Callable[[int, int, Completion], None]


def uniforms(seed_key, sample: int, count: int) -> Tensor:
    """`count` uniforms in [0, 1), float64 on the CPU: a pure function of (seed_key, sample)."""
    digest = hashlib.blake2b(f"{seed_key!r}/{sample}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.rand(count, generator=generator, dtype=torch.float64)


def draw_tokens(logits_BV: Tensor, uniform_B: Tensor, temperature_B: Tensor, top_p_B: Tensor) -> tuple[Tensor, Tensor]:
    """Sample one token a row by inverse CDF.

    Returns:
        token_B, and its log-prob logp_B under softmax(logits / temperature) (under softmax(logits) where temperature is 0).
    """
    greedy_B = temperature_B == 0
    scaled_BV = logits_BV / torch.where(greedy_B, 1.0, temperature_B).to(logits_BV.dtype)[:, None]
    logp_BV = scaled_BV.log_softmax(-1)
    mass_BV = logp_BV.exp().double()
    if bool((top_p_B < 1).any()):
        mass_BV = _keep_nucleus(mass_BV, top_p_B)
    cdf_BV = mass_BV.cumsum(-1)
    target_B1 = uniform_B[:, None] * cdf_BV[:, -1:]
    token_B = torch.searchsorted(cdf_BV, target_B1, right=True)[:, 0].clamp_(max=logits_BV.shape[1] - 1)
    token_B = torch.where(greedy_B, logits_BV.argmax(-1), token_B)
    return token_B, logp_BV.gather(1, token_B[:, None])[:, 0]


def _keep_nucleus(mass_BV: Tensor, top_p_B: Tensor) -> Tensor:
    """Zero all but the smallest set of most likely tokens whose mass reaches top_p."""
    sorted_BV, order_BV = mass_BV.sort(dim=-1, descending=True, stable=True)
    before_BV = sorted_BV.cumsum(-1) - sorted_BV
    kept_BV = sorted_BV.masked_fill(before_BV >= top_p_B[:, None], 0.0)
    nucleus_BV = torch.zeros_like(mass_BV).scatter_(1, order_BV, kept_BV)
    return torch.where(top_p_B[:, None] < 1, nucleus_BV, mass_BV)  # a row without a cut keeps every token, whatever its company


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

    def __init__(self, model: Transformer, *, stop_ids, max_slots: int, max_len: int, policy_version: int = 0) -> None:
        if max_slots < 1 or max_len < 1:
            raise ValueError(f"max_slots ({max_slots}) and max_len ({max_len}) must be at least 1")
        if not stop_ids:
            raise ValueError("the sampler needs at least one stop id")
        self.model = model
        self.stop_ids = torch.tensor(sorted(set(stop_ids)), device=model.device)
        self.max_slots, self.max_len = max_slots, max_len
        self.policy_version = policy_version

    @torch.no_grad()
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
        return _Generation(self, requests, on_finish).run() if requests else []

    def _check(self, index: int, request: Request) -> None:
        def refuse(problem: str) -> None:
            raise ValueError(f"request {index} (seed key {request.seed_key!r}): {problem}")

        if not request.prompt_ids:
            refuse("the prompt is empty")
        if request.num_samples < 1 or request.max_new_tokens < 1:
            refuse("num_samples and max_new_tokens must be at least 1")
        if request.temperature < 0 or not 0 < request.top_p <= 1:
            refuse("temperature must not be negative and top_p must be in (0, 1]")
        needed = len(request.prompt_ids) + request.max_new_tokens
        if needed > self.max_len:
            refuse(f"prompt and completion need {needed} tokens, max_len is {self.max_len}")


class _Generation:
    """The state of one `generate` call. Live rows are slots 0..B-1 and live prompts are 0..N-1 (see GroupedCache)."""

    def __init__(self, sampler: Sampler, requests: list[Request], on_finish: OnFinish | None) -> None:
        self.sampler, self.model, self.requests, self.on_finish = sampler, sampler.model, requests, on_finish
        self.waiting = deque((r, i) for r, request in enumerate(requests) for i in range(request.num_samples))
        self.results: list[list[Completion | None]] = [[None] * request.num_samples for request in requests]
        self.rows: list[tuple[int, int]] = []  # (request, sample) of each live row
        self.groups: list[int] = []  # request of each live prompt
        self.first_logits: dict[int, Tensor] = {}  # request -> logits after its prompt, until its last sample has entered

        slots = min(sampler.max_slots, len(self.waiting))
        device = self.model.device
        longest_new = max(request.max_new_tokens for request in requests)
        self.cache = GroupedCache(
            self.model.config,
            rows=slots,
            groups=min(slots, len(requests)),
            max_prompt=max(len(request.prompt_ids) for request in requests),
            max_new=longest_new,
            dtype=self.model.activation_dtype,
            device=device,
        )
        self.slots = slots
        self.token_S = torch.zeros(slots, dtype=torch.long, device=device)
        self.prompt_S = torch.zeros(slots, dtype=torch.long, device=device)  # prompt length
        self.count_S = torch.zeros(slots, dtype=torch.long, device=device)  # tokens generated
        self.limit_S = torch.zeros(slots, dtype=torch.long, device=device)  # max_new_tokens
        self.temperature_S = torch.ones(slots, dtype=torch.float64, device=device)
        self.top_p_S = torch.ones(slots, dtype=torch.float64, device=device)
        self.uniform_SM = torch.zeros(slots, longest_new, dtype=torch.float64, device=device)
        self.ids_SM = torch.zeros(slots, longest_new, dtype=torch.long, device=device)
        self.logp_SM = torch.zeros(slots, longest_new, dtype=torch.float64, device=device)

    def run(self) -> list[list[Completion]]:
        while self.waiting or self.rows:
            if self.waiting and len(self.rows) < self.slots:
                self._admit()
            else:
                self._decode()
            self._retire()
        return self.results

    def _admit(self) -> None:
        """Fill the free slots with waiting samples, prefill the prompts among them that are new, draw first tokens."""
        begin = len(self.rows)
        while self.waiting and len(self.rows) < self.slots:
            self.rows.append(self.waiting.popleft())
        entering = self.rows[begin:]
        self._prefill(sorted({r for r, _ in entering} - self.first_logits.keys()))
        for slot, (r, i) in enumerate(entering, start=begin):
            request = self.requests[r]
            self.prompt_S[slot] = len(request.prompt_ids)
            self.count_S[slot] = 0
            self.limit_S[slot] = request.max_new_tokens
            self.temperature_S[slot] = request.temperature
            self.top_p_S[slot] = request.top_p
            self.uniform_SM[slot, : request.max_new_tokens] = uniforms(request.seed_key, i, request.max_new_tokens)
        self._emit(slice(begin, len(self.rows)), torch.stack([self.first_logits[r] for r, _ in entering]))
        for r, i in entering:
            if i == self.requests[r].num_samples - 1:
                del self.first_logits[r]
        self._arrange()

    def _prefill(self, new: list[int]) -> None:
        """Run the prompts of some requests, a few at a time, and keep their keys, values and last logits."""
        while new:
            longest, count = 0, 0
            for r in new:
                longest = max(longest, len(self.requests[r].prompt_ids))
                if count and longest * (count + 1) > PREFILL_TOKENS:
                    break
                count += 1
            batch, new = new[:count], new[count:]
            prompts = [torch.tensor(self.requests[r].prompt_ids) for r in batch]
            ids_NT = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True).to(self.model.device)
            prefill = PrefillCache()
            hidden_NTE = self.model(ids_NT, cache=prefill)
            last_N = torch.tensor([len(prompt) - 1 for prompt in prompts], device=ids_NT.device)
            logits_NV = self.model.logits(hidden_NTE[torch.arange(len(batch), device=ids_NT.device), last_N])
            for index, r in enumerate(batch):
                self.cache.store_prompt(len(self.groups), prefill, index, len(prompts[index]))
                self.groups.append(r)
                self.first_logits[r] = logits_NV[index]

    def _decode(self) -> None:
        """One token for every live row."""
        live = slice(0, len(self.rows))
        done_B = self.count_S[live] - 1  # generated tokens whose keys and values are in the cache
        self.cache.begin_step(done_B)
        position_B = self.prompt_S[live] + done_B
        hidden_B1E = self.model(self.token_S[live, None], position_B[:, None], cache=self.cache)
        self._emit(live, self.model.logits(hidden_B1E[:, 0]))

    def _emit(self, rows: slice, logits_BV: Tensor) -> None:
        """Draw the next token of some rows and append it."""
        count_B1 = self.count_S[rows, None]
        uniform_B = self.uniform_SM[rows].gather(1, count_B1)[:, 0]
        token_B, logp_B = draw_tokens(logits_BV, uniform_B, self.temperature_S[rows], self.top_p_S[rows])
        self.token_S[rows] = token_B
        self.ids_SM[rows].scatter_(1, count_B1, token_B[:, None])
        self.logp_SM[rows].scatter_(1, count_B1, logp_B[:, None].to(self.logp_SM.dtype))
        self.count_S[rows] += 1

    def _retire(self) -> None:
        """Take finished rows out and close the holes they leave."""
        B = len(self.rows)
        stopped_B = torch.isin(self.token_S[:B], self.sampler.stop_ids)
        finished_B = stopped_B | (self.count_S[:B] >= self.limit_S[:B])
        finished = finished_B.nonzero()[:, 0].tolist()
        if not finished:
            return
        reasons = ["stop" if stop else "length" for stop in stopped_B[finished].tolist()]
        for row, reason in zip(finished, reasons, strict=True):
            self._deliver(row, reason)
        self._compact_rows(finished)
        self._compact_groups()
        self._arrange()

    def _deliver(self, row: int, finish_reason: str) -> None:
        r, i = self.rows[row]
        request, count = self.requests[r], int(self.count_S[row])
        completion = Completion(
            ids=self.ids_SM[row, :count].tolist(),
            logprobs=self.logp_SM[row, :count].tolist(),
            finish_reason=finish_reason,
            temperature=request.temperature,
            top_p=request.top_p,
            policy_version=self.sampler.policy_version,
        )
        self.results[r][i] = completion
        if self.on_finish is not None:
            self.on_finish(r, i, completion)

    def _compact_rows(self, finished: list[int]) -> None:
        """Move live rows from the end of the batch into the slots of finished ones."""
        gone, B = set(finished), len(self.rows) - len(finished)
        sources = [row for row in range(B, len(self.rows)) if row not in gone]
        targets = [row for row in finished if row < B]
        if sources:
            device = self.token_S.device
            source, target = torch.tensor(sources, device=device), torch.tensor(targets, device=device)
            self.cache.move_rows(source, target, int(self.count_S[source].max()) - 1)
            for state in (self.token_S, self.prompt_S, self.count_S, self.limit_S, self.temperature_S, self.top_p_S):
                state[target] = state[source]
            for state in (self.uniform_SM, self.ids_SM, self.logp_SM):
                state[target] = state[source]
            for a, b in zip(sources, targets, strict=True):
                self.rows[b] = self.rows[a]
        del self.rows[B:]

    def _compact_groups(self) -> None:
        """Free the prompts that no live or waiting sample needs, and move the last prompt into each hole."""
        needed = {r for r, _ in self.rows} | self.first_logits.keys()
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
        if self.rows:
            group_of = {r: group for group, r in enumerate(self.groups)}
            self.cache.arrange([group_of[r] for r, _ in self.rows])
