"""`--plan`: the plan of a run as text, for a terminal of 100 columns."""

import os
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download

from model import ModelConfig
from model.checkpoint import read_json
from model.kv_cache import kv_bytes_per_token
from rl.config import Config
from rl.distributed import pick_device, world_size
from rl.memory.choice import Plan, check_memory, decide, describe_misfit, smallest_change, this_machine
from rl.memory.plan import GIB, ITEMS, PHASES, Machine, Shapes, sampled_at_once, shares_weights
from rl.terminal import count, gib, gigabytes, wrapped


def read_model_config(path_or_hub_id: str, revision: str | None = None) -> ModelConfig:
    """The shapes of a model: from a folder, a config.json, or a hub id, of which nothing but config.json is fetched.

    Raises:
        ValueError: there is no such model, or it is of an unsupported kind.
    """
    path = Path(path_or_hub_id)
    if path.is_dir():
        path = path / "config.json"
    elif not path.is_file():
        try:
            path = Path(hf_hub_download(path_or_hub_id, "config.json", revision=revision))
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
    shapes = Shapes(read_model_config(config.model, config.revision))
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
        f"{count(machine.gpus, kind)} of {gib(machine.gpu_bytes)}{where}",
        f"{count(config.questions_per_step, 'question')} a step, {config.group_size} + {config.plain_samples} answers of up to "
        f"{config.max_new_tokens:,} tokens, prompts of up to {config.max_prompt_tokens:,}",
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
