"""Decoding in static slots: the same tokens as the grouped cache's, whatever the slots and the steps between two looks.

On a CPU the step function runs eagerly over the same buffers that a GPU's graphs use; the graphs themselves are in test_gpu.py.
"""

import random
from itertools import chain

import pytest
import torch
from conftest import make_model, random_prompts
from model.static_cache import StaticCache
from rl.sampling.static import StaticGeneration, graph_sizes

from rl.logprobs import token_logprobs
from rl.records import Request
from rl.sampler import Sampler
from rl.slots import Slots

STOPS = [0, 1, 2, 3, 4, 5]


def requests(temperature: float = 0.9) -> list[Request]:
    return [Request(p, 6, 24 + n, temperature, ("test", n)) for n, p in enumerate(random_prompts((5, 11, 3, 9, 1)))]


def generate(model, asked, slots: int = 99, *, static: bool = True, sync_every: int = 3, **options):
    sampler = Sampler(model, stop_ids=STOPS, max_slots=slots, max_len=64, static_slots=static, sync_every=sync_every)
    return sampler.generate(asked, **options)


def ids_of(results) -> list[list[list[int]]]:
    return [[completion.ids for completion in group] for group in results]


@pytest.mark.parametrize("sync_every", [1, 2, 7, 50])
def test_same_tokens_as_the_grouped_cache(family, sync_every):
    """Bug guarded: a row that goes on after its end, a stale slot, a moved row without its cache, a prompt in a wrong slot."""
    model, asked = make_model(family), requests()
    wanted = generate(model, asked, static=False)
    assert {c.finish_reason for group in wanted for c in group} == {"stop", "length"}
    for slots in (1, 3, 7, 64):
        drawn = generate(model, asked, slots, sync_every=sync_every)
        assert ids_of(drawn) == ids_of(wanted)
        for ours, theirs in zip(chain(*drawn), chain(*wanted), strict=True):
            assert ours.finish_reason == theirs.finish_reason
            torch.testing.assert_close(torch.tensor(ours.logprobs), torch.tensor(theirs.logprobs), atol=1e-9, rtol=0)


def test_many_random_schedules():
    """Bug guarded: bookkeeping when rows end in any order, at once, or with their first token, of all kinds."""
    model, rng = make_model("qwen3"), random.Random(0)
    for _ in range(10):
        prompts = random_prompts([rng.randint(1, 9) for _ in range(rng.randint(1, 7))], seed=rng.randint(0, 99))
        asked = [
            Request(p, rng.randint(1, 5), rng.randint(1, 12), rng.choice([0.0, 0.8, 1.5]), n, rng.choice([1.0, 0.7]))
            for n, p in enumerate(prompts)
        ]
        wanted = [ids_of(generate(model, [request], static=False))[0] for request in asked]
        assert ids_of(generate(model, asked, rng.randint(1, 9), sync_every=rng.randint(1, 6))) == wanted


def test_logprobs_equal_the_trainers(family):
    """Bug guarded: attention that sees a token too much or too few of its slot."""
    model, asked = make_model(family), requests(0.7)
    for request, group in zip(asked, generate(model, asked, 4), strict=True):
        for completion in group:
            ids = torch.tensor([request.prompt_ids + completion.ids])
            logp, _ = token_logprobs(model, ids, temperature=0.7)
            given = torch.tensor(completion.logprobs, dtype=torch.float64)
            torch.testing.assert_close(logp[0, len(request.prompt_ids) :], given, atol=1e-9, rtol=0)


@pytest.mark.parametrize("sync_every", [1, 4, 30])
def test_completions_leave_in_the_order_they_end(sync_every):
    """Bug guarded: completions between two looks handed out by slot instead of by time."""
    limits = [9, 2, 14, 1, 5, 3]
    heard = []
    asked = [Request([5, 6, 7], 6, limits, 1.0, "order")]
    sampler = Sampler(make_model("qwen2"), stop_ids=[96], max_slots=6, max_len=64, static_slots=True, sync_every=sync_every)
    results = sampler.generate(asked, on_finish=lambda r, i, c: heard.append(i))
    lengths = [len(results[0][i].ids) for i in heard]
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > 4


