"""Adapters of the model: what they compute, their gradients, and files that peft reads and writes."""

import json

import pytest
import torch
import torch.nn.functional as F
from conftest import make_model, random_prompts
from torch.utils.flop_counter import FlopCounterMode

from model import load_model, save_model
from model.checkpoint import save_adapter
from model.folder import base_folder, fingerprint
from model.lora import TARGETS, AdaptedLinear, adapter_parameters, add_adapters, merged_weights, shared_copy
from model.transformer import Linear
from rl.logprobs import ChunkedLogProbs, token_logprobs
from rl.records import Request
from rl.sampler import Sampler

IDS = torch.tensor(random_prompts([17, 17, 17]))
WORDS = "not supported: "


def adapted_model(family="qwen3", dtype=torch.float64, seed=0, **lora):
    """An adapted model whose B is not zero, so that an adapter that is left out is seen."""
    model = make_model(family, dtype)
    add_adapters(model, **{"rank": 4, "alpha": 6, "seed": seed, **lora})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapter_parameters(model).items():
            if ".lora_B." in name:
                parameter.normal_(0, 0.3, generator=generator)
    return model


@torch.no_grad()
def logits(model):
    return model.logits(model(IDS))


def test_an_adapter_begins_as_nothing_and_is_drawn_from_the_seed(family):
    """Bug guarded: a start that is not the base; ranks, or a resumed run, that draw other adapters."""
    base, models = make_model(family), [make_model(family) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        add_adapters(model, 4, 6, seed=seed)
        assert torch.equal(logits(model), logits(base))
    first, same, other = (adapter_parameters(model) for model in models)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if ".lora_A." in name)
    assert len(first) == 2 * len(TARGETS) * base.config.num_hidden_layers


def test_values_and_gradients_equal_the_dense_product():
    """Bug guarded: a scale that is forgotten or applied twice, A and B exchanged, a bias that is lost."""
    generator = torch.Generator().manual_seed(0)
    layer = Linear(7, 5).double()
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    adapted = AdaptedLinear(layer, 3, 2.1)
    torch.nn.init.normal_(adapted.lora_A.weight, generator=generator)
    torch.nn.init.normal_(adapted.lora_B.weight, generator=generator)
    x, out = torch.randn(2, 4, 7, dtype=torch.float64), torch.randn(2, 4, 5, dtype=torch.float64)
    x.requires_grad_()
    A, B = (adapter.weight.detach().clone().requires_grad_() for adapter in (adapted.lora_A, adapted.lora_B))
    ours = torch.autograd.grad((adapted(x) * out).sum(), (x, adapted.lora_A.weight, adapted.lora_B.weight))
    dense = F.linear(x, weight + 0.7 * B @ A, bias)
    torch.testing.assert_close(adapted(x), dense, atol=1e-12, rtol=0)
    theirs = torch.autograd.grad((dense * out).sum(), (x, A, B))
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
    assert not adapted.weight.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_adapters_it_is_the_base(family, dtype):
    """Bug guarded: a reference that moves with the policy, or that takes memory of its own."""
    untouched, model = make_model(family, dtype), adapted_model(family, dtype)
    base, start = (shared_copy(model, with_adapters=is_on) for is_on in (False, True))
    assert not torch.equal(logits(model), logits(untouched))
    of_base, of_untouched = (token_logprobs(m, IDS, temperature=0.7)[0] for m in (base, untouched))
    assert torch.equal(of_base, of_untouched)
    assert torch.equal(logits(start), logits(model))
    adapters = {id(p) for p in adapter_parameters(model).values()}
    for view in (base, start):
        own = {id(p) for p in view.parameters()} - {id(p) for p in adapter_parameters(view).values()}
        assert own == {id(p) for p in model.parameters()} - adapters
        assert not any(p.requires_grad for p in view.parameters())
    assert not adapters & {id(p) for p in start.parameters()}
    assert all(p.dtype == torch.float32 for p in adapter_parameters(model).values())  # masters


def test_merged_equals_adapted(family, tmp_path):
    """Bug guarded: a merged folder that says something else, or that transformers finds strange tensors in."""
    model = adapted_model(family, targets=("q_proj", "down_proj"))
    save_model(model, None, tmp_path)
    merged = load_model(tmp_path, dtype=torch.float64)
    torch.testing.assert_close(logits(merged), logits(model), atol=1e-9, rtol=0)
    untouched = make_model(family)
    assert all(torch.equal(p, q) for p, (_, q) in zip(untouched.parameters(), merged_weights(untouched), strict=True))


def test_the_sampler_says_what_the_trainer_computes(family):
    """Bug guarded: a decode step without the adapters."""
    model = adapted_model(family)
    requests = [Request(prompt, 3, 9, 0.8, (1, n)) for n, prompt in enumerate(random_prompts([5, 8]))]
    sampler = Sampler(model, stop_ids={0}, max_slots=4, max_len=32)
    for request, completions in zip(requests, sampler.generate(requests), strict=True):
        for completion in completions:
            ids = torch.tensor([[*request.prompt_ids, *completion.ids]])
            logp = token_logprobs(model, ids, temperature=0.8)[0][0, len(request.prompt_ids) :]
            torch.testing.assert_close(logp.tolist(), list(completion.logprobs), atol=1e-9, rtol=0)


