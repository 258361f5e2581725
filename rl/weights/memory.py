"""What `--memory auto` takes, and whether anything fits at all: the plan of a run, made before a weight is loaded."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download

from model import ModelConfig
from model.checkpoint import read_json
from model.kv_cache import kv_bytes_per_token
from rl.config import Config, to_flag
from rl.distributed import gather, pick_device, world_size
from rl.run.console import count as counted
from rl.run.console import gib, gigabytes, wrapped
from rl.slots import MOST_SLOTS
from rl.weights.plan import (
    GIB,
    ITEMS,
    PHASES,
    Machine,
    Shapes,
    disk_bytes,
    host_bytes,
    longest_sequence,
    phases,
    sampled_at_once,
    shares_weights,
)

RESERVE = 0.05  # of a GPU that auto leaves unplanned: what the allocator cannot use, and this file does not know
LEAST_SLOTS = 8
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Plan:
    """A run with its memory decided.

    Attributes:
        config: what runs: no field of it is auto any more.
        keep_copy: the sampler's copy of the weights stays through the update.
    """

    shapes: Shapes
    config: Config
    machine: Machine
    judge: Shapes | None = None
    keep_copy: bool = False
    reserve: float = 0.0

    @cached_property
    def table(self) -> dict[str, dict[str, float]]:
        return phases(self.shapes, self.config, self.machine, keep_copy=self.keep_copy, judge=self.judge)

    @cached_property
    def sums(self) -> dict[str, float]:
        return {phase: sum(items[name] for name in ITEMS) for phase, items in self.table.items()}

    @cached_property
    def host(self) -> float:
        return host_bytes(self.shapes, self.config, self.machine)

    @property
    def disk(self) -> int:
        return disk_bytes(self.shapes, self.config)

    @property
    def usable(self) -> float:
        return self.machine.gpu_bytes * (1 - self.reserve)

    @property
    def fits_gpu(self) -> bool:
        return max(self.sums.values()) <= self.usable

    @property
    def excess(self) -> tuple[float, float]:
        """How far it is from fitting, on the GPU first and then in host memory."""
        return max(0.0, max(self.sums.values()) - self.usable), max(0.0, self.host - (self.machine.host_bytes or self.host))

    @property
    def fits(self) -> bool:
        return self.fits_gpu and (self.machine.host_bytes is None or self.host <= self.machine.host_bytes)

    @property
    def problem(self) -> str:
        """Where it does not fit."""
        phase = max(self.sums, key=self.sums.get)
        if not self.fits_gpu:
            where = "on a GPU" if self.machine.device == "cuda" else "in a process"
            room = f"{gib(self.usable)} {where}" + (f" ({self.reserve:.0%} stay free)" if self.reserve else "")
            return f"{phase} needs {gib(self.sums[phase])} of {room}"
        return f"a node needs {gib(self.host)} of host memory, it has {gib(self.machine.host_bytes)}"


def decide(
    shapes: Shapes, config: Config, machine: Machine, judge: Shapes | None = None, *, may_lower: bool | None = None
) -> Plan:
    """The plan that should be fastest of those that fit; if none does, the one that comes closest.

    `--memory auto` tries, with the reference on the device and in host memory, shard and (on one GPU) exact-bf16; offload only
    where they leave few slots, because it moves every weight over PCIe for each micro-batch. Within a mode it turns activation
    checkpointing on, then makes micro-batches and slots smaller. None of it changes what is computed but for rounding. A mode
    that is named is taken as it is, with every number as it was given, unless `may_lower` says otherwise. Slots that are left
    to auto (`--max-slots`) are fitted in every mode.
    """
    may_lower = config.memory == "auto" if may_lower is None else may_lower
    fits_slots = may_lower or config.max_slots == "auto"
    config = replace(config, max_slots=MOST_SLOTS) if config.max_slots == "auto" else config
    closest: Plan | None = None
    for modes, least_slots, least_tokens in _passes(config, machine):
        for chosen in _candidates(config, machine, modes, least_tokens if may_lower else None):
            plan = Plan(shapes, chosen, machine, judge, reserve=RESERVE if may_lower else 0.0)
            plan = _with_slots(plan, least_slots) if fits_slots else plan
            if plan.fits:
                with_copy = replace(plan, keep_copy=True)
                return with_copy if with_copy.fits else plan
            if closest is None or plan.excess < closest.excess:
                closest = plan
    return closest


def _passes(config: Config, machine: Machine) -> list[tuple[list[str], int, int]]:
    """Modes to try, and the slots and tokens of a micro-batch below which to try something else first."""
    if config.memory != "auto":
        return [([config.memory], LEAST_SLOTS, 1)]
    if machine.device == "cpu":
        return [(["shard"], LEAST_SLOTS, 1)]
    resident = ["shard", "exact-bf16"] if machine.gpus == 1 else ["shard"]
    return [(resident, 128, 4096), (resident, 24, 1), (["offload"], 64, 4096), ([*resident, "offload"], LEAST_SLOTS, 1)]


def _candidates(config: Config, machine: Machine, modes: list[str], least_tokens: int | None) -> Iterator[Config]:
    """Every way to run in one of some modes, fastest first; micro-batches are not made smaller if `least_tokens` is None."""
    decodes = config.reference_writes_plain
    may_stream = config.needs_reference and not decodes and machine.device == "cuda"
    places = ["device", "host"][: 1 + may_stream] if config.reference_memory == "auto" else [config.reference_memory]
    checkpointing, tokens = [config.activation_checkpointing], [config.micro_batch_tokens]
    if least_tokens is not None:
        smallest = max(least_tokens, longest_sequence(config))
        checkpointing = sorted({config.activation_checkpointing or modes == ["offload"], True})
        while tokens[-1] // 2 >= smallest:
            tokens.append(tokens[-1] // 2)
    for place, mode, recompute, count in product(places, modes, checkpointing, tokens):
        yield replace(config, memory=mode, reference_memory=place, activation_checkpointing=recompute, micro_batch_tokens=count)


def _with_slots(plan: Plan, least: int) -> Plan:
    """The plan with as many slots as its rollout has room for, at least `least`."""
    wanted = min(plan.config.max_slots, sampled_at_once(plan.config, plan.machine)[0])
    least = min(least, wanted)
    if plan.sums["rollout"] <= plan.usable:
        return plan
    for slots in [*range((wanted - 1) // 8 * 8, least - 1, -8), least]:
        fewer = replace(plan, config=replace(plan.config, max_slots=slots))
        if fewer.sums["rollout"] <= plan.usable:
            break
    return fewer


def smallest_change(plan: Plan, asked: Config) -> str:
    """What makes a plan that does not fit fit: the smallest change of flags, or of the machine."""
    for text, config, machine in _changes(plan, asked):
        if decide(plan.shapes, config, machine, plan.judge).fits:
            return text
    return "a smaller --model"


def _changes(plan: Plan, asked: Config) -> Iterator[tuple[str, Config, Machine]]:
    """Changes to try, smallest first."""
    machine = plan.machine
    if asked.memory != "auto":
        lowered = decide(plan.shapes, asked, machine, plan.judge, may_lower=True).config
        if differing := different_flags(lowered, plan.config):
            yield differing, lowered, machine
        yield "--memory auto", replace(asked, memory="auto", reference_memory="auto"), machine
    if asked.needs_reference and asked.judge_kind == "self":
        without = replace(asked, beta=0.0, judge="rules", plain_policy="current")
        yield "no reference model: --beta 0 with --judge rules or a judge's server", without, machine
    elif asked.needs_reference:
        yield "no reference model: --beta 0", replace(asked, beta=0.0, plain_policy="current"), machine
    for tokens in (asked.max_new_tokens // 2, asked.max_new_tokens // 4):
        if tokens:
            yield f"--max-new-tokens {tokens}", replace(asked, max_new_tokens=tokens), machine
    if machine.host_bytes is not None and plan.fits_gpu:
        needed = math.ceil(plan.host / GIB)
        yield f"{needed} GiB of host memory a node", asked, replace(machine, host_bytes=needed * GIB)
    for count in (2**n for n in range(1, 11)):
        if count > machine.gpus and machine.device == "cuda":
            yield f"{count} such GPUs", asked, replace(machine, gpus=count)


def different_flags(config: Config, other: Config) -> str:
    """The flags of memory in which a configuration differs from another."""
    changed = []
    for name in ("reference_memory", "activation_checkpointing", "micro_batch_tokens", "max_slots"):
        if (value := getattr(config, name)) != getattr(other, name):
            changed.append(to_flag(name) if value is True else f"{to_flag(name)} {value}")
    return " ".join(changed)


def check_memory(shapes: Shapes, config: Config, machine: Machine, judge: Shapes | None = None) -> Plan:
    """Decide what `auto` stands for; to be called before any weight is loaded.

    Raises:
        ValueError: nothing fits; the message names the smallest change that does.
    """
    plan = decide(shapes, config, machine, judge)
    if not plan.fits:
        raise ValueError(f"{describe_misfit(plan, config)}; smallest change that works: {smallest_change(plan, config)}")
    return plan


def describe_misfit(plan: Plan, asked: Config) -> str:
    tried = "no mode of --memory fits; the closest, " if asked.memory == "auto" else "it does not fit: "
    return f"{tried}--memory {plan.config.memory}: {plan.problem}"


def this_machine(device: torch.device, processes: int = 1, per_node: int | None = None) -> Machine:
    """The machine this process runs on.

    Args:
        processes: of the whole run.
        per_node: of them on this machine; default all. Where cards or machines differ, the smallest counts, on every rank.
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
    """The shapes of a model: from a folder, a config.json, or a hub id, of which nothing but config.json is fetched.

    Raises:
        ValueError: there is no such model, or it is of an unsupported kind.
    """
    path = Path(path_or_hub_id)
    if path.is_dir():
        path = path / "config.json"
    elif not path.is_file():
        try:
            name, _, revision = path_or_hub_id.partition("@")
            path = Path(hf_hub_download(name, "config.json", revision=revision or None))
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"no config.json of {path_or_hub_id}, here or on the hub: {reason}") from error
    return ModelConfig.from_hf(read_json(path))


