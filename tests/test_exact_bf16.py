"""--memory exact-bf16: bfloat16 weights and 16 low bits are the float32 master, bit for bit, in training and on resuming."""

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import assert_same_run, flags, lines_of, make_model, random_prompts
from torch.distributed.tensor import DTensor

import rl.weights.exact_bf16
import train
from model import save_model
from rl.config import parse_config
from rl.distributed import make_mesh
from rl.logprobs import token_logprobs
from rl.optim import create_state
from rl.run import checkpoint
from rl.session import open_session
from rl.weights.exact_bf16 import LOW_BITS, ExactBF16AdamW, join_master, prepare_gradients, split_master
from rl.weights.policy import TrainState, make_sampler_model
from rl.weights.sharding import full, load_sharded

CPU = torch.device("cpu")

SETTINGS = dict(lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)


def master(optimizer: ExactBF16AdamW, parameter: torch.nn.Parameter) -> torch.Tensor:
    """The float32 master of a parameter, or of its shard here."""
    weight, low = (
        t.to_local() if isinstance(t, DTensor) else t.detach() for t in (parameter, optimizer.state[parameter][LOW_BITS])
    )
    return join_master(weight, low)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().view(torch.int32)


def every_kind_of_float() -> torch.Tensor:
    """All 65,536 low halves beneath high halves of both signs: zero, denormal, small, odd, even, the largest, infinity."""
    high = torch.tensor([0x0000, 0x0001, 0x0080, 0x3F80, 0x3F81, 0x4049, 0x7F7E, 0x7F7F], dtype=torch.int32)
    signed = torch.cat([high, high - 0x8000])  # with the sign bit
    low = torch.arange(65536, dtype=torch.int32)
    return ((signed[:, None] << 16) + low).flatten().view(torch.float32)


def test_a_master_survives_being_split():
    """Bug guarded: the half above a bfloat16 that 16 bits cannot count, a carry into the exponent, a sign."""
    masters = torch.cat([every_kind_of_float(), torch.tensor([torch.inf, -torch.inf])])
    weight, low_bits = split_master(masters)
    assert (weight.dtype, low_bits.dtype) == (torch.bfloat16, torch.int16)
    assert torch.equal(bits(join_master(weight, low_bits)), bits(masters))


def test_the_weight_is_the_nearest_bfloat16():
    """Bug guarded: truncation, which biases every weight towards zero. Halves alone may differ from torch's rounding."""
    masters = every_kind_of_float()
    weight, _ = split_master(masters)
    half = bits(masters) & 0xFFFF == 0x8000
    assert torch.equal(weight[~half], masters.bfloat16()[~half])
    finite = half & weight.isfinite() & masters.bfloat16().isfinite()
    ours, theirs = ((w[finite].double() - masters[finite].double()).abs() for w in (weight, masters.bfloat16()))
    assert torch.equal(ours, theirs)


def test_nan_stays_nan():
    """Bug guarded: the NaN that CUDA computes, all bits set, rounded up to minus zero: a broken run that looks healthy."""
    patterns = torch.tensor([0x7FFFFFFF, 0x7FC00000, 0x7F800001, -1, -0x400000], dtype=torch.int32)
    weight, _ = split_master(patterns.view(torch.float32))
    assert weight.isnan().all()


def gradient(step: int, shape) -> torch.Tensor:
    """Gradients between 1e-12 and 1e12 and beyond what its square can hold, zeros, and whole steps of nothing."""
    generator = torch.Generator().manual_seed(step)
    scale = 10.0 ** torch.randint(-12, 13, shape, generator=generator)
    drawn = torch.randn(shape, generator=generator) * scale
    drawn[torch.rand(shape, generator=generator) < 0.1] = 0.0
    if step == 25:
        drawn.view(-1)[5] = 1e25
    return drawn * (step % 7 > 0)


@pytest.mark.parametrize("slice_elements", [64, 2**23])
def test_masters_are_those_of_adamw(monkeypatch, slice_elements):
    """Bug guarded: anything but AdamW on float32 masters: bias correction, decay, epsilon, a master rebuilt from bfloat16."""
    monkeypatch.setattr(rl.weights.exact_bf16, "SLICE_ELEMENTS", slice_elements)
    generator = torch.Generator().manual_seed(0)
    shapes = [(40, 33), (7,), (1, 128)]
    theirs = [torch.nn.Parameter(torch.randn(shape, generator=generator) * 0.02) for shape in shapes]
    ours = copy.deepcopy(theirs)
    optimizer, wanted = ExactBF16AdamW(ours, **SETTINGS), torch.optim.AdamW(theirs, **SETTINGS, fused=True)
    for step in range(40):
        for a, b in zip(ours, theirs, strict=True):
            a.grad, b.grad = gradient(step, a.shape), gradient(step, a.shape)
        for chosen in (optimizer, wanted):
            chosen.param_groups[0]["lr"] = 1e-3 / (step + 1)
            chosen.step()
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(bits(master(optimizer, a)), bits(b))
        assert torch.equal(a, split_master(b.detach())[0])
        for name in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(optimizer.state[a][name], wanted.state[b][name]), name


