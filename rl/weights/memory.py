"""The plan of a run's memory, made before a weight is loaded: what `--memory auto` takes, and whether anything fits."""

import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import hf_hub_download

from model import ModelConfig
from model.folder import base_folder, read_json
from model.kv_cache import kv_bytes_per_token
from rl.config import Config
from rl.distributed import gather, pick_device, world_size
from rl.run.checkpoint import STATE_BYTES
from rl.run.console import gib, gigabytes, wrapped
from rl.slots import MOST_SLOTS
from rl.weights.plan import GIB, PHASES, RESERVE, Machine, Plan, Shapes, longest_sequence, sampled_at_once

LEAST_SLOTS = 8
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


class Choice(NamedTuple):
    """One way to run that auto may take. A row of AUTO."""

    memory: str
    reference_memory: str
    recompute: bool  # --activation-checkpointing
    most_tokens: int  # largest micro-batch
    least_slots: int  # with fewer, a later row is faster


# auto takes the first row that fits, the fastest first. Recomputing costs a third of the update, few slots slow the rollout
# down, and offload moves every weight over PCIe for each micro-batch. A micro-batch holds at least one longest sequence.
AUTO = [
    Choice("shard", "device", False, 16_384, 128),
    Choice("shard", "device", False, 4_096, 128),
    Choice("exact-bf16", "device", False, 4_096, 128),
    Choice("shard", "device", True, 16_384, 128),
    Choice("exact-bf16", "device", True, 16_384, 128),
    Choice("exact-bf16", "device", True, 4_096, 128),
    Choice("shard", "device", False, 4_096, 64),
    Choice("shard", "device", True, 16_384, 24),
    Choice("shard", "device", True, 4_096, 24),
    Choice("exact-bf16", "device", True, 4_096, 24),
    Choice("shard", "host", True, 16_384, 24),
    Choice("shard", "host", True, 4_096, 24),
    Choice("offload", "device", True, 16_384, 64),
    Choice("offload", "host", True, 16_384, 64),
    *(Choice(memory, place, True, 1, LEAST_SLOTS) for memory in ("shard", "offload") for place in ("device", "host")),
]