def plan_text(config: Config) -> str:
    """What `--plan` prints.

    Raises:
        ValueError: the model cannot be read.
    """
    if config.model is None:
        raise ValueError("--plan needs --model: a folder, a config.json or a hub id")
    shapes = Shapes(read_model_config(config.model))
    plan = decide(shapes, config, described_machine(config), judge_shapes(config))
    lines = [*heading(plan, config.model), "", *table_lines(plan), "", *decision(plan, config)]
    if plan.fits:
        lines.append(f"disk for {plan.config.keep} checkpoints and the one being written: {gigabytes(plan.disk)}")
    else:
        lines.append(wrapped(f"smallest change that works: {smallest_change(plan, config)}"))
    return "\n".join(lines)


def plan_run(config: Config, source: Path, device: torch.device) -> Plan:
    """The plan of this run on this machine, to be made before any weight is loaded, by all ranks; says what was decided.

    Args:
        source: folder of the policy.

    Raises:
        ValueError: it does not fit; the message names the smallest change that does.
    """
    machine = this_machine(device, world_size(), int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    plan = check_memory(Shapes(read_model_config(str(source))), config, machine, judge_shapes(config))
    print("\n".join(decision(plan, config, "memory: ")))
    return plan


def judge_shapes(config: Config) -> Shapes | None:
    """Shapes of the model of `--judge PATH`."""
    return Shapes(read_model_config(config.judge)) if config.judge_kind == "model" else None


def described_machine(config: Config) -> Machine:
    """The machine of --gpus, --gpu-gib and --host-gib; what is not given is this machine's."""
    if config.gpu_gib is not None:
        host = None if config.host_gib is None else config.host_gib * GIB
        return Machine(config.gpus or 1, config.gpu_gib * GIB, host)
    return this_machine(pick_device(config.device), config.gpus or 1)


def heading(plan: Plan, name: str) -> list[str]:
    config, machine, model = plan.config, plan.machine, plan.shapes.config
    kind = "GPU" if machine.device == "cuda" else "CPU process"
    host = "host memory not given" if machine.host_bytes is None else f"{gib(machine.host_bytes)} of host memory a node"
    where = f", {host}" if machine.device == "cuda" else ""
    return [
        f"{name}: {plan.shapes.parameters / 1e9:.2f} B parameters, {model.num_hidden_layers} layers, "
        f"KV cache {kv_bytes_per_token(model, machine.compute) / 1024:.0f} KiB a token",
        f"{counted(machine.gpus, kind)} of {gib(machine.gpu_bytes)}{where}",
        f"{counted(config.questions_per_step, 'question')} a step, {config.group_size} + {config.plain_samples} answers of up "
        f"to {config.max_new_tokens:,} tokens, prompts of up to {config.max_prompt_tokens:,}",
    ]


def table_lines(plan: Plan) -> list[str]:
    """A line for every item that takes anything, in GiB, with sums and what is left."""

    def line(title: str, values: list[float]) -> str:
        return f"{title:<18}" + "".join(f"{value / GIB:>12.1f}" for value in values)

    rows = {name: [plan.table[phase][name] for phase in PHASES] for name in ITEMS}
    sums = [plan.sums[phase] for phase in PHASES]
    return [
        f"{'GiB on each ' + ('GPU' if plan.machine.device == 'cuda' else 'CPU'):<18}" + "".join(f"{p:>12}" for p in PHASES),
        *(line(name, values) for name, values in rows.items() if any(values)),
        line("sum", sums),
        *([line(f"{plan.reserve:.0%} kept free", [plan.machine.gpu_bytes * plan.reserve] * len(sums))] if plan.reserve else []),
        line("left", [plan.usable - total for total in sums]),
    ]


def decision(plan: Plan, asked: Config, prefix: str = "") -> list[str]:
    """What was decided, as flags, and what else it needs; the first line begins with `prefix`."""
    config, machine = plan.config, plan.machine
    if not plan.fits:
        return [wrapped(describe_misfit(plan, asked))]
    changed = [f"--memory {config.memory}"]
    if config.needs_reference:
        changed.append(f"--reference-memory {config.reference_memory}")
    changed += ["--activation-checkpointing"] * config.activation_checkpointing
    changed += [f"--micro-batch-tokens {config.micro_batch_tokens}", f"--max-slots {asked.max_slots}"]
    if shares_weights(config, machine):
        copy = "the sampler uses the trained weights themselves"
    else:
        copy = f"the sampler's copy of the weights {'stays through' if plan.keep_copy else 'is freed before'} the update"
    taken = ("auto takes: " if asked.memory == "auto" else "it fits: ") + " ".join(changed)
    if asked.max_slots == "auto":
        taken += f" (about {min(config.max_slots, sampled_at_once(config, machine)[0])} rows)"
    lines = [wrapped(prefix + taken), copy]
    return lines + ([f"host memory of a node: {gib(plan.host)}"] if machine.device == "cuda" else [])