def test_steps_far_below_a_bfloat16_add_up():
    """Bug guarded: bfloat16 AdamW at RL's learning rates, which leaves 98 % of the weights where they were."""
    weight = torch.nn.Parameter(torch.full((1000,), 0.5))
    optimizer = ExactBF16AdamW([weight], lr=1e-6)
    for _ in range(100):
        weight.grad = torch.ones(1000)
        optimizer.step()
    torch.testing.assert_close(master(optimizer, weight), torch.full((1000,), 0.5 - 1e-4), atol=5e-6, rtol=0)


def test_small_gradients_are_not_lost_beside_large_ones():
    """Bug guarded: gradients added up in bfloat16, where 1 + 2**-9 is 1, whatever the number of micro-batches."""
    weight = torch.nn.Parameter(torch.ones(4))
    optimizer = ExactBF16AdamW([weight], lr=1e-3)
    prepare_gradients(optimizer)
    for scale in [1.0] + [2.0**-9] * 512:
        (weight * torch.full((4,), scale, dtype=torch.bfloat16)).sum().backward()
    assert weight.grad.dtype == torch.float32
    assert weight.grad.tolist() == [2.0] * 4


def test_gradients_of_a_model_do_not_depend_on_micro_batches():
    """Bug guarded: the same, through the real log-probs; and a second copy of the weights to sample with."""
    model = make_model("qwen3", torch.float32)
    optimizer = ExactBF16AdamW(model.parameters(), lr=1e-3)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert make_sampler_model(model) is model
    model.compute_dtype = torch.float32
    prompts, collected = [torch.tensor([p]) for p in random_prompts([9] * 6)], []
    for batches in ([torch.cat(prompts)], prompts):
        for ids in batches:
            token_logprobs(model, ids, temperature=1.0)[0].sum().backward()
        collected.append([p.grad.clone() for p in model.parameters()])
        optimizer.zero_grad()
    scale = max(g.abs().max().item() for g in collected[0])
    for whole, parts in zip(*collected, strict=True):
        # each micro-batch's gradient of a bfloat16 weight is rounded once on its way out of the graph, never the sum
        torch.testing.assert_close(whole, parts, atol=scale * 2**-8, rtol=0)


def test_what_would_lose_bits_is_refused():
    """Bug guarded: torch casts a loaded state to its parameter's dtype, bfloat16, and low bits are gone; float64 weights; a
    gradient in bfloat16."""
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = ExactBF16AdamW([weight], lr=1.0)
    with pytest.raises(RuntimeError, match="load_checkpoint"):
        optimizer.load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="float64"):
        ExactBF16AdamW([torch.nn.Parameter(torch.ones(2, dtype=torch.float64))], lr=1.0)
    weight.grad_dtype = None
    weight.grad = torch.ones(2, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="prepare_gradients"):
        optimizer.step()


def test_a_killed_run_resumes_bit_for_bit(place, reward_for_length, no_report):
    """Bug guarded: a checkpoint that keeps the bfloat16 weights and forgets what the masters had beyond them."""
    runs, mode = place / "runs", ("--memory", "exact-bf16")
    assert train.main(flags(place, "exact-whole", *mode)) == 0
    half = flags(place, "exact-half", *mode)
    half[half.index("--steps") + 1] = "4"
    assert train.main(half) == 0
    assert train.main(flags(place, "exact-half", *mode, "--resume", "auto", "--resume-with-changes")) == 0
    assert_same_run(runs / "exact-half", runs / "exact-whole")
    assert any(row.get("grad_norm") for row in lines_of(runs / "exact-whole" / "metrics.jsonl"))


@pytest.mark.parametrize(("saved", "then"), [("exact-bf16", "shard"), ("offload", "exact-bf16")])
def test_masters_kept_in_another_way_are_refused_with_the_remedy(place, reward_for_length, no_report, saved, then):
    """Bug guarded: "belongs to another model", where auto decides otherwise on another machine."""
    assert train.main(flags(place, f"from-{saved}", "--steps", "2", "--memory", saved)) == 0
    resume = flags(place, f"from-{saved}", "--memory", then, "--resume", "auto", "--resume-with-changes")
    with pytest.raises(ValueError, match=f"go on with --memory {'exact-bf16' if saved == 'exact-bf16' else 'shard'}"):
        open_session(parse_config(resume))


