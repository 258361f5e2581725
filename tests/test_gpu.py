"""What only a GPU can show: the kernels that the CPU tests replace by their definition. Skipped without one."""

import faulthandler
import os

import pytest
import torch
import torch.distributed as dist
from conftest import lines_of, make_config, make_model, random_prompts, write_task_folder
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

import rl.sampler
import rl.session
import train
from model import load_model, save_model
from model.attention import PackedAttention
from model.kv_cache import KVCache
from model.transformer import RMSNorm, head_logits
from rl.config import parse_config
from rl.distributed import make_mesh
from rl.draws import draw_tokens
from rl.logprobs import token_logprobs
from rl.records import Request
from rl.run.checkpoint import _tensors
from rl.sampler import Generation, Sampler
from rl.session import open_session
from rl.weights.exact_bf16 import LOW_BITS, ExactBF16AdamW, join_master, split_master
from rl.weights.policy import WholeWeights, make_sampler_model
from rl.weights.sharding import load_sharded, rows_held

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]
CUDA = torch.device("cuda")
MODES = ["shard", "exact-bf16", "offload"]
LONGEST = 120.0  # seconds of a test


@pytest.fixture(autouse=True)
def time_limit(request):
    """End the process when a test hangs, and say where: nothing else interrupts one that waits for a kernel."""
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        screen = os.dup(2)
    faulthandler.dump_traceback_later(LONGEST, exit=True, file=screen)
    yield
    faulthandler.cancel_dump_traceback_later()
    os.close(screen)


@pytest.mark.parametrize(("heads", "kv_heads"), [(28, 4), (32, 8), (14, 2)])
def test_flash_attention_of_shared_prefixes(heads, kv_heads):
    """Bug guarded: wrong head mapping, a window that looks ahead, a suffix whose queries are lined up with the beginning of its
    keys instead of their end; forward and backward."""
    generator = torch.Generator(CUDA).manual_seed(0)
    groups = [(300, [17, 1, 128]), (1, [1]), (0, [5, 9]), (64, [200])]
    tokens = sum(prefix + sum(suffixes) for prefix, suffixes in groups)
    shapes = [(1, tokens, h, 64) for h in (heads, kv_heads, kv_heads)]
    qkv = [torch.randn(s, device=CUDA, dtype=torch.bfloat16, generator=generator, requires_grad=True) for s in shapes]
    attention = PackedAttention(groups, CUDA)
    out, wanted = attention.attend(0, *qkv), attention.attend(0, *(x.float() for x in qkv))
    torch.testing.assert_close(out.float(), wanted, atol=2e-2, rtol=2e-2)
    weight = torch.randn_like(wanted)
    ours, theirs = (torch.autograd.grad((x.float() * weight).sum(), qkv) for x in (out, wanted))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.float(), b.float(), atol=6e-2, rtol=6e-2)


def test_logits_of_bfloat16_operands_are_float32():
    """Bug guarded: logits that went through bfloat16 on their way."""
    hidden, weight = (torch.randn(n, 256, device=CUDA).bfloat16() for n in (64, 1000))
    got = head_logits(hidden, weight)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), hidden.double() @ weight.double().T, atol=1e-4, rtol=1e-4)


def test_the_fused_norm_is_the_formula():
    """Bug guarded: a kernel that normalises in half precision, or rounds elsewhere than between the norm and the weight."""
    generator = torch.Generator(CUDA).manual_seed(0)
    norm = RMSNorm(3584, 1e-6).to(CUDA)
    x = torch.randn(64, 3584, device=CUDA, generator=generator).bfloat16()
    wide = x.double() * torch.rsqrt(x.double().square().mean(-1, keepdim=True) + 1e-6)
    with torch.no_grad():
        norm.weight.uniform_(0.3, 2.0, generator=generator)
        got, wanted = norm(x), wide.bfloat16() * norm.weight.bfloat16()
    assert (got != wanted).double().mean() < 1e-3  # float32 sums turn a rounding here and there
    torch.testing.assert_close(got, wanted, atol=0, rtol=2**-6)