def decide(shapes: Shapes, config: Config, machine: Machine, judge: Shapes | None = None) -> Plan:
    """Return the first plan of AUTO that fits; if none does, the one that comes closest.

    None of the choices changes what is computed but for rounding. A mode that is named is taken as it is, with every number of
    the command line; its reference goes to host memory only where it does not fit on the device. Slots that are left to auto
    (`--max-slots`) are fitted in every mode.
    """
    may_lower_slots = "auto" in (config.memory, config.max_slots)
    most = min(MOST_SLOTS if config.max_slots == "auto" else config.max_slots, sampled_at_once(config, machine)[0])
    tried: list[Plan] = []
    for choice in _choices(config, machine):
        # the run of this row, with as many slots as it has room for
        decided = replace(
            config, memory=choice.memory, activation_checkpointing=choice.recompute, micro_batch_tokens=choice.most_tokens,
            max_slots=most if may_lower_slots else config.max_slots,
        )  # fmt: skip
        plan = Plan(shapes, decided, machine, judge, choice.reference_memory)
        slots = most
        while may_lower_slots and plan.sums["rollout"] > plan.usable and slots > choice.least_slots:
            slots = max(choice.least_slots, (slots - 1) // 8 * 8)
            plan = replace(plan, config=replace(decided, max_slots=slots))
        if plan.fits:
            return plan
        tried.append(plan)
    return min(tried, key=lambda plan: plan.excess)


def _choices(config: Config, machine: Machine) -> Iterator[Choice]:
    """Yield the rows to try, fitted to the flags: a row never does more at once than they say."""
    is_simple = machine.device == "cpu" or config.lora_rank > 0  # a whole model with adapters has a single place
    modes = ["shard"] if is_simple else ["shard", "offload"] + ["exact-bf16"] * (machine.gpus == 1)
    on_host = config.needs_reference and not is_simple
    if config.memory != "auto":
        for reference in ["device", "host"][: 1 + on_host]:
            yield Choice(config.memory, reference, config.activation_checkpointing, config.micro_batch_tokens, LEAST_SLOTS)
        return
    for row in AUTO:
        if row.memory in modes and (row.reference_memory == "device" or on_host):
            tokens = min(config.micro_batch_tokens, max(row.most_tokens, longest_sequence(config)))
            yield row._replace(recompute=row.recompute or config.activation_checkpointing, most_tokens=tokens)


def misfit(plan: Plan, config: Config) -> str:
    """Return in words which phase or node of a plan that does not fit lacks memory, and the smallest change that helps."""
    machine, phase = plan.machine, max(plan.sums, key=plan.sums.get)
    if plan.excess[0] == 0:
        problem = f"a node needs {gib(plan.host)} of host memory, it has {gib(machine.host_bytes)}"
    else:
        problem = f"{phase} needs {gib(plan.sums[phase])} of {gib(plan.usable)} on a {machine.unit} ({RESERVE:.0%} stay free)"
    tried = "no mode of --memory fits; the closest, " if config.memory == "auto" else "it does not fit: "
    tried = "it does not fit" if config.lora_rank else f"{tried}--memory {plan.config.memory}"
    lora = replace(config, lora_rank=16, memory="auto")
    fits = not config.lora_rank and decide(Shapes(plan.shapes.config, lora), lora, machine, plan.judge).fits
    adapters = "adapters would fit: --lora-rank 16; " if fits else ""
    return f"{tried}: {problem}; {adapters}smallest change that works: {smallest_change(plan, config)}"


def smallest_change(plan: Plan, config: Config) -> str:
    """Return what makes a plan that does not fit fit: the first of a short list of changes, of flags or of the machine."""
    # changes of flags
    machine, tokens = plan.machine, config.max_new_tokens // 2
    rules = {"judge": "rules"} if config.judge_kind == "self" else {}
    no_reference = "no reference model: --beta 0" + (" with --judge rules or a judge's server" if rules else "")
    flags = [
        (config.memory != "auto", "--activation-checkpointing", {"activation_checkpointing": True}),
        (config.memory != "auto", "--memory auto", {"memory": "auto"}),
        (config.needs_reference and not config.lora_rank, no_reference, {"beta": 0.0, "plain_policy": "current", **rules}),
        (tokens > 0, f"--max-new-tokens {tokens}", {"max_new_tokens": tokens}),
    ]
    changes = [(text, replace(config, **values), machine) for is_there, text, values in flags if is_there]

    # changes of the machine
    if machine.host_bytes is not None and plan.excess[0] == 0:
        needed = math.ceil(plan.host / GIB)
        changes.append((f"{needed} GiB of host memory a node", config, replace(machine, host_bytes=needed * GIB)))
    if machine.device == "cuda":
        counts = (2**n for n in range(1, 11) if 2**n > machine.gpus)
        changes += [(f"{gpus} such GPUs", config, replace(machine, gpus=gpus)) for gpus in counts]
    shapes = plan.shapes.config
    works = (text for text, changed, other in changes if decide(Shapes(shapes, changed), changed, other, plan.judge).fits)
    first, adapted = next(works, "a smaller --model"), replace(config, lora_rank=16, memory="auto")
    if first.startswith("--") or config.lora_rank or not decide(Shapes(shapes, adapted), adapted, machine, plan.judge).fits:
        return first
    return f"--lora-rank 16 (adapters), or {first}"


def this_machine(device: torch.device, processes: int = 1, per_node: int | None = None) -> Machine:
    """Return the machine this process runs on. Where cards or machines differ, the smallest counts, on every rank.

    Args:
        processes: those of the whole run.
        per_node: those on this machine; default all.
    """
    per_node = per_node or processes
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if CGROUP_LIMIT.is_file() and (limit := CGROUP_LIMIT.read_text().strip()).isdigit():
        host = min(host, int(limit))  # of the container
    host = min(gather(host))
    if device.type == "cpu":
        return Machine(processes, host / per_node, None, "cpu", per_node)
    total = min(gather(torch.cuda.get_device_properties(device).total_memory))
    return Machine(processes, total, host, "cuda", per_node)


def read_model_config(path_or_hub_id: str) -> ModelConfig:
    """Read the shapes of a model: from a folder, a config.json, or a hub id, of which only config.json is fetched.

    Raises:
        ValueError: there is no such model, or it is of an unsupported kind.
    """
    path = Path(path_or_hub_id)
    if path.is_dir():
        path = base_folder(path) / "config.json"
    elif not path.is_file():
        try:
            name, _, revision = path_or_hub_id.partition("@")
            path = Path(hf_hub_download(name, "config.json", revision=revision or None))
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"no config.json of {path_or_hub_id}, here or on the hub: {reason}") from error
    return ModelConfig.from_hf(read_json(path))


