"""The sampler: equal to the full forward, independent of its schedule, honest about what it drew."""

import gc
import random
import re

import pytest
import torch
from conftest import make_model, random_prompts

from rl.draws import draw_tokens, uniforms
from rl.logprobs import token_logprobs
from rl.records import Request
from rl.sampler import Sampler

STOPS = [0, 1, 2, 3, 4, 5]


def requests(temperature: float = 0.9, samples: int = 6, new: int = 24) -> list[Request]:
    prompts = random_prompts((5, 11, 3, 9, 1))
    return [Request(prompt, samples, new + n, temperature, ("test", n)) for n, prompt in enumerate(prompts)]


def generate(model, asked, slots: int, **options):
    return Sampler(model, stop_ids=STOPS, max_slots=slots, max_len=64).generate(asked, **options)


def ids_of(results) -> list[list[list[int]]]:
    return [[completion.ids for completion in group] for group in results]


def test_cached_decoding_equals_the_full_forward(family):
    """Bug guarded: wrong positions, stale cache entries, a mask that shows too much or too little."""
    model = make_model(family, seed=1)
    for request, group in zip(asked := requests(0.0, samples=1), generate(model, asked, 3), strict=True):
        ids = list(request.prompt_ids)
        for token in group[0].ids:
            with torch.no_grad():
                assert int(model.logits(model(torch.tensor([ids]))[:, -1]).argmax()) == token
            ids.append(token)
        assert len(set(group[0].ids)) > 3 or group[0].finish_reason == "stop", "degenerate text proves nothing"


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_logprobs_equal_the_trainers(family, temperature):
    """Bug guarded: sampling at T and scoring at 1; a cache that differs from the forward by more than rounding."""
    model = make_model(family)
    seen = set()
    for slots in (1, 4, 30):
        asked = requests(temperature)
        for request, group in zip(asked, generate(model, asked, slots), strict=True):
            for completion in group:
                ids = torch.tensor([request.prompt_ids + completion.ids])
                mask = torch.arange(ids.shape[1])[None] >= len(request.prompt_ids)
                logp, _ = token_logprobs(model, ids, mask, temperature=temperature)
                given = torch.tensor(completion.logprobs, dtype=torch.float64)
                torch.testing.assert_close(logp[0, len(request.prompt_ids) :], given, atol=1e-9, rtol=0)
                seen.add(completion.finish_reason)
    assert seen == {"stop", "length"}


def test_independent_of_slots_order_and_company(family):
    """Bug guarded: a shared generator, a moved row that takes another's uniforms, a prompt swapped when slots are compacted."""
    model = make_model(family)
    asked = requests()
    alone = [ids_of(generate(model, [request], 2))[0] for request in asked]
    for slots in (1, 2, 3, 7, 16, 64):
        assert ids_of(generate(model, asked, slots)) == alone
    order = [3, 0, 4, 2, 1]
    assert ids_of(generate(model, [asked[i] for i in order], 5)) == [alone[i] for i in order]
    assert len({tuple(ids) for group in alone for ids in group}) > 25, "samples of a group must differ"


def test_many_random_schedules():
    """Bug guarded: bookkeeping of rows and prompts when completions end in any order, at once, or with their first token."""
    model = make_model("qwen3")
    rng = random.Random(0)
    for _ in range(12):
        prompts = random_prompts([rng.randint(1, 9) for _ in range(rng.randint(1, 7))], seed=rng.randint(0, 99))
        asked = [
            Request(p, rng.randint(1, 5), rng.randint(1, 12), rng.choice([0.0, 0.8, 1.5]), n, rng.choice([1.0, 0.7]))
            for n, p in enumerate(prompts)
        ]
        wanted = [ids_of(generate(model, [request], 99))[0] for request in asked]
        slots, sync_every = rng.randint(1, 9), rng.randint(1, 6)
        sampler = Sampler(model, stop_ids=STOPS, max_slots=slots, max_len=64, sync_every=sync_every)
        assert ids_of(sampler.generate(asked)) == wanted


def test_stop_token_is_kept_and_every_stop_id_stops(family):
    """Bug guarded: a dropped stop token is never trained; a base model stops at one id, its template at another."""
    completions = [c for group in generate(make_model(family), requests(1.2), 8) for c in group]
    stopped = [c for c in completions if c.finish_reason == "stop"]
    assert {c.ids[-1] for c in stopped} >= {STOPS[0], STOPS[-1]} or len({c.ids[-1] for c in stopped}) >= 3
    for completion in completions:
        assert len(completion.ids) == len(completion.logprobs)
        assert not set(completion.ids[:-1]) & set(STOPS)
        assert (completion.ids[-1] in STOPS) == (completion.finish_reason == "stop")
        assert completion.text_ids == (completion.ids[:-1] if completion.finish_reason == "stop" else completion.ids)


def test_draws_follow_the_distribution():
    """Bug guarded: an inverse CDF that is off by one, or ignores the temperature."""
    logits = torch.tensor([2.0, 0.5, -1.0, 0.0, -torch.inf], dtype=torch.float64)
    count = 200_000
    uniform = uniforms("draws", 0, count)
    ones = torch.ones(count, dtype=torch.float64)
    for temperature in (0.5, 1.0, 2.0):
        token, logp = draw_tokens(logits.expand(count, -1), uniform, ones * temperature, ones)
        wanted = (logits / temperature).softmax(-1)
        observed = torch.bincount(token, minlength=5) / count
        torch.testing.assert_close(observed.double(), wanted, atol=5e-3, rtol=0)
        assert observed[4] == 0, "a token of probability 0 was drawn"
        torch.testing.assert_close(logp.exp(), wanted[token])