def test_sampler_and_trainer_agree(family):
    """Bug guarded: a cache that differs from the forward by more than bfloat16 explains."""
    policy = make_model(family, torch.float32).to(CUDA)
    policy.compute_dtype = torch.bfloat16
    sampler = Sampler(make_sampler_model(policy), stop_ids=[0], max_slots=16, max_len=64)
    prompts = random_prompts((5, 11, 3))
    differences = []
    for prompt, group in zip(
        prompts, sampler.generate([Request(p, 6, 24, 1.0, n) for n, p in enumerate(prompts)]), strict=True
    ):
        for completion in group:
            ids = torch.tensor([prompt + completion.ids], device=CUDA)
            mask = torch.arange(ids.shape[1], device=CUDA)[None] >= len(prompt)
            logp, _ = token_logprobs(policy, ids, mask, temperature=1.0)
            differences.append((logp[0, len(prompt) :].cpu() - torch.tensor(completion.logprobs)).abs())
    assert torch.cat(differences).mean() < 2e-2  # on a CPU in bfloat16 it is 4e-3 to 6e-3


def test_float32_tokens_do_not_depend_on_the_device(family):
    """Bug guarded: uniforms drawn on the device, or float32 products in TF32."""
    prompts = random_prompts((5, 11, 3))
    asked = [Request(prompt, 4, 16, 1.0, n) for n, prompt in enumerate(prompts)]
    samplers = (Sampler(m, stop_ids=[0], max_slots=5, max_len=64) for m in (make_model(family), make_model(family).to(CUDA)))
    here, there = ([[c.ids for c in group] for group in sampler.generate(asked)] for sampler in samplers)
    assert here == there