def plan_text(config: Config) -> str:
    """Return what `--plan` prints.

    Raises:
        ValueError: the model cannot be read.
    """
    # the machine that is asked about, or this one
    if config.model is None:
        raise ValueError("--plan needs --model: a folder, a config.json or a hub id")
    if config.gpu_gib is None:
        machine = this_machine(pick_device(config.device), config.gpus or 1)
    else:
        host = None if config.host_gib is None else config.host_gib * GIB
        machine = Machine(config.gpus or 1, config.gpu_gib * GIB, host)

    # what it is for, its table, and what was decided
    plan = _plan(config.model, config, machine)
    model, adapters = plan.shapes.config, plan.shapes.adapters
    disk = (adapters * (STATE_BYTES + 4) or plan.shapes.parameters * (STATE_BYTES + 2)) * (config.keep + 1)
    host = "not checked" if machine.host_bytes is None else f"{gib(machine.host_bytes)} a node"
    lines = [
        f"{config.model}: {plan.shapes.parameters / 1e9:.2f} B parameters, {model.num_hidden_layers} layers, "
        + f"{adapters / 1e6:.1f} M in adapters, " * (adapters > 0)
        + f"KV cache {kv_bytes_per_token(model, machine.compute) / 1024:.0f} KiB a token",
        f"{machine.gpus} x {machine.unit} of {gib(machine.gpu_bytes)}, host memory {host}",
        f"questions a step: {config.questions_per_step}, each with {config.group_size} + {config.plain_samples} answers of up "
        f"to {config.max_new_tokens:,} tokens, prompts of up to {config.max_prompt_tokens:,}",
        "",
        *table_lines(plan),
        "",
    ]
    if not plan.fits:
        return "\n".join([*lines, wrapped(misfit(plan, config))])
    kept = f"disk for {config.keep} checkpoints and the one being written: {gigabytes(disk)}"
    kept = kept if config.keep else "no disk for checkpoints: --keep 0 saves none"
    return "\n".join([*lines, *decision(plan, config), kept])


def plan_run(config: Config, source: Path, device: torch.device) -> Plan:
    """Plan this run on this machine and print what was decided. All ranks call this together, before any weight is loaded.

    Args:
        source: folder of the policy.

    Raises:
        ValueError: it does not fit; the message names the smallest change that does.
    """
    machine = this_machine(device, world_size(), int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    plan = _plan(str(source), config, machine)
    if not plan.fits:
        raise ValueError(misfit(plan, config))
    print("\n".join(decision(plan, config, "memory: ")))
    return plan


def _plan(model: str, config: Config, machine: Machine) -> Plan:
    judge = Shapes(read_model_config(config.judge)) if config.judge_kind == "model" else None
    return decide(Shapes(read_model_config(model), config), config, machine, judge)


def table_lines(plan: Plan) -> list[str]:
    """Return a line for every item that takes anything, in GiB, with sums and what is left."""
    rows = {name: row for name, row in plan.table.items() if any(row)} | {"sum": plan.sums.values()}
    rows[f"{RESERVE:.0%} kept free"] = [plan.machine.gpu_bytes * RESERVE] * len(PHASES)
    rows["left"] = [plan.usable - total for total in plan.sums.values()]
    lines = [f"{'GiB on each ' + plan.machine.unit:<20}" + "".join(f"{phase:>12}" for phase in PHASES)]
    return lines + [f"{name:<20}" + "".join(f"{value / GIB:>12.1f}" for value in row) for name, row in rows.items()]


def decision(plan: Plan, config: Config, prefix: str = "") -> list[str]:
    """Return what was decided, as flags, and what else it needs; the first line begins with `prefix`."""
    decided, machine = plan.config, plan.machine
    slots = f"auto (about {decided.max_slots} rows)" if config.max_slots == "auto" else decided.max_slots
    taken = "auto takes: " if config.memory == "auto" else "it fits: "
    taken += f"--memory {decided.memory} " * (not config.lora_rank)
    taken += "--activation-checkpointing " * decided.activation_checkpointing
    taken += f"--micro-batch-tokens {decided.micro_batch_tokens} --max-slots {slots}"
    used = (
        "the trained weights themselves" if plan.shares_weights else "a copy of the weights, which is freed before the update"
    )
    lines = [wrapped(prefix + taken), f"the sampler uses {used}"]
    if config.needs_reference and machine.device == "cuda":
        place = "in host memory" if plan.reference_memory == "host" else "on the device"
        lines.append(f"the reference {'is the same model without adapters' if config.lora_rank else f'lies {place}'}")
    return lines + ([f"host memory of a node: {gib(plan.host)}"] if machine.device == "cuda" else [])