@torch.no_grad()
def test_dead_rows_stand_still():
    """Bug guarded: a row that has ended writing past its slot, or changing what it has generated, until the next look."""
    model = make_model("qwen2")
    asked = [Request(prompt, 2, 5, 1.0, n) for n, prompt in enumerate(random_prompts((4, 7)))]
    run = (model, asked, 4, torch.tensor([0]), 0, None)
    generation = StaticGeneration(*run, sync_every=1)
    generation._admit()
    for _ in range(5):
        generation.step(4)
    state = generation.slots
    assert not state.live_S.any()
    kept = {name: x.clone() for name, x in vars(state).items() if name in ("position_S", "count_S", "stopped_S")}
    texts = [state.ids_SM[slot, :count].clone() for slot, count in enumerate(state.count_S.tolist())]
    cached = generation.cache.kv.clone()
    for _ in range(20):
        generation.step(4)
    assert all(torch.equal(vars(state)[name], x) for name, x in kept.items())
    assert all(torch.equal(state.ids_SM[slot, : len(text)], text) for slot, text in enumerate(texts))
    for slot, position in enumerate(state.position_S.tolist()):
        assert torch.equal(generation.cache.kv[:, :, slot, :position], cached[:, :, slot, :position])
        assert not generation.cache.kv[:, :, slot, position + 1 :].any()


@torch.no_grad()
def test_a_step_writes_its_buffers_in_place():
    """Bug guarded: state that is replaced instead of written, so that a captured graph goes on reading the old one."""
    model = make_model("qwen2")
    generation = StaticGeneration(model, requests(), 8, torch.tensor(STOPS), 0, None)

    def addresses() -> list[int]:
        state = vars(generation.slots)
        return [generation.cache.kv.data_ptr(), *(x.data_ptr() for name, x in state.items() if name.endswith(("_S", "_SM")))]

    before = addresses()
    generation._admit()
    generation.step(8)
    generation._retire()
    assert addresses() == before


def test_moved_rows_leave_dead_slots():
    """Bug guarded: a row that two slots go on drawing, or state that stays behind."""
    slots = Slots(4, requests(), torch.tensor(STOPS))
    slots.fill(3, requests()[1], 2)
    uniform = slots.uniform_SM[3].clone()
    slots.move(torch.tensor([3]), torch.tensor([0]))
    assert slots.live_S.tolist() == [True, False, False, False]
    assert torch.equal(slots.uniform_SM[0], uniform)
    assert (slots.limit_S[0], slots.position_S[0], slots.slot_S[0]) == (25, 10, 0)


def test_graph_sizes():
    """Bug guarded: a number of rows without a graph."""
    assert graph_sizes(1) == [1]
    assert graph_sizes(48) == [48, 32, 16, 8, 4, 2, 1]
    assert graph_sizes(256)[:2] == [256, 224]


def test_slot_attention_ignores_what_is_behind_a_row():
    """Bug guarded: a length off by one; leftovers of a slot's former row."""
    model = make_model("qwen2")
    config = model.config
    cache = StaticCache(config, slots=3, max_len=9, dtype=torch.float64, device=torch.device("cpu"))
    cache.kv.normal_()
    H, K, D = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    q, k, v = (torch.randn(3, 1, heads, D, dtype=torch.float64) for heads in (H, K, K))
    position = torch.tensor([0, 4, 8])
    cache.begin_step(position, torch.tensor([True, True, True]))
    out = cache.attend(1, q, k, v)
    for row, last in enumerate(position.tolist()):
        keys, values = (x[1, row, : last + 1].repeat_interleave(H // K, dim=1) for x in cache.kv)
        torch.testing.assert_close(keys[last, :: H // K], k[row, 0])
        weights = (torch.einsum("hd,thd->ht", q[row, 0], keys) / D**0.5).softmax(-1)
        torch.testing.assert_close(out[row, 0], torch.einsum("ht,thd->hd", weights, values))
