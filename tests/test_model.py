"""The model against transformers, and its checkpoints against a strict reader."""

import json
import os

import pytest
import torch
import torch.nn.functional as F
from conftest import SCALING, SHAPE, make_config, make_model, scramble
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from model import ModelConfig, Transformer, load_model, save_model
from model.attention import PackedAttention
from model.checkpoint import all_finite, resolve_checkpoint
from model.transformer import RMSNorm, at_least_fp32


@torch.no_grad()
def quieten(head) -> None:
    """Bring logits to the size of 1, so that 1e-5 is what float32 can be held to."""
    head.weight.mul_(0.3)


def hf_checkpoint(path, family: str, tied: bool, **save_options):
    """A random transformers model, saved, with logits that depend on everything."""
    rope = {"rope_type": "llama3", "rope_theta": SHAPE["rope_theta"], **SCALING.__dict__}
    extra = {"qwen3": {"head_dim": 24}, "llama": {"rope_parameters": rope}}.get(family, {})
    config = AutoConfig.for_model(family, **SHAPE, tie_word_embeddings=tied, **extra)
    peer = AutoModelForCausalLM.from_config(config).eval()
    scramble(peer.named_parameters())
    quieten(peer.lm_head)
    peer.save_pretrained(path, **save_options)
    return peer


@pytest.mark.parametrize("tied", [False, True])
def test_logits_equal_transformers(tmp_path, family, tied):
    """Bug guarded: any slip in RoPE, GQA, norms, biases or tying; a greedy text of one token would hide them."""
    peer = hf_checkpoint(tmp_path, family, tied, max_shard_size="40KB")
    assert (tmp_path / "model.safetensors.index.json").exists(), "several shards were wanted"
    model = load_model(tmp_path)
    ids = torch.randint(0, 97, (3, 33), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted, got = peer(ids).logits, model.logits(model(ids))
        greedy = peer.generate(ids[:1, :4], max_new_tokens=40, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert len(set(greedy[0, 4:].tolist())) > 8, "degenerate text proves nothing"
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("tied", [False, True])
def test_saved_folder_loads_in_transformers(tmp_path, family, tied):
    """Bug guarded: missing or doubled tensors, a RoPE base that old readers do not find."""
    model = make_model(family, torch.float32, tie_word_embeddings=tied)
    quieten(model.lm_head)
    save_model(model, None, tmp_path, shard_bytes=50_000)
    peer, report = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto", output_loading_info=True)
    assert not any(report.values()), report
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(peer(ids).logits, model.logits(model(ids)), atol=1e-5, rtol=0)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 5e4
    again = load_model(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_packed_equals_separate(family):
    """Bug guarded: tokens that attend across the border of two packed sequences."""
    model = make_model(family)
    lengths = [5, 1, 12, 7]
    ids = torch.randint(0, 97, (1, sum(lengths)), generator=torch.Generator().manual_seed(0))
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    with torch.no_grad():
        packed = model(ids, positions, PackedAttention.of_sequences(lengths, ids.device))[0].split(lengths)
        separate = [model(part[None])[0] for part in ids[0].split(lengths)]
    for a, b in zip(packed, separate, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=0)


def test_float32_masters_compute_in_bfloat16(family):
    """Bug guarded: bf16 weights under the optimizer, or logits rounded to bf16."""
    model = make_model(family, torch.float32)
    model.compute_dtype = torch.bfloat16
    hidden = model(torch.arange(9)[None])
    logits = model.logits(hidden)
    assert hidden.dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    assert (logits.bfloat16().float() != logits).any(), "logits went through bfloat16"
    logits.sum().backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e6}}, "rope_parameters"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"model_type": "qwen3_moe"}, "model_type"),
        ({"num_experts": 8}, "num_experts"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_dropout": 0.1}, "attention_dropout"),
        ({"attention_bias": True, "model_type": "qwen3"}, "attention_bias"),
        ({"attention_bias": True, "model_type": "llama"}, "attention_bias"),
        ({"mlp_bias": True, "model_type": "llama"}, "mlp_bias"),
        ({"pretraining_tp": 2, "model_type": "llama"}, "pretraining_tp"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "model_type": "llama"}, "rope_scaling"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}, "model_type": "qwen2"}, "rope_scaling"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}, "model_type": "llama"}, "low_freq_factor"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
    ],
)
def test_unsupported_config_is_refused_by_name(change, named):
    """Bug guarded: a model that loads and computes something else than it was trained for."""
    good = {"model_type": "qwen2", **SHAPE}
    ModelConfig.from_hf(good)
    with pytest.raises(ValueError, match=named):
        ModelConfig.from_hf({**good, **change})


def test_rope_of_old_and_new_configs():
    """Bug guarded: transformers 5 configs have no top-level rope_theta; reading a default instead is silent."""
    base = {k: v for k, v in SHAPE.items() if k != "rope_theta"} | {"model_type": "qwen2"}
    new = {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}
    assert ModelConfig.from_hf({**base, "rope_theta": 1e6}).rope_theta == 1e6
    assert ModelConfig.from_hf({**base, **new}).rope_theta == 1e6
    llama3 = {"rope_type": "llama3", **SCALING.__dict__}
    for field in ("rope_scaling", "rope_parameters"):
        assert ModelConfig.from_hf({**base, "model_type": "llama", field: llama3}).rope_scaling == SCALING