@pytest.mark.parametrize("vocab", [1, 97, 512, 1000, 151_936])
def test_two_level_search_equals_one_running_sum(vocab):
    """Bug guarded: a block missed or counted twice, for vocabularies that blocks do and do not divide."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(64, vocab, generator=generator, dtype=torch.float64)
    logits[torch.rand(64, vocab, generator=generator) < 0.3] = -torch.inf
    logits[:, vocab // 2] = 0.0
    uniform = torch.linspace(0, 1 - 2**-53, 64, dtype=torch.float64)
    token, logp = draw_tokens(logits, uniform, torch.ones(64))
    cdf = logits.softmax(-1).cumsum(-1)
    wanted = torch.searchsorted(cdf, uniform[:, None] * cdf[:, -1:], right=True)[:, 0]
    assert torch.equal(token[:-1], wanted[:-1])
    torch.testing.assert_close(logp, logits.log_softmax(-1).gather(1, token[:, None])[:, 0], atol=1e-9, rtol=0)
    assert logp.isfinite().all(), "a token of probability 0 was drawn"


def test_extreme_uniforms_draw_possible_tokens():
    """Bug guarded: u = 0 drawing a leading token of probability 0, u near 1 running off the end."""
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]], dtype=torch.float64).expand(2, -1)
    token, _ = draw_tokens(logits, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64), torch.ones(2), torch.ones(2))
    assert token.tolist() == [1, 2]


def test_top_p_keeps_the_nucleus():
    """Bug guarded: a nucleus that loses the token crossing the border, or renormalises wrongly."""
    probs = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64)
    count = 50_000
    ones = torch.ones(count, dtype=torch.float64)
    token, logp = draw_tokens(probs.log().expand(count, -1), uniforms("top-p", 0, count), ones, ones * 0.65)
    observed = torch.bincount(token, minlength=4) / count
    torch.testing.assert_close(observed.double(), torch.tensor([0, 4 / 7, 0, 3 / 7]).double(), atol=1e-2, rtol=0)
    torch.testing.assert_close(logp, probs.log()[token], msg="log-probs are of the whole distribution")


def test_on_finish_streams_in_order_and_its_errors_end_the_call():
    """Bug guarded: callbacks at the end only; an exception that is swallowed, or names no sample."""
    model, heard = make_model("qwen2"), []
    results = generate(model, requests(), 4, on_finish=lambda r, i, c: heard.append((r, i, c)))
    assert len(heard) == 30
    assert all(results[r][i] is completion for r, i, completion in heard)

    def fail(request, sample, completion):
        raise RuntimeError("judge broke")

    sampler = Sampler(model, stop_ids=STOPS, max_slots=4, max_len=64)
    with pytest.raises(RuntimeError, match="judge broke") as caught:
        sampler.generate(requests(), on_finish=fail)
    assert re.fullmatch(r"in on_finish of sample \d of request \d \(seed key \('test', \d\)\)", caught.value.__notes__[0])
    assert ids_of(sampler.generate(requests())) == ids_of(results), "the sampler must be usable afterwards"


def test_stateless_uniforms():
    """Bug guarded: draws that depend on what was drawn before, or on nothing."""
    assert torch.equal(uniforms((1, "a"), 0, 9), uniforms((1, "a"), 0, 9))
    assert torch.equal(uniforms((1, "a"), 0, 9), uniforms((1, "a"), 0, 20)[:9])
    draws = [uniforms(key, sample, 1).item() for key in ((1, "a"), (1, "b"), (2, "a"), "1a") for sample in range(3)]
    assert len(set(draws)) == len(draws)


def test_each_sample_may_have_its_own_limit(family):
    """Bug guarded: limits that end up with another sample, or that change what is drawn."""
    model, limits = make_model(family), [3, 17, 1, 30]
    single, own = (generate(model, [Request([5, 6], 4, new, 0.9, "limits")], 3)[0] for new in (30, limits))
    assert [c.ids for c in own] == [c.ids[:limit] for c, limit in zip(single, limits, strict=True)]


def test_no_cache_is_left_for_the_update():
    """Bug guarded: keys and values that stay allocated between rollouts, held by the sampler or by a cycle."""
    sampler = Sampler(make_model("qwen2"), stop_ids=STOPS, max_slots=8, max_len=64)

    def tensors() -> int:
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = tensors()
        results = sampler.generate(requests())
        assert tensors() == before
    finally:
        gc.enable()
    assert len(results) == 5


def test_callbacks_may_keep_tensors():
    """Bug guarded: tensors made in a callback that autograd refuses afterwards."""
    kept = []
    generate(make_model("qwen2"), requests(), 4, on_finish=lambda r, i, c: kept.append(torch.ones(2)))
    assert not any(tensor.is_inference() for tensor in kept)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(prompt_ids=[]), "empty"),
        (dict(max_new_tokens=70), "max_len"),
        (dict(num_samples=0), "num_samples"),
        (dict(num_samples=2, max_new_tokens=[3]), "1 values of max_new_tokens"),
        (dict(max_new_tokens=[0]), "max_new_tokens"),
        (dict(temperature=-1.0), "temperature"),
        (dict(top_p=0.0), "top_p"),
    ],
)
def test_impossible_requests_are_refused(change, message):
    """Bug guarded: a prompt cut silently, a cache written past its end."""
    values = dict(prompt_ids=[5, 6], num_samples=1, max_new_tokens=4, temperature=1.0, seed_key=0)
    with pytest.raises(ValueError, match=message):
        generate(make_model("qwen2"), [Request(**{**values, **change})], 2)


def test_impossible_samplers_are_refused():
    model = make_model("qwen2")
    for options in (dict(max_slots=0, max_len=8, stop_ids=[1]), dict(max_slots=1, max_len=8, stop_ids=[])):
        with pytest.raises(ValueError):
            Sampler(model, **options)
