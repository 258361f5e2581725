"""Memory plans by hand: the two moments of an update, a node's host memory, shares of a step, slots, containers."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from test_memory_plan import H100, H200, QWEN_7B, settings

import rl.weights.memory
from rl.logprobs import CHUNK_ELEMENTS
from rl.weights.memory import AUTO, decide, this_machine
from rl.weights.plan import GIB, Machine, Plan, Shapes, backward_bytes, micro_batch, sampled_at_once, saved_bytes

NAMED = dict(judge="rules", max_slots=8)


@pytest.fixture(scope="module")
def seven() -> Shapes:
    return Shapes(QWEN_7B)


@pytest.fixture(scope="module")
def few_words() -> Shapes:
    """With a vocabulary so small that an update takes most in a layer, not in the head."""
    return Shapes(replace(QWEN_7B, vocab_size=1000))


@pytest.mark.parametrize(
    ("memory", "gpus", "layers"),  # layers: bytes of a layer's parameters that stand beside what the forward has kept
    [
        ("shard", 1, 2),  # its weights once more, in bfloat16
        ("exact-bf16", 1, 0),  # they are in bfloat16
        ("shard", 2, 2 * 2 + 2 + 4),  # two gathered layers, a layer's gradients in both dtypes
        ("exact-bf16", 2, 2 * 2 + 2 + 4),
        ("offload", 1, 2 * 2 + 2 * 4 + 2 + 4),  # and two on their way, in float32
    ],
)
@pytest.mark.parametrize("checkpointing", [True, False])
def test_a_layers_backward_by_hand(few_words, memory, gpus, layers, checkpointing):
    """Bug guarded: gathered layers or their gradients left out; a layer that is computed again counted where none is."""
    config = settings(memory=memory, activation_checkpointing=checkpointing, micro_batch_tokens=32_768, **NAMED)
    machine = Machine(gpus, H200)
    update, tokens = Plan(few_words, config, machine).table["update"], micro_batch(config, machine)
    assert tokens == 32_768
    assert (update["gathered"], update["logits"]) == (layers * few_words.layer, 0)
    kept = 28 * (2 * 3584 if checkpointing else saved_bytes(QWEN_7B, 2, padded=False)) + 5 * 2 * 3584
    running = backward_bytes(QWEN_7B, 2) + saved_bytes(QWEN_7B, 2, padded=False) * checkpointing
    casts = 2 * (few_words.parameters - 2 * few_words.head) * (memory == "shard" and gpus == 1 and not checkpointing)
    assert update["activations"] == tokens * (kept + running) + casts


def test_the_heads_backward_by_hand(seven):
    """Bug guarded: the smaller of the two moments planned for."""
    config = settings(memory="shard", activation_checkpointing=True, micro_batch_tokens=1, **NAMED)
    update = Plan(seven, config, Machine(2, H200)).table["update"]
    tokens = micro_batch(config, Machine(2, H200))
    assert update["gathered"] == (2 + 4 + 2) * seven.head  # its weight, the sum of its gradient, a chunk's part of it
    assert update["logits"] == 2 * 4 * CHUNK_ELEMENTS
    assert update["activations"] == tokens * (28 + 5) * 2 * 3584


def test_questions_are_shared_out_upwards():
    """Bug guarded: a GPU that gets the odd question, and no memory for it."""
    config = settings(questions_per_step=5, plain_policy="current")
    assert sampled_at_once(config, Machine(4, H100)) == (2 * (config.group_size + config.plain_samples), 2 * 2)


def test_host_memory_is_of_one_node(seven):
    """Bug guarded: every process of an offloaded run with all the weights; a node that holds the processes of others."""
    config, export = settings(memory="offload"), 2 * seven.parameters
    one, four = (Plan(seven, config, Machine(gpus, H100)).host - export for gpus in (1, 4))
    assert one < four < 1.5 * one
    apart, together = (Plan(seven, config, Machine(16, H100, per_node=count)).host - export for count in (8, 16))
    assert together == 2 * apart


def test_as_many_slots_as_fit(seven):
    """Bug guarded: a search that goes past the largest number, in steps that are too wide."""
    named, found = settings(memory="shard", activation_checkpointing=True), set()
    for size in range(60, 80, 2):
        machine = Machine(2, size * GIB)
        plan = decide(seven, named, machine)
        found.add(plan.config.max_slots)
        assert plan.config.max_slots % 8 == 0
        more = replace(plan, config=replace(plan.config, max_slots=plan.config.max_slots + 8), keep_copy=False)
        assert not plan.fits or not more.fits
    assert len(found) > 4


def test_auto_never_takes_a_mode_of_one_gpu_for_several(seven):
    """Bug guarded: exact-bf16 chosen for a run in which nobody measured it."""
    assert {decide(seven, settings(), Machine(2, size * GIB)).config.memory for size in range(20, 100, 2)} == {
        "shard",
        "offload",
    }


def test_a_reference_in_host_memory_is_whole_while_it_judges_or_writes(seven):
    """Bug guarded: a copy of 2 bytes a parameter that no phase has room for, or one that stays through the update."""
    config, machine = settings(memory="exact-bf16", plain_policy="reference", max_slots=64), Machine(1, H200)
    plan = Plan(seven, config, machine, reference_memory="host")
    resident = Plan(seven, config, machine)
    for phase in ("rollout", "judge"):
        assert plan.table[phase]["reference"] == resident.table[phase]["reference"] == 2 * seven.parameters
    for phase in ("reference", "update"):
        assert plan.table[phase]["reference"] == 0 < resident.table[phase]["reference"]
    assert plan.table["reference"]["gathered"] == 2 * 2 * seven.head  # larger than two layers; on its way and there
    assert plan.host - resident.host > 2 * seven.parameters


def test_a_named_mode_moves_the_reference_only_where_it_must(seven):
    """Bug guarded: a reference that crosses PCIe for every micro-batch although the device has room for it."""
    config, places = settings(memory="shard", activation_checkpointing=True, max_slots=8, judge="rules"), []
    for size in range(60, 100, 2):
        plan = decide(seven, config, Machine(2, size * GIB))
        places.append(plan.reference_memory)
        assert plan.reference_memory == "device" or not Plan(seven, config, Machine(2, size * GIB)).fits
    assert set(places) == {"device", "host"}
    assert decide(seven, replace(config, beta=0.0), Machine(2, 40 * GIB)).reference_memory == "device", "there is none"


def test_a_small_cpu_still_runs(seven):
    """Bug guarded: a laptop refused because the last rows of the table are those of GPUs."""
    tokens = set()
    for size in range(100, 240):
        plan = decide(seven, settings(judge="rules", beta=0.0), Machine(1, size * GIB, device="cpu"))
        assert (plan.config.memory, plan.reference_memory) == ("shard", "device")
        tokens |= {plan.config.micro_batch_tokens} if plan.fits else set()
    assert min(tokens) == 2_524, "one longest sequence at a time"


def test_auto_takes_the_first_row_that_fits(seven):
    """Bug guarded: a plan that depends on more than the order of the table, or a row that nothing ever takes."""
    taken = set()
    for gpus, size in product((1, 2, 4, 8), range(20, 260, 4)):
        for config in (settings(), settings(judge="rules")):
            plan = decide(seven, config, Machine(gpus, size * GIB))
            chosen = plan.config
            if plan.fits:
                taken.add((chosen.memory, plan.reference_memory, chosen.activation_checkpointing, chosen.micro_batch_tokens))
    assert {row[:3] for row in AUTO} == {row[:3] for row in taken}
    assert {row[3] for row in taken} == {16_384, 4_096, 2_524}


@pytest.mark.parametrize(("limit", "share"), [(str(2**30), 2**30), ("max", None), (str(2**60), None)])
def test_a_container_has_what_it_may_use(tmp_path, monkeypatch, limit, share):
    """Bug guarded: the machine's memory planned in a container that is killed long before; a limit beyond the machine."""
    monkeypatch.setattr(rl.weights.memory, "CGROUP_LIMIT", tmp_path / "absent")
    whole = this_machine(torch.device("cpu")).gpu_bytes
    (tmp_path / "memory.max").write_text(limit + "\n")
    monkeypatch.setattr(rl.weights.memory, "CGROUP_LIMIT", tmp_path / "memory.max")
    assert this_machine(torch.device("cpu")).gpu_bytes == (share or whole)
