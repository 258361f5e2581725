"""--plan: arithmetic against real models and by hand, what auto takes, and what it says when nothing fits."""

import argparse
import json
import re
import sys
from dataclasses import replace
from itertools import product

import pytest
import torch
from conftest import ROOT, make_model, write_task_folder

import rl.weights.memory
import rl.weights.plan as formulas
import train
from benchmarks.memory import compare, make_folder
from model import ModelConfig
from model.attention import PackedAttention
from rl.config import Config, parse_config
from rl.logprobs import CHUNK_ELEMENTS
from rl.weights.exact_bf16 import ExactBF16AdamW
from rl.weights.memory import AUTO, decide, decision, misfit, plan_run, smallest_change, this_machine
from rl.weights.plan import GIB, PHASES, Machine, Plan, Shapes
from rl.weights.policy import make_optimizer

CPU = torch.device("cpu")
H100, H200 = 79.6 * GIB, 140.4 * GIB
SHAPES = {
    "Qwen2.5-7B": ModelConfig("qwen2", 152_064, 3584, 18_944, 28, 28, 4, 128),
    "Qwen3-8B": ModelConfig("qwen3", 151_936, 4096, 12_288, 36, 32, 8, 128),
    "Qwen2.5-14B": ModelConfig("qwen2", 152_064, 5120, 13_824, 48, 40, 8, 128),
}
QWEN_7B = SHAPES["Qwen2.5-7B"]
NAMED = dict(judge="rules", max_slots=8)


@pytest.fixture(scope="module")
def seven() -> Shapes:
    return Shapes(QWEN_7B)


def settings(**changes) -> Config:
    return replace(Config(preset="default", model="x"), **changes)


def at(plan: Plan, phase: str) -> dict[str, float]:
    return {item: row[PHASES.index(phase)] for item, row in plan.table.items()}


def test_parameters_are_those_of_the_model(seven):
    """Bug guarded: a formula for parameters that forgets biases, norms or that the head is tied."""
    billions = {name: round(Shapes(config).parameters / 1e9, 3) for name, config in SHAPES.items()}
    assert billions == {"Qwen2.5-7B": 7.616, "Qwen3-8B": 8.191, "Qwen2.5-14B": 14.77}, "as the models' cards say"
    tied = make_model("qwen2", tie_word_embeddings=True)
    assert Shapes(tied.config).parameters == sum(p.numel() for p in tied.parameters())


def test_the_tables_of_the_documentation_are_what_auto_takes():
    """Bug guarded: a command of the README that ends in an error, or in a mode that is slow for no reason; stale figures."""
    rows = re.findall(r"^\| (Qwen\S+) \| (\d) x (\d+) GB \| (.*) \|$", (ROOT / "docs/training.md").read_text(), flags=re.M)
    assert len(rows) == 15
    modes = {}
    for name, gpus, size, rest in rows:
        machine = Machine(int(gpus), {"80": H100, "141": H200}[size], GIB * (512 if "512" in rest else 256 * int(gpus)))
        plan = decide(Shapes(SHAPES[name]), settings(), machine)
        chosen, recompute = plan.config, "yes" if plan.config.activation_checkpointing else "no"
        numbers = [f"{chosen.micro_batch_tokens:,}", str(chosen.max_slots), *(f"{b / GIB:.1f}" for b in plan.sums.values())]
        ours = [chosen.memory, plan.reference_memory, recompute, *numbers, f"{plan.host / GIB:.0f}"]
        assert plan.fits
        assert [*rest.split(" | ")[:-1], rest.split(" | ")[-1].split(" ")[0]] == ours
        assert "nothing fits" not in rest or not decide(plan.shapes, settings(), replace(machine, host_bytes=256 * GIB)).fits
        modes[name, gpus, size] = chosen.memory
    front = re.findall(r"^\| (Qwen\S+) \| (\d)(?: to \d)? x (\d+) GB \| `(\S+)`", (ROOT / "README.md").read_text(), flags=re.M)
    assert {row[:3]: row[3] for row in front} == {row[:3]: modes[row[:3]] for row in front} != {}


