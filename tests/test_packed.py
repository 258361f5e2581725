"""Weights in oneDNN's layout: the same products, for as long as a call lasts."""

import pytest
import torch
from conftest import make_model, random_prompts
from model.packed import pack, packable, packed_weights
from torch import nn

from rl.logprobs import token_logprobs
from rl.records import Request
from rl.sampler import Sampler

needs_packing = pytest.mark.skipif(not packable(make_model("qwen2", torch.float32)), reason="this torch cannot pack weights")


def left_packed(model) -> list[tuple[nn.Module, str]]:
    """The methods of the model's modules that are replaced."""
    return [(m, name) for m in model.modules() for name in ("project", "forward", "logits") if name in vars(m)]


@needs_packing
@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_packed_products_equal_plain_ones(family, rows):
    """Bug guarded: a lost bias, joined layers in the wrong order, a product that was never computed."""
    model = make_model(family, torch.float32)
    ids = torch.randint(2, 97, (rows, 9))
    plain = model.logits(model(ids))
    with packed_weights(model):
        assert len(left_packed(model)) == 3 * 4 + 1, "a layer has four products"
        packed = model.logits(model(ids))
    torch.testing.assert_close(packed, plain, atol=2e-4, rtol=1e-4)
    assert pack(model.lm_head.weight).is_mkldnn, "nothing was packed"
    assert not left_packed(model)
    assert torch.equal(model.logits(model(ids)), plain)


@needs_packing
def test_sampler_follows_weights_and_leaves_nothing_packed(family):
    """Bug guarded: packed copies that outlive an update of the weights, or an error."""
    model = make_model(family, torch.float32)
    prompt = random_prompts([9])[0]
    engine = Sampler(model, stop_ids=[0], max_slots=7, max_len=64)
    for scale in (1.0, 0.5):
        with torch.no_grad():
            model.model.layers[0].self_attn.v_proj.weight.mul_(scale)
        for completion in engine.generate([Request(prompt, 3, 20, 0.9, "packed")])[0]:
            ids = torch.tensor([prompt + completion.ids])
            logp, _ = token_logprobs(model, ids, temperature=0.9)
            given = torch.tensor(completion.logprobs)
            torch.testing.assert_close(logp[0, len(prompt) :].detach(), given, atol=2e-3, rtol=0)

    def fail(*_):
        assert left_packed(model), "nothing was packed"
        raise RuntimeError("judge broke")

    with pytest.raises(RuntimeError, match="judge broke"):
        engine.generate([Request(prompt, 3, 20, 0.9, "packed")], on_finish=fail)
    assert not left_packed(model)


def test_only_float32_on_a_cpu_is_packed():
    """Bug guarded: a float64 model rounded to float32, a bfloat16 computation fed with float32 weights."""
    model = make_model("qwen2", torch.float32)
    model.compute_dtype = torch.bfloat16
    assert not packable(model)
    assert not packable(make_model("qwen2", torch.float64))
