"""log pi(y_t): chunked, packed, with gradients by hand; against the plain formula."""

import pytest
import torch
from conftest import make_model

from rl.logprobs import ChunkedLogProbs, token_logprobs


def reference_logprobs(model, ids, temperature):
    """The textbook formula over all logits; column 0 is 0."""
    logp = (model.logits(model(ids)) / temperature).log_softmax(-1)
    scored = logp[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
    entropy = -(logp.exp() * logp).sum(-1)[:, :-1]
    return torch.nn.functional.pad(scored, (1, 0)), torch.nn.functional.pad(entropy, (1, 0))


def random_ids(rows=3, columns=17):
    return torch.randint(0, 97, (rows, columns), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("chunk", [1, 5, 1000])
def test_equals_the_textbook_formula(family, chunk):
    """Bug guarded: a shift by two, a lost last chunk, temperature on one side only, an entropy in the wrong unit."""
    model, ids = make_model(family), random_ids()
    got, entropy = token_logprobs(model, ids, temperature=0.7, chunk=chunk)
    wanted, wanted_entropy = reference_logprobs(model, ids, 0.7)
    torch.testing.assert_close(got, wanted, atol=1e-9, rtol=0)
    torch.testing.assert_close(entropy, wanted_entropy, atol=1e-9, rtol=0)
    assert not entropy.requires_grad


def test_gradients_equal_the_textbook_formula(family):
    """Bug guarded: a backward that recomputes other logits than forward, loses the tied embedding's share, or drops chunks."""
    grads = []
    for formula in (
        lambda m, i: token_logprobs(m, i, temperature=0.7, chunk=4)[0],
        lambda m, i: reference_logprobs(m, i, 0.7)[0],
    ):
        model, ids = make_model(family, tie_word_embeddings=True), random_ids()
        weight = torch.randn(ids.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        (formula(model, ids) * weight).sum().backward()
        grads.append([p.grad for p in model.parameters()])
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


def test_gradcheck():
    """Bug guarded: any slip in the hand-written backward."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(13, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(17, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    target = torch.randint(0, 17, (13,), generator=generator)
    assert torch.autograd.gradcheck(lambda h, w: ChunkedLogProbs.apply(h, w, target, 0.7, 5)[0], (hidden, weight))


def test_padding_and_company_do_not_matter(family):
    """Bug guarded: padding that is attended to, or whose id decides the mask."""
    model, ids = make_model(family), random_ids(4, 20)
    lengths, begins = [20, 13, 7, 2], [5, 5, 6, 1]
    columns = torch.arange(20)
    mask = torch.stack([(columns >= b) & (columns < n) for b, n in zip(begins, lengths, strict=True)])
    whole, _ = token_logprobs(model, ids, mask, temperature=1.0)
    for pad in (0, 1, 96):
        padded = torch.where(columns < torch.tensor(lengths)[:, None], ids, pad)
        assert torch.equal(token_logprobs(model, padded, mask, temperature=1.0)[0], whole)
    for row, (begin, length) in enumerate(zip(begins, lengths, strict=True)):
        alone, _ = token_logprobs(model, ids[row : row + 1, :length], temperature=1.0)
        torch.testing.assert_close(whole[row, begin:length], alone[0, begin:], atol=1e-9, rtol=0)
        assert (whole[row, :begin] == 0).all()
        assert (whole[row, length:] == 0).all()


def test_rows_without_scored_tokens(family):
    """Bug guarded: an empty completion that crashes packing or turns into NaN."""
    model, ids = make_model(family), random_ids(3, 8)
    mask = torch.zeros(3, 8, dtype=torch.bool)
    mask[1, 3:6] = True
    logp, _ = token_logprobs(model, ids, mask, temperature=1.0)
    assert torch.isfinite(logp).all()
    assert (logp != 0).sum() == 3
    logp.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    nothing, _ = token_logprobs(model, ids, torch.zeros_like(mask), temperature=1.0)
    assert (nothing == 0).all()


def test_column_zero_is_never_scored(family):
    """Bug guarded: the first token scored by the last token of the row before it, when packed."""
    model, ids = make_model(family), random_ids(2, 6)
    logp, entropy = token_logprobs(model, ids, torch.ones(2, 6, dtype=torch.bool), temperature=1.0)
    assert (logp[:, 0] == 0).all()
    assert (entropy[:, 0] == 0).all()


def test_any_tokens_may_be_scored(family):
    """Bug guarded: scored tokens with gaps between them that are predicted by the state before the gap."""
    model, ids = make_model(family), random_ids(5, 18)
    mask = torch.rand(5, 18, generator=torch.Generator().manual_seed(3)) < 0.4
    logp, entropy = token_logprobs(model, ids, mask, temperature=0.9)
    mask[:, 0] = False
    for scored, expected in zip((logp, entropy), reference_logprobs(model, ids, 0.9), strict=True):
        torch.testing.assert_close(scored, expected.masked_fill(~mask, 0.0), atol=1e-9, rtol=0)


def test_shared_prompts_change_nothing(family):
    """Bug guarded: a completion that sees another group's prompt or its neighbour, a first token predicted by the wrong state,
    a prompt that is lost from the gradient or wrongly taken for the one before it (or, around the end, for the last)."""
    generator = torch.Generator().manual_seed(5)
    long, other = torch.randint(0, 97, (2, 9), generator=generator)
    rows = [(long, 4), (long, 1), (long, 7), (other, 2), (other, 6), (other[:5], 3), (long[:1], 5), (long, 4)]
    ids, mask = torch.zeros(len(rows), 16, dtype=torch.long), torch.zeros(len(rows), 16, dtype=torch.bool)
    for row, (prompt, length) in enumerate(rows):
        completion = torch.randint(0, 97, (length,), generator=generator)
        ids[row, : len(prompt) + length] = torch.cat((prompt, completion))
        mask[row, len(prompt) : len(prompt) + length] = True
    weight = torch.randn(ids.shape, dtype=torch.float64, generator=generator)
    results = []
    for formula in (reference_logprobs, token_logprobs):
        model = make_model(family, tie_word_embeddings=True)
        if formula is token_logprobs:
            logp, entropy = token_logprobs(model, ids, mask, temperature=0.7)
        else:
            logp, entropy = (x.masked_fill(~mask, 0.0) for x in reference_logprobs(model, ids, 0.7))
        (logp * weight).sum().backward()
        results.append([logp.detach(), entropy.detach(), *(p.grad for p in model.parameters())])
    for alone, shared in zip(*results, strict=True):
        torch.testing.assert_close(shared, alone, atol=1e-9, rtol=1e-9)


def test_a_shared_prompt_is_computed_once():
    """Bug guarded: a speed-up that is not there: eight prompts in the forward instead of one."""
    model, seen = make_model("qwen2"), []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].numel()))
    ids = torch.randint(0, 97, (1, 20), generator=torch.Generator().manual_seed(0)).expand(8, -1)
    token_logprobs(model, ids, (torch.arange(20) >= 15).expand(8, -1), temperature=1.0)
    assert seen == [15 + 8 * 5]


def test_greedy_policy_has_no_logprobs():
    with pytest.raises(ValueError, match="temperature above 0"):
        token_logprobs(make_model("qwen2"), random_ids(), temperature=0.0)


def test_bfloat16_logits_are_not_rounded():
    """Bug guarded: log-probs that err by 0.01 nat because logits went through bfloat16."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(50, 64, generator=generator).bfloat16()
    weight = (torch.randn(400, 64, generator=generator) * 0.3).bfloat16()
    target = torch.randint(0, 400, (50,), generator=generator)
    got, _ = ChunkedLogProbs.apply(hidden, weight, target, 1.0, 16)
    exact = (hidden.double() @ weight.double().T).log_softmax(-1).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(got.double(), exact, atol=2e-5, rtol=0)