def edited_weights(tmp_path, edit):
    save_model(make_model("qwen2", torch.float32), None, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    edit(weights)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda w: w.pop("model.norm.weight"), "missing.*model.norm.weight"),
        (lambda w: w.update(extra=torch.zeros(1)), "unexpected tensor extra"),
        (lambda w: w.update({"model.norm.weight": torch.ones(3)}), "shape"),
        *[
            (lambda w, bad=bad, at=at: w["lm_head.weight"][at, 7].fill_(float(bad)), "lm_head.weight.*NaN")
            for bad, at in (("nan", 0), ("nan", -1), ("inf", 40), ("-inf", 41))
        ],
    ],
)
def test_bad_weights_are_named(tmp_path, edit, message):
    """Bug guarded: a tensor left at its random initialisation, or NaN that surfaces hours later."""
    edited_weights(tmp_path, edit)
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path)


def test_a_rank_may_hold_no_rows_of_a_tensor():
    """Bug guarded: the extremes of nothing, which torch refuses to give: a norm of 64 values over 65 ranks."""
    assert all_finite(torch.empty(0, 5))


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_the_umask_says_who_may_read_weights(tmp_path, umask, mode):
    """Bug guarded: weights that only the user who trained them can read, because safetensors makes files so."""
    before = os.umask(umask)
    try:
        save_model(make_model("qwen2", torch.float32), None, tmp_path)
    finally:
        os.umask(before)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == mode


def test_truncated_and_absent_weights(tmp_path):
    """Bug guarded: a cut-off download, a .bin checkpoint."""
    save_model(make_model("qwen2", torch.float32), None, tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a readable"):
        load_model(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match="only safetensors"):
        load_model(tmp_path)


def test_tied_head_that_differs_is_refused(tmp_path):
    """Bug guarded: a checkpoint whose head was untied by training, loaded with the embedding instead."""
    save_model(make_model("qwen3", torch.float32, tie_word_embeddings=True), None, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    same = weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}
    save_file(same, tmp_path / "model.safetensors", metadata={"format": "pt"})
    load_model(tmp_path)
    save_file({**same, "lm_head.weight": same["lm_head.weight"] + 1}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="twice with different values"):
        load_model(tmp_path)


def test_hub_ids_reach_the_hub_and_nothing_else_does(monkeypatch):
    """Bug guarded: downloading the optimizer's state too, ignoring the revision, or taking a mistyped path for a hub id."""
    calls = []

    def download(repo, revision, allow_patterns, ignore_patterns):
        calls.append((repo, revision, allow_patterns, ignore_patterns))
        raise OSError("no network")

    monkeypatch.setattr("model.folder.snapshot_download", download)
    with pytest.raises(ValueError, match="no network"):
        resolve_checkpoint("Qwen/Qwen2.5-7B@abc")
    assert calls[0][:2] == ("Qwen/Qwen2.5-7B", "abc")
    assert "*.safetensors" in calls[0][2]
    ours = ["model.safetensors", "state/shard-00001-model-00001-of-00001.safetensors"]
    assert list(filter_repo_objects(ours, allow_patterns=calls[0][2], ignore_patterns=calls[0][3])) == ours[:1]
    assert not any("bin" in pattern or pattern == "*" for pattern in calls[0][2])
    with pytest.raises(ValueError, match="no model at"):
        resolve_checkpoint("/no/such/folder/here")
    assert len(calls) == 1


def test_activation_checkpointing_changes_no_gradient(family):
    """Bug guarded: recomputation with other positions or another attention."""
    grads = []
    for on in (False, True):
        model = make_model(family)
        model.activation_checkpointing = on
        model(torch.arange(12)[None]).square().sum().backward()
        grads.append([p.grad for n, p in model.named_parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_head_dim_and_kv_heads_are_free():
    """Bug guarded: head_dim taken as hidden_size / heads."""
    model = Transformer(make_config("qwen3", head_dim=40, num_key_value_heads=1))
    assert model.model.layers[0].self_attn.q_proj.weight.shape == (160, 64)
    assert model.model.layers[0].self_attn.k_proj.weight.shape == (40, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_fused_norm_is_the_formula_to_the_last_bit(dtype, monkeypatch):
    """Bug guarded: six kernels where CUDA has one; a weight inside of it, which rounds once less than the models' own code."""
    fused, calls = F.rms_norm, []
    monkeypatch.setattr(F, "rms_norm", lambda *args: (calls.append(args[0].dtype), fused(*args))[1])
    generator = torch.Generator().manual_seed(0)
    norm, grads = RMSNorm(24, 1e-6), []  # float32 masters
    norm.weight.data.uniform_(0.3, 2.0, generator=generator)
    x, weight = (10 * torch.randn(5, 7, 24, generator=generator).to(dtype) for _ in range(2))

    def formula(x: torch.Tensor) -> torch.Tensor:
        wide = at_least_fp32(x)
        normalised = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.eps)
        return normalised.to(x.dtype) * norm.weight.to(x.dtype)

    for compute in (norm, formula):
        x = x.clone().requires_grad_()
        out = compute(x)
        grads.append((out, *torch.autograd.grad((out * weight).sum(), (x, norm.weight))))
    assert calls == [dtype]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
