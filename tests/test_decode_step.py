"""The decode step as a CUDA graph needs it: buffers that stay, rows that stand still, any number of steps between two looks.

On a CPU the step runs eagerly over the same buffers; the graphs themselves are in test_gpu.py.
"""

from itertools import chain

import pytest
import torch
from conftest import make_model, random_prompts

from model.kv_cache import KVCache
from rl.records import Request
from rl.sampler import Generation, Sampler

STOPS = [0, 1, 2, 3, 4, 5]


def requests(temperature: float = 0.9) -> list[Request]:
    return [Request(p, 6, 24 + n, temperature, ("test", n)) for n, p in enumerate(random_prompts((5, 11, 3, 9, 1)))]


def generate(model, requested, slots: int = 99, *, sync_every: int = 1, **options):
    sampler = Sampler(model, stop_ids=STOPS, max_slots=slots, max_len=64, sync_every=sync_every)
    return sampler.generate(requested, **options)


def start(model, requested, slots: int, stops=STOPS) -> Generation:
    return Generation(Sampler(model, stop_ids=stops, max_slots=slots, max_len=64), requested, slots, None)


@pytest.mark.parametrize("sync_every", [2, 7, 50])
def test_any_number_of_steps_between_two_looks(family, sync_every):
    """Bug guarded: a row that goes on after its end, a stale slot, a moved row without its cache, a prompt in a wrong slot."""
    model = make_model(family)
    expected = generate(model, requests())
    assert {c.finish_reason for group in expected for c in group} == {"stop", "length"}
    for slots in (1, 3, 7, 64):
        drawn = generate(model, requests(), slots, sync_every=sync_every)
        for ours, theirs in zip(chain(*drawn), chain(*expected), strict=True):
            assert (ours.ids, ours.finish_reason) == (theirs.ids, theirs.finish_reason)
            torch.testing.assert_close(torch.tensor(ours.logprobs), torch.tensor(theirs.logprobs), atol=1e-9, rtol=0)


@pytest.mark.parametrize("sync_every", [1, 4, 30])
def test_completions_leave_in_the_order_they_end(sync_every):
    """Bug guarded: completions between two looks handed out by slot instead of by time."""
    limits = [9, 2, 14, 1, 5, 3]
    heard = []
    asked = [Request([5, 6, 7], 6, limits, 1.0, "order")]
    sampler = Sampler(make_model("qwen2"), stop_ids=[96], max_slots=6, max_len=64, sync_every=sync_every)
    results = sampler.generate(asked, on_finish=lambda r, i, c: heard.append(i))
    lengths = [len(results[0][i].ids) for i in heard]
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > 4


@torch.no_grad()
def test_dead_rows_stand_still():
    """Bug guarded: a row that has ended writing past its slot, or changing what it has generated, until the next look."""
    requested = [Request(prompt, 2, 5, 1.0, n) for n, prompt in enumerate(random_prompts((4, 7)))]
    state = start(make_model("qwen2"), requested, 4, stops=[0])
    state._admit()
    for _ in range(5):
        state._step(4)
    assert not state.live_S.any()
    kept = {name: x.clone() for name, x in vars(state).items() if name in ("position_S", "count_S", "stopped_S")}
    texts = [state.ids_SM[slot, :count].clone() for slot, count in enumerate(state.count_S.tolist())]
    cached = state.cache.kv.clone()
    for _ in range(20):
        state._step(4)
    assert all(torch.equal(vars(state)[name], x) for name, x in kept.items())
    assert all(torch.equal(state.ids_SM[slot, : len(text)], text) for slot, text in enumerate(texts))
    for slot, position in enumerate(state.position_S.tolist()):
        assert torch.equal(state.cache.kv[:, :, slot, :position], cached[:, :, slot, :position])
        assert not state.cache.kv[:, :, slot, position + 1 :].any()


@torch.no_grad()
def test_a_step_writes_its_buffers_in_place():
    """Bug guarded: state that is replaced instead of written, so that a captured graph goes on reading the old one."""
    state = start(make_model("qwen2"), requests(), 8)

    def addresses() -> list[int]:
        buffers = [x for name, x in vars(state).items() if name.endswith(("_S", "_SM"))]
        return [x.data_ptr() for x in (state.cache.kv, *buffers)]

    before = addresses()
    state._admit()
    state._step(8)
    state._retire()
    assert addresses() == before


@pytest.mark.parametrize("longest", [None, 9])
def test_slot_attention_ignores_what_is_behind_a_row(longest):
    """Bug guarded: a length off by one; leftovers of a slot's former row."""
    model = make_model("qwen2")
    config = model.config
    cache = KVCache(config, slots=3, max_len=9, dtype=torch.float64, device=torch.device("cpu"))
    cache.kv.normal_()
    H, K, D = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    q, k, v = (torch.randn(3, 1, heads, D, dtype=torch.float64) for heads in (H, K, K))
    position = torch.tensor([0, 4, 8])
    cache.begin_step(position, torch.tensor([True, True, True]), longest)
    out = cache.attend(1, q, k, v)
    for row, last in enumerate(position.tolist()):
        keys, values = (x[1, row, : last + 1].repeat_interleave(H // K, dim=1) for x in cache.kv)
        torch.testing.assert_close(keys[last, :: H // K], k[row, 0])
        weights = (torch.einsum("hd,thd->ht", q[row, 0], keys) / D**0.5).softmax(-1)
        torch.testing.assert_close(out[row, 0], torch.einsum("ht,thd->hd", weights, values))