@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "rows", "longest"),
    [(28, 4, 64, 5, 300), (32, 8, 64, 5, 300), (14, 2, 64, 5, 300), (28, 4, 128, 5, 2560), (28, 4, 128, 200, 2560)],
)
def test_flash_decode_over_slots(heads, kv_heads, size, rows, longest):
    """Bug guarded: lengths that the kernel ignores, a slot read from its neighbour's beginning, a wrong head mapping."""
    config = make_config("qwen2", num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=size, num_hidden_layers=2)
    generator = torch.Generator(CUDA).manual_seed(0)
    half, wide = (
        KVCache(config, slots=rows + 1, max_len=longest, dtype=d, device=CUDA) for d in (torch.bfloat16, torch.float32)
    )
    half.kv.normal_(generator=generator)
    wide.kv.copy_(half.kv)
    others = torch.randint(longest, (rows - 5,), device=CUDA, generator=generator)
    position = torch.cat((torch.tensor([longest - 1, 0, 17, 128, 255], device=CUDA), others))
    live = torch.ones(rows, dtype=torch.bool, device=CUDA)
    shapes = [(rows, 1, h, size) for h in (heads, kv_heads, kv_heads)]
    qkv = [torch.randn(s, device=CUDA, generator=generator).bfloat16() for s in shapes]
    for cache in (half, wide):
        cache.begin_step(position, live)
    out, wanted = half.attend(1, *qkv), wide.attend(1, *(x.float() for x in qkv))
    torch.testing.assert_close(out.float(), wanted, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("slots", [3, 40])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_graphs_draw_what_the_eager_step_draws(family, slots, dtype, monkeypatch):
    """Bug guarded: a graph that reads a buffer that moved, advances live rows while warming up, or bakes in a first value."""
    monkeypatch.setattr(rl.sampler, "SHORTEST_GRAPHED", 1)
    model = make_model(family, dtype).to(CUDA)
    asked = [Request(p, 9, 24, [0.9, 0.0][n % 2], n) for n, p in enumerate(random_prompts((5, 11, 3, 9, 1)))]
    sampler = Sampler(model, stop_ids=[0, 1, 2], max_slots=slots, max_len=64, sync_every=5)
    for scale in (1.0, 0.9):  # weights updated in place between two rollouts
        with torch.no_grad():
            model.model.layers[0].self_attn.v_proj.weight.mul_(scale)
        graphed = sampler.generate(asked)
        with monkeypatch.context() as patch:
            patch.setattr(Generation, "_capture", lambda self: {})
            eager = sampler.generate(asked)
        assert [[c.ids for c in group] for group in graphed] == [[c.ids for c in group] for group in eager]


def test_rollout_memory_is_given_back(family):
    """Bug guarded: graphs or a cache that stay allocated through the update."""
    model = make_model(family, torch.bfloat16).to(CUDA)
    sampler = Sampler(model, stop_ids=[0], max_slots="auto", max_len=2064)
    asked = [Request([5] * 20, 64, 2000, 1.0, 0)]
    sampler.generate(asked)  # libraries make workspaces that stay
    before = torch.cuda.memory_allocated()
    sampler.generate(asked)
    assert torch.cuda.memory_allocated() - before < 2**20


def test_masters_kept_in_bfloat16_are_those_of_fused_adamw():
    """Bug guarded: a step on the GPU that differs from the float32 optimizer's, or a NaN that becomes a number."""
    generator = torch.Generator(CUDA).manual_seed(0)
    theirs = torch.nn.Parameter(torch.randn(300, 70, device=CUDA, generator=generator) * 0.02)
    ours = torch.nn.Parameter(theirs.detach().clone())
    optimizer = ExactBF16AdamW([ours], lr=1e-4, weight_decay=0.1)
    wanted = torch.optim.AdamW([theirs], lr=1e-4, weight_decay=0.1, fused=True)
    for _ in range(10):
        ours.grad = torch.randn(300, 70, device=CUDA, generator=generator)
        theirs.grad = ours.grad.clone()
        optimizer.step()
        wanted.step()
    master = join_master(ours.detach(), optimizer.state[ours][LOW_BITS])
    assert torch.equal(master.view(torch.int32), theirs.detach().view(torch.int32))
    nan = torch.zeros(1, device=CUDA) / torch.zeros(1, device=CUDA)
    assert split_master(nan)[0].isnan().all()


def flags(tmp_path, memory: str, *more: str) -> list[str]:
    """The flags of two steps; answers are words, which are scored without math-verify."""
    folder, data = write_task_folder(tmp_path / "model"), tmp_path / "data.jsonl"
    data.write_text("".join(f'{{"question": "{n}/{d}", "answer": "four"}}\n' for n, d in ((12, 3), (8, 2), (20, 5), (96, 4))))
    return [
        "--model", str(folder), "--data", str(data), "--steps", "2", "--questions-per-step", "4", "--group-size", "4",
        "--max-new-tokens", "12", "--wandb", "off", "--runs-dir", str(tmp_path / "runs"), "--run", "r", "--device", CUDA.type,
        "--judge", "rules", "--memory", memory, *more,
    ]  # fmt: skip


@pytest.mark.parametrize("memory", MODES)
@pytest.mark.parametrize("more", [[], ["--activation-checkpointing"], ["--minibatches", "2", "--old-logprobs", "sampler"]])
def test_two_steps_of_training(tmp_path, reward_for_length, no_report, memory, more):
    """Bug guarded: a step that only a GPU takes and that no test has taken: every memory mode has to train."""
    assert train.main(flags(tmp_path, memory, *more)) == 0
    rows = lines_of(tmp_path / "runs" / "r" / "metrics.jsonl")
    assert rows[-1]["optimizer_steps"] == (4 if "--minibatches" in more else 2)
    assert all(row["loss"] is not None and row["grad_norm"] > 0 for row in rows)


@pytest.mark.parametrize("memory", MODES)
def test_a_checkpoint_restores_what_the_gpu_held(tmp_path, reward_for_length, no_report, monkeypatch, memory):
    """Bug guarded: masters rounded, moments or low bits lost or left on another device on the way to disk and back."""
    saved, save = {}, rl.session.save_checkpoint

    def watched(run, step, state, *more):
        saved.update({name: rows_held(tensor)[0].cpu().clone() for name, tensor in _tensors(state).items()})
        return save(run, step, state, *more)

    monkeypatch.setattr(rl.session, "save_checkpoint", watched)
    arguments = flags(tmp_path, memory, "--lr", "1e-3", "--warmup-steps", "0")
    assert train.main(arguments) == 0
    more = ["--steps", "3", "--resume", "auto", "--resume-with-changes"]
    session = open_session(parse_config(arguments + more))
    assert session.first_step == session.state.optimizer_steps == 2
    for name, tensor in _tensors(session.state).items():
        assert torch.equal(rows_held(tensor)[0].cpu(), saved[name]), name
    session.run.close()
    assert train.main(arguments + more) == 0
    assert lines_of(tmp_path / "runs" / "r" / "metrics.jsonl")[-1]["optimizer_steps"] == 3


def test_bfloat16_logits_are_as_good_as_those_of_transformers(tmp_path, family):
    """Bug guarded: a rounding that the models' own code does not have: text and log-probs of another model."""
    save_model(make_model(family, torch.float32), None, tmp_path)
    ids = torch.tensor(random_prompts([40] * 4), device=CUDA)
    with torch.no_grad():
        exact, ours = (
            m.logits(m(ids)) for m in (load_model(tmp_path, dtype=d, device=CUDA) for d in (torch.float64, torch.bfloat16))
        )
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).to(CUDA).eval()(ids).logits
    errors = [((logits.double() - exact).norm() / exact.norm()).item() for logits in (ours, theirs)]
    assert errors[0] < 1.2 * errors[1]