def test_state_bytes_are_those_of_the_optimizers():
    """Bug guarded: a plan for another optimizer than the one that is used."""
    for mode in ("shard", "exact-bf16"):
        model = make_model("qwen3", torch.float32)
        config, shapes = settings(memory=mode, beta=0.0, judge="rules"), Shapes(model.config)
        optimizer = make_optimizer(model, config)
        assert isinstance(optimizer, ExactBF16AdamW) == (mode == "exact-bf16")
        items = at(decide(shapes, config, Machine(1, H100)), "update")
        assert items["optimizer"] == sum(t.nbytes for s in optimizer.state.values() for name, t in s.items() if name != "step")
        assert items["weights"] - sum(p.nbytes for p in model.parameters()) in (0, 2 * shapes.parameters)  # the copy
        assert items["gradients"] == 4 * shapes.parameters


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_bytes_are_what_autograd_keeps(family, dtype):
    """Bug guarded: activation memory of a layer that is off, which is what decides whether a micro-batch fits."""
    model = make_model(family, dtype, hidden_size=128, intermediate_size=320)
    tokens, kept = 64, {}
    cos, sin = (torch.ones(1, tokens, 1, model.config.head_dim, dtype=dtype) for _ in range(2))
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), cos, sin)}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    x = torch.randn(1, tokens, 128, dtype=dtype, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model.model.layers[0](x, cos, sin, PackedAttention.of_sequences([tokens // 2] * 2, CPU))
    assert out.requires_grad
    planned = tokens * formulas.saved_bytes(model.config, dtype.itemsize, padded=True)
    assert planned == pytest.approx(sum(storage.nbytes() for storage in kept.values()), rel=0.1)


def test_the_arithmetic_of_a_7b_model_by_hand(seven):
    """Bug guarded: a factor of two anywhere; the figures are worked out by hand from 7.616e9 parameters."""
    plan = Plan(seven, settings(memory="shard", activation_checkpointing=True, max_slots=256), Machine(2, H100))
    update, rollout = at(plan, "update"), at(plan, "rollout")
    by_hand = {"weights": 14.19, "gradients": 14.19, "optimizer": 28.37, "reference": 7.09}
    assert {name: update[name] / GIB for name in by_hand} == pytest.approx(by_hand, abs=0.01)
    assert (rollout["weights"] - update["weights"]) / GIB == pytest.approx(14.19, abs=0.01)  # the sampler's copy
    assert rollout["KV cache"] == 57_344 * 256 * (1500 + 1024)
    waiting = at(replace(plan, config=replace(plan.config, max_slots=64)), "rollout")
    assert waiting["KV cache"] == 57_344 * (64 * (1500 + 1024) + 1024), "a prompt is kept for its samples that wait"
    # 28 layers keep 7,168 bytes a token, and one runs: 225 kB kept, 157 kB of gradients
    assert formulas.saved_bytes(QWEN_7B, 2, padded=False) == 57_344 + 16_384 + 151_552
    assert formulas.backward_bytes(QWEN_7B, 2) == 113_664 + 43_008
    assert formulas.forward_bytes(QWEN_7B, 2) == 113_664 + 14_336 + 2 * 38 * 128
    # the larger moment is the head's: its weight, the sum of its gradient, a chunk's part of it
    config = settings(memory="shard", activation_checkpointing=True, micro_batch_tokens=1, **NAMED)
    update = at(Plan(seven, config, Machine(2, H200)), "update")
    assert (update["gathered"], update["logits"]) == ((2 + 4 + 2) * seven.head, 2 * 4 * CHUNK_ELEMENTS)
    assert update["activations"] == 2524 * (28 + 5) * 2 * 3584
    odd = settings(questions_per_step=5, plain_policy="current")
    assert formulas.sampled_at_once(odd, Machine(4, H100)) == (2 * 16, 2 * 2), "a GPU that gets the odd question"


@pytest.mark.parametrize(
    ("memory", "gpus", "layers"),  # layers: bytes of a layer's parameters that stand beside what the forward has kept
    [
        ("shard", 1, 2),  # its weights once more, in bfloat16
        ("exact-bf16", 1, 0),  # they are in bfloat16
        ("exact-bf16", 2, 2 * 2 + 2 + 4),  # two gathered layers, a layer's gradients in both dtypes
        ("offload", 1, 2 * 2 + 2 * 4 + 2 + 4),  # and two on their way, in float32
    ],
)
@pytest.mark.parametrize("checkpointing", [True, False])
def test_a_layers_backward_by_hand(memory, gpus, layers, checkpointing):
    """Bug guarded: gathered layers or their gradients left out; a layer that is computed again counted where none is."""
    few_words = Shapes(replace(SHAPES["Qwen2.5-7B"], vocab_size=1000))  # so that an update takes most in a layer
    config = settings(memory=memory, activation_checkpointing=checkpointing, micro_batch_tokens=32_768, **NAMED)
    update = at(Plan(few_words, config, Machine(gpus, H200)), "update")
    assert (update["gathered"], update["logits"]) == (layers * few_words.layer, 0)
    kept = 28 * (2 * 3584 if checkpointing else formulas.saved_bytes(QWEN_7B, 2, padded=False)) + 5 * 2 * 3584
    running = formulas.backward_bytes(QWEN_7B, 2) + formulas.saved_bytes(QWEN_7B, 2, padded=False) * checkpointing
    casts = 2 * (few_words.parameters - 2 * few_words.head) * (memory == "shard" and gpus == 1 and not checkpointing)
    assert update["activations"] == 32_768 * (kept + running) + casts


def test_a_reference_that_is_not_whole_has_a_copy_while_it_judges_or_writes(seven):
    """Bug guarded: a whole copy that no phase has room for, or one that stays through the update; one for nobody."""
    config, four, P = settings(memory="shard", max_slots=64), Machine(4, H100), seven.parameters
    for changes, phase in (({"judge": "self"}, "judge"), ({"judge": "rules", "plain_policy": "reference"}, "rollout")):
        items = at(Plan(seven, replace(config, **changes), four), phase)
        assert items["weights"] + items["reference"] == (4 + 8 + 2) * P / 4, "the policy's copy and this take turns"
    resident = Plan(seven, settings(memory="exact-bf16", plain_policy="reference", max_slots=64), Machine(1, H200))
    on_host = replace(resident, reference_memory="host")
    assert on_host.table["reference"] == (2 * P, 2 * P, 0, 0)
    assert resident.table["reference"] == (2 * P,) * 4
    assert at(on_host, "reference")["gathered"] == 2 * 2 * seven.head  # larger than two layers; on its way and there
    assert on_host.host - resident.host > 2 * P
    assert set(decide(seven, settings(beta=0.0, judge="rules"), Machine(1, H200)).table["reference"]) == {0}, "nobody asks it"


def test_host_memory_is_of_one_node_and_pinned(seven):
    """Bug guarded: every process of an offloaded run with all the weights; a host that runs full because torch rounds each
    pinned tensor up to a power of two."""
    machines = Machine(1, H100), Machine(4, H100), Machine(16, H100, per_node=8), Machine(16, H100, per_node=16)
    plans = (Plan(seven, settings(memory="offload"), machine) for machine in machines)
    one, four, apart, together = (plan.host - 2 * seven.parameters for plan in plans)  # less the export
    assert one < four < 1.5 * one
    assert together == 2 * apart
    assert [formulas.pinned(count, 4) for count in (3, 4, 5)] == [16, 16, 32]
    assert 20 * seven.parameters < one < 26 * seven.parameters


def test_auto_lowers_numbers_and_a_named_mode_does_not(seven):
    """Bug guarded: flags that are overridden although the mode was chosen by hand; slots that nobody asked for refused."""
    config, machine = settings(memory="shard", max_slots=256), Machine(2, H100)
    assert decide(seven, config, machine).config == config
    assert re.match(r"it does not fit: --memory shard: .* needs .* GiB", misfit(decide(seven, config, machine), config))
    auto = replace(config, memory="auto")
    plan = decide(seven, auto, machine)
    assert plan.config.max_slots < 256
    assert f"--max-slots {plan.config.max_slots}" in decision(plan, auto)[0]
    named = settings(memory="shard", activation_checkpointing=True)
    assert not decide(seven, replace(named, max_slots=256), machine).fits
    fitted = decide(seven, named, machine)
    assert fitted.fits
    assert fitted.config == replace(named, max_slots=fitted.config.max_slots)
    assert f"--max-slots auto (about {fitted.config.max_slots} rows)" in " ".join(decision(fitted, named)[0].split())


def test_as_many_slots_as_fit_and_the_reference_moves_only_where_it_must(seven):
    """Bug guarded: a search that goes past the largest number; a reference that crosses PCIe although there is room for it."""
    named, slots, places, fits = settings(memory="shard", activation_checkpointing=True), set(), [], []
    for size in range(60, 100, 2):
        machine = Machine(2, size * GIB)
        plan = decide(seven, named, machine)
        slots.add(plan.config.max_slots)
        more = replace(plan, config=replace(plan.config, max_slots=plan.config.max_slots + 8))
        assert plan.config.max_slots % 8 == 0
        assert not plan.fits or not more.fits or plan.config.max_slots == 256
        config = replace(named, judge="rules", max_slots=8)
        plan = decide(seven, config, machine)
        assert plan.reference_memory == "device" or not Plan(seven, config, machine).fits
        places.append(plan.reference_memory)
        fits.append(plan.fits)
    assert len(slots) > 4
    assert set(places) == {"device", "host"}
    assert fits == sorted(fits), "more memory never fits less"


def test_auto_takes_the_first_row_that_fits(seven):
    """Bug guarded: a row that nothing ever takes; exact-bf16 for several GPUs, which nobody measured; a laptop refused because
    the last rows are those of GPUs."""
    taken = set()
    for gpus, size in product((1, 2, 4, 8), range(20, 260, 4)):
        for config in (settings(), settings(judge="rules")):
            plan = decide(seven, config, Machine(gpus, size * GIB))
            chosen = plan.config
            assert chosen.memory != "exact-bf16" or gpus == 1
            if plan.fits:
                taken.add((chosen.memory, plan.reference_memory, chosen.activation_checkpointing, chosen.micro_batch_tokens))
    assert {row[:3] for row in AUTO} == {row[:3] for row in taken}
    assert {row[3] for row in taken} == {16_384, 4_096, 2_524}
    alone = settings(judge="rules", beta=0.0)
    plans = [decide(seven, alone, Machine(1, size * GIB, device="cpu")) for size in range(100, 240)]
    assert {(plan.config.memory, plan.reference_memory) for plan in plans} == {("shard", "device")}
    assert min(plan.config.micro_batch_tokens for plan in plans if plan.fits) == 2_524, "one longest sequence at a time"


def test_the_smallest_change_is_named(seven):
    """Bug guarded: advice that does not help; another mode where recomputing is enough; more of a machine than is needed."""
    for mode, gpus in product(("shard", "exact-bf16", "offload"), (1, 2, 4)):
        machine, given = Machine(gpus, H100, 400 * GIB), ["--model", "x", "--memory", mode]
        plan = decide(seven, parse_config(given), machine)
        flags = [] if plan.fits else smallest_change(plan, parse_config(given)).split()
        assert decide(seven, parse_config([*given, *flags]), machine).fits
    stay = settings(memory="exact-bf16", max_slots=64)
    assert smallest_change(decide(seven, stay, Machine(1, H200)), stay) == "--activation-checkpointing"
    small = Machine(1, H100, 64 * GIB)
    said = misfit(decide(seven, settings(), small), settings())
    needed = int(re.search(r"works: --lora-rank 16 \(adapters\), or (\d+) GiB of host memory a node", said)[1])
    assert decide(seven, settings(), replace(small, host_bytes=needed * GIB)).fits
    assert not decide(seven, settings(), replace(small, host_bytes=(needed - 2) * GIB)).fits
    full = settings(memory="shard", activation_checkpointing=True, max_slots=256)
    assert misfit(decide(seven, full, small), full).endswith("works: --lora-rank 16 (adapters), or 4 such GPUs")
    assert misfit(decide(seven, settings(), Machine(1, 12 * GIB)), settings()).endswith("works: a smaller --model")


@pytest.mark.parametrize(("limit", "share"), [(str(2**30), 2**30), ("max", None), (str(2**60), None)])
def test_a_container_has_what_it_may_use(tmp_path, monkeypatch, limit, share):
    """Bug guarded: the machine's memory planned in a container that is killed long before; a limit beyond the machine."""
    monkeypatch.setattr(rl.weights.memory, "CGROUP_LIMIT", tmp_path / "memory.max")
    whole = this_machine(CPU).gpu_bytes
    (tmp_path / "memory.max").write_text(limit + "\n")
    assert this_machine(CPU).gpu_bytes == (share or whole)


def test_plan_prints_a_table_and_loads_nothing(tmp_path, capsys):
    """Bug guarded: a table that a terminal of 100 columns breaks; weights that have to be there, or are loaded first."""
    (file := tmp_path / "config.json").write_text(json.dumps(QWEN_7B.to_hf("bfloat16")))
    words = (*PHASES, "KV cache", "left", "auto takes: --memory shard", "host memory of a node", "disk for 2 checkpoints")
    arguments = ["--model", str(file), "--plan", "--gpus", "2", "--gpu-gib", "79.6", "--host-gib", "256"]
    assert train.main(arguments) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines()[1:])) <= 100
    assert [word for word in words if word not in said] == []
    assert train.main([*arguments[:3], "--gpus", "1", "--gpu-gib", "24", "--host-gib", "64"]) == 0
    assert "smallest change that works: " in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit):
        train.main(["--model", str(tmp_path / "nothing"), "--plan"])
    assert "no config.json" in capsys.readouterr().out
    assert plan_run(settings(**NAMED, beta=0.0), write_task_folder(tmp_path / "small"), CPU).fits
    assert "memory: auto takes: --memory shard" in capsys.readouterr().out
    huge = replace(QWEN_7B, intermediate_size=200 * QWEN_7B.intermediate_size)
    file.write_text(json.dumps(huge.to_hf("bfloat16")))
    with pytest.raises(ValueError, match="smallest change that works: a smaller --model"):
        plan_run(settings(), tmp_path, CPU)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads peaks from /proc")
def test_planned_peaks_are_the_measured_ones(tmp_path):
    """Bug guarded: a plan that says nothing about what a run really takes."""
    numbers = dict(hidden=512, layers=4, vocabulary=16_000, questions=6, max_new_tokens=64, micro_batch_tokens=1024)
    args = argparse.Namespace(shape=None, flags="", **numbers)
    for phase, (planned, measured) in compare(make_folder(tmp_path, args), args, ["--run", "r"]).items():
        assert planned == pytest.approx(measured, rel=0.25), phase
