"""Properties of bookkeeping: the sampler's slots and schedules, and the building of micro-batches, for random work.

The examples are the same in every run (`derandomize`), and none has a deadline.
"""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from conftest import make_model
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.batch import balance, deal_minibatches
from rl.config import Config
from rl.logprobs import token_logprobs
from rl.records import Completion, Request, Sample
from rl.sampler import Sampler

PROFILE = settings(derandomize=True, deadline=None, database=None)
STOPS = [0, 1, 2]
CPU = torch.device("cpu")

token_ids = st.lists(st.integers(3, 30), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def model():
    return make_model("qwen3", vocab_size=31, num_hidden_layers=2, hidden_size=32)


@st.composite
def requests(draw):
    """One to five requests, some of them with the same prompt, each sample with a limit of its own."""
    asked = []
    for number in range(draw(st.integers(1, 5))):
        same = asked and draw(st.booleans())
        prompt = draw(st.sampled_from(asked)).prompt_ids if same else draw(token_ids)
        limits = draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
        asked.append(Request(prompt, len(limits), limits, draw(st.sampled_from([0.0, 0.8, 1.5])), ("property", number)))
    return asked


@settings(PROFILE, max_examples=15)
@given(asked=requests(), slots=st.integers(1, 6), other_slots=st.integers(1, 6), sync_every=st.integers(1, 4))
def test_any_schedule_draws_the_same_and_delivers_once(model, asked, slots, other_slots, sync_every):
    """Bug guarded: a sample delivered twice, never, or to another request; a limit of a neighbour; a cache row that holds what
    another sequence left there, which shows in log-probs that are not those of the full forward."""
    drawn = []
    for rows, steps in ((slots, 1), (other_slots, sync_every)):
        heard: dict[tuple[int, int], Completion] = {}

        def hear(r: int, i: int, completion: Completion, heard=heard) -> None:
            assert (r, i) not in heard, "delivered twice"
            heard[r, i] = completion

        sampler = Sampler(model, stop_ids=STOPS, max_slots=rows, max_len=16, sync_every=steps)
        results = sampler.generate(asked, on_finish=hear)
        assert heard == {(r, i): c for r, group in enumerate(results) for i, c in enumerate(group)}
        assert [len(group) for group in results] == [request.num_samples for request in asked]
        drawn.append([[completion.ids for completion in group] for group in results])
    assert drawn[0] == drawn[1]

    for request, group in zip(asked, results, strict=True):
        for limit, completion in zip(request.limits, group, strict=True):
            stopped = completion.ids[-1] in STOPS
            assert completion.finish_reason == ("stop" if stopped else "length")
            assert len(completion.ids) <= limit
            assert stopped or len(completion.ids) == limit
            assert not set(completion.ids[:-1]) & set(STOPS)
            logp, _ = token_logprobs(
                model, torch.tensor([request.prompt_ids + completion.ids]), temperature=request.temperature or 1.0
            )
            found = logp[0, len(request.prompt_ids) :].tolist()
            assert completion.logprobs == pytest.approx(found, abs=1e-9)


@st.composite
def samples(draw):
    """Samples of a few prompts, in any order; each has an advantage of its own, by which it is known again."""
    prompts = draw(st.lists(token_ids, min_size=1, max_size=4, unique_by=tuple))
    drawn = draw(st.lists(st.tuples(st.sampled_from(prompts), st.integers(1, 9)), max_size=14))
    return [
        Sample(
            prompt, Completion([7] * length, [-0.5 * (number + 1)] * length, "length"), "", "refine", advantage=float(number)
        )
        for number, (prompt, length) in enumerate(drawn)
    ]


def cost(rows: list[Sample]) -> int:
    """Tokens that a micro-batch computes: a prompt counts once for the samples that share it."""
    prompts = {tuple(row.prompt_ids) for row in rows}
    return sum(map(len, prompts)) + sum(len(row.completion.ids) for row in rows)


def total(rows: list[Sample]) -> int:
    return sum(len(row.prompt_ids) + len(row.completion.ids) for row in rows)


@settings(PROFILE, max_examples=120)
@given(
    given=samples(), budget=st.integers(1, 40), minibatches=st.integers(1, 3), ranks=st.integers(1, 4), step=st.integers(0, 3)
)
def test_micro_batches_hold_every_sample_once_within_the_budget(given, budget, minibatches, ranks, step):
    """Bug guarded: a sample trained on twice or by no rank, a budget that is exceeded, log-probs or a mask of another row."""
    config = Config(model="m", micro_batch_tokens=budget, minibatches=minibatches)
    seen: Counter = Counter()
    steps = set()
    for rank in range(ranks):
        shares = deal_minibatches(given, config, step, CPU, rank=rank, ranks=ranks)
        steps.add(len(shares))
        for share in filter(None, shares):
            widths = [micro.ids_BT.shape[1] for micro in share]
            assert widths[0] == max(widths), "what needs most memory comes first"
        for micro in (micro for share in shares for micro in share):
            seen.update(row.advantage for row in micro.samples)
            assert len(micro.samples) == 1 or cost(micro.samples) <= budget
            order = [tuple(row.prompt_ids) for row in micro.samples]
            assert sum(a != b for a, b in pairwise(order)) == len(set(order)) - 1, "prompts lie together"
            assert micro.advantages_B.tolist() == [row.advantage for row in micro.samples]
            for row, ids, mask, logp in zip(micro.samples, micro.ids_BT, micro.mask_BT, micro.sampler_logp_BT, strict=True):
                begin, end = len(row.prompt_ids), len(row.prompt_ids) + len(row.completion.ids)
                assert ids[:end].tolist() == row.prompt_ids + row.completion.ids
                assert mask.nonzero()[:, 0].tolist() == list(range(begin, end))
                assert logp[mask].tolist() == row.completion.logprobs
                assert not logp[~mask].any()
    assert seen == Counter(row.advantage for row in given)
    assert len(steps) == 1, "every rank makes the same number of optimizer steps"


@settings(PROFILE, max_examples=120)
@given(given=samples(), ranks=st.integers(1, 4))
def test_ranks_get_about_as_many_tokens(given, ranks):
    """Bug guarded: one rank that waits for another with most of the work."""
    shares = balance(given, ranks)
    assert Counter(row.advantage for share in shares for row in share) == Counter(row.advantage for row in given)
    loads = [total(share) for share in shares]
    largest = max([0.25 * total(given) / ranks, *(total([row]) for row in given)])
    assert max(loads) - min(loads) <= largest + 1e-9, "the last unit dealt is all that ranks can differ by"