def state_of(kind: str, folder: Path, seed: int = 9) -> TrainState:
    """Weights and an optimizer that has made no step: whole on one process, sharded on two."""
    dtype = torch.bfloat16 if kind == "exact" else torch.float32
    if dist.is_initialized():
        model = load_sharded(folder / f"{kind}-{seed}", make_mesh(CPU), CPU, dtype=dtype, compute=dtype)
    else:
        model = make_model("qwen3", torch.bfloat16, seed=seed).to(dtype)
        save_model(model, None, folder / f"{kind}-{seed}")
    fused = partial(torch.optim.AdamW, fused=True)
    optimizer = (ExactBF16AdamW if kind == "exact" else fused)(model.parameters(), **SETTINGS)
    if kind != "exact":
        create_state(optimizer)
    return TrainState(model, optimizer, None, 4)


def train_sharded(number: int, folder: Path) -> None:
    """Two processes: masters against sharded float32 AdamW with the same gradients; then checkpoints of one and of two."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=number, world_size=2)
    exact, plain = state_of("exact", folder, 0), state_of("adamw", folder, 0)
    pairs = list(zip(exact.policy.parameters(), plain.policy.parameters(), strict=True))
    for step in range(4):
        prepare_gradients(exact.optimizer)
        for batch in range(2):
            ids = torch.tensor(random_prompts([6], seed=100 * step + 10 * batch + number))
            exact.policy(ids).float().square().mean().backward()
        for a, b in pairs:
            assert isinstance(a.grad, DTensor)
            assert a.grad.dtype == torch.float32
            b.grad = a.grad.clone()
        for state in (exact, plain):
            state.optimizer.step()
        exact.optimizer.zero_grad()
    for a, b in pairs:
        assert torch.equal(bits(master(exact.optimizer, a)), bits(b.to_local()))
    for kind, state in (("exact", exact), ("adamw", plain)):
        save(state, folder / f"two-{kind}", is_main=number == 0)
        for count in ("one", "two"):
            assert_loaded(folder / f"{count}-{kind}", state_of(kind, folder))
    dist.barrier()
    dist.destroy_process_group()


def whole_tensors(state: TrainState) -> dict[str, torch.Tensor]:
    def whole(tensor: torch.Tensor) -> torch.Tensor:  # gloo knows no int16
        return full(tensor.int()).short() if tensor.dtype == torch.int16 else full(tensor).clone()

    return {name: whole(tensor) for name, tensor in checkpoint._tensors(state).items()}


def save(state: TrainState, folder: Path, is_main: bool = True) -> None:
    """Save a state, and what it holds for the comparison."""
    checkpoint._save_state(state, 4, folder / "state")
    tensors = whole_tensors(state)
    if is_main:
        torch.save(tensors, folder / "tensors.pt")
    if dist.is_initialized():
        dist.barrier()


def assert_loaded(folder: Path, state: TrainState) -> None:
    state.optimizer_steps = 0
    assert checkpoint.load_checkpoint(folder, state) == state.optimizer_steps == 4
    expected, loaded = torch.load(folder / "tensors.pt", weights_only=True), whole_tensors(state)
    assert expected.keys() == loaded.keys()
    for name, tensor in expected.items():
        assert tensor.dtype == loaded[name].dtype, name
        assert torch.equal(tensor, loaded[name]), name


@pytest.mark.slow
def test_two_processes(tmp_path):
    """Bug guarded: state that is not sharded with its parameter, int16 in a collective, bfloat16 sums under FSDP2; a checkpoint
    that another number of processes reads differently, moments cast to bfloat16, or lost steps of Adam."""
    for kind in ("exact", "adamw"):
        state_of(kind, tmp_path, 0)
        state = state_of(kind, tmp_path)
        if kind == "adamw":  # column-major weights
            state.policy.lm_head.weight.data = state.policy.lm_head.weight.data.T.contiguous().T
        for parameter in state.policy.parameters():
            parameter.grad = torch.randn(parameter.shape)
        state.optimizer.step()
        save(state, tmp_path / f"one-{kind}")
    mp.spawn(train_sharded, args=(tmp_path,), nprocs=2)
    for kind in ("exact", "adamw"):
        for count in ("one", "two"):
            assert_loaded(tmp_path / f"{count}-{kind}", state_of(kind, tmp_path))
    assert any(t.dtype == torch.int16 and t.any() for t in torch.load(tmp_path / "two-exact/tensors.pt").values())