def test_draws_at_a_real_vocabulary_are_the_cpus():
    """Bug guarded: a running sum over 152,064 tokens that loses what tells neighbours apart."""
    generator, rows = torch.Generator().manual_seed(0), 64
    logits = 3 * torch.randn(rows, 152_064, generator=generator)
    uniform, one = torch.rand(rows, generator=generator, dtype=torch.float64), torch.ones(rows, dtype=torch.float64)
    drawn = [draw_tokens(logits.to(d), uniform.to(d), one.to(d)) for d in ("cpu", CUDA)]
    assert torch.equal(drawn[0][0], drawn[1][0].cpu())
    torch.testing.assert_close(drawn[0][1], drawn[1][1].cpu(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("offload", [False, True])
def test_sharded_and_offloaded_gradients_are_those_of_a_plain_model(tmp_path, offload):
    """Bug guarded: bfloat16 where float32 is meant, or weights in host memory that the GPU computes with before they arrive."""
    write_task_folder(tmp_path)
    plain = load_model(tmp_path, device=CUDA)
    plain.compute_dtype = torch.bfloat16
    more = dict(dtype=torch.float32, compute=torch.bfloat16, offload=offload)
    cut = load_sharded(tmp_path, make_mesh(CUDA), torch.device("cuda", 0), **more)
    try:
        ids = torch.tensor(random_prompts([40, 23, 40], vocab=plain.config.vocab_size)[0::2], device=CUDA)
        gradients = []
        for model in (plain, cut):
            (-token_logprobs(model, ids, temperature=1.0)[0].mean()).backward()
            gradients.append([p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad for p in model.parameters()])
        for ours, theirs in zip(gradients[1], gradients[0], strict=True):
            torch.testing.assert_close(ours.to(CUDA), theirs, atol=2e-3, rtol=2e-2)
        with WholeWeights(cut) as whole:
            for source, target in zip(plain.parameters(), whole.parameters(), strict=True):
                assert torch.equal(source.bfloat16(), target)
    finally:
        dist.destroy_process_group()