def test_frozen_weights_get_no_gradient():
    """Bug guarded: the head's gradient, a third of its backward, computed for nothing."""
    model = adapted_model()
    token_logprobs(model, IDS, temperature=0.7)[0].sum().backward()
    trained = adapter_parameters(model)
    assert all((p.grad is not None) == (name in trained) for name, p in model.named_parameters())
    flops = []
    for is_trained in (False, True):
        hidden, head = torch.randn(6, 4, requires_grad=True), torch.randn(9, 4, requires_grad=is_trained)
        with FlopCounterMode(display=False) as counter:
            ChunkedLogProbs.apply(hidden, head, torch.arange(6), 0.7, 2)[0].sum().backward()
        flops.append(counter.get_total_flops())
    assert 4 * flops[0] == 3 * flops[1]


def test_activation_checkpointing_changes_no_gradient():
    """Bug guarded: layers without trained weights below them, whose adapters a recomputed backward would miss."""
    grads = []
    for is_on in (False, True):
        model = adapted_model()
        model.activation_checkpointing = is_on
        token_logprobs(model, IDS, temperature=0.7)[0].sum().backward()
        grads.append([p.grad for p in adapter_parameters(model).values()])
    torch.testing.assert_close(*grads, atol=1e-12, rtol=0)


@pytest.fixture
def saved(tmp_path):
    """A base's folder, an adapter's folder, and the adapted model."""
    base, model = make_model("qwen3", torch.float32), adapted_model("qwen3", torch.float32)
    save_model(base, None, tmp_path / "base")
    save_adapter(model, tmp_path / "adapter", source=tmp_path / "base")
    return tmp_path / "base", tmp_path / "adapter", model


def test_adapters_are_read_as_they_were_written(saved):
    """Bug guarded: a scale, a target or a bit that is lost on disk; an adapter taken for its base."""
    base, adapter, model = saved
    loaded = load_model(adapter)
    assert torch.equal(logits(loaded), logits(model))
    assert base_folder(adapter) == base
    assert base_folder(base) == base
    assert fingerprint(adapter) != fingerprint(base)
    half = load_model(adapter, dtype=torch.bfloat16)
    assert torch.equal(*(m.model.layers[0].mlp.up_proj.lora_B.weight for m in (half, model)))


@pytest.mark.parametrize("lora", [{}, {"targets": ("v_proj",)}, {"rank": 1, "alpha": 3}], ids=str)
def test_peft_loads_ours(lora, tmp_path):
    """Bug guarded: names, a scale or a configuration that peft understands otherwise."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    model = adapted_model("qwen2", torch.float32, **lora)
    save_model(make_model("qwen2", torch.float32), None, tmp_path / "base")
    save_adapter(model, tmp_path / "adapter", source=tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, logits(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"use_rslora": True, "lora_dropout": 0.1, "target_modules": "all-linear"}], ids=str)
def test_an_adapter_of_peft_is_a_start(options, saved):
    """Bug guarded: an adapter of somebody else that is read as another one."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    base, adapter, _ = saved
    config = peft.LoraConfig(
        **{"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "up_proj"], "init_lora_weights": False, **options}
    )
    torch.manual_seed(0)
    theirs = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config).eval()
    theirs.save_pretrained(adapter)
    with torch.no_grad():
        torch.testing.assert_close(logits(load_model(adapter)), theirs(IDS).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, WORDS + "use_dora"),
        ({"bias": "all"}, WORDS + "bias"),
        ({"modules_to_save": ["lm_head"]}, WORDS + "modules_to_save"),
        ({"rank_pattern": {"q_proj": 8}}, WORDS + "rank_pattern"),
        ({"layers_to_transform": [0]}, WORDS + "layers_to_transform"),
        ({"init_lora_weights": "pissa"}, WORDS + "init_lora_weights"),
        ({"peft_type": "IA3"}, "only LORA"),
        ({"target_modules": ["lm_head"]}, "named 'lm_head': choose from q_proj"),
        ({"target_modules": ".*q_proj"}, "a list of layers' names"),
        ({"target_modules": ["q_proj"]}, "unexpected tensor base_model"),
        ({"r": 2}, "weight has shape"),
        ({"r": 64}, "rank 64: choose from 1 to 48"),
        ({"r": "4"}, "must be an integer"),
        ({"base_model_name_or_path": "nowhere"}, "base of .* is missing; correct base_model_name_or_path"),
        ({"base_model_name_or_path": None}, "base of .* is missing"),
    ],
    ids=str,
)
def test_adapters_that_cannot_be_read(changes, message, saved):
    """Bug guarded: a part of an adapter that is dropped in silence, a traceback for an edited file."""
    config = json.loads((saved[1] / "adapter_config.json").read_text())
    (saved[1] / "adapter_config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=message) as error:
        load_model(saved[1])
    assert "\n" not in str(error.value)


def test_another_base_is_refused(saved):
    """Bug guarded: an adapter put on weights that it was not trained on."""
    save_model(make_model("qwen3", torch.float32, seed=5), None, saved[0])
    with pytest.raises(ValueError, match="trained on another model"):
        load_model(saved[1])


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"rank": 49}, "k_proj cannot have rank 49: choose from 1 to 48"),
        ({"targets": ("q_proj", "embed_tokens")}, "named 'embed_tokens': choose from"),
        ({"targets": ()}, "choose from"),
    ],
)
def test_adapters_that_cannot_be_made(lora, message):
    """Bug guarded: a mistyped target that trains nothing."""
    with pytest.raises(ValueError, match=message):
        adapted_model(**lora)
    with pytest.raises(ValueError, match="adapter already"):
        add_adapters(adapted_model(), 4, 6)
