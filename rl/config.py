"""The configuration: one frozen dataclass is the command line. Every default stands here, once.

This file imports nothing of the project, so that everything else may import it.
"""

import argparse
import difflib
import math
import os
import re
import types
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, Union, get_args, get_origin

DEMO_DATA = "division"  # --data of the embedded task
# flags that may differ when a run is continued: they do not change what is computed
FREE_ON_RESUME = {
    "resume", "resume_with_changes", "run", "runs_dir", "save_every", "keep", "keep_best", "eval_every", "wandb", "show_every",
    "device", "memory", "plan", "gpus", "gpu_gib", "host_gib",
}  # fmt: skip


def option(default, help: str, *, flag: bool = True, least: float | None = None, above: float | None = None):
    """Make a field with its help; where a value comes from the paper (arXiv 2508.12903), the help says so.

    Args:
        flag: False for a constant that only a preset sets.
        least, above: the lowest number that is allowed, and the highest that is not.
    """
    return field(default=default, metadata={"help": help, "flag": flag, "least": least, "above": above})


@dataclass(frozen=True)
class Config:
    """Everything that decides a training run. Field names are the flags, with dashes."""

    preset: Literal["demo", "default", "paper"] | None = option(None, "named defaults; demo if no --model, else default")
    model: str | None = option(None, "checkpoint folder or hub id (@REVISION may follow); none: the embedded task's tiny model")
    data: str = option(
        "evol-instruct", "file of (question, answer) or (instruction, output), hub:OWNER/NAME:CONFIG:SPLIT, evol-instruct"
    )
    prompts: str | None = option(None, 'JSON file with any of "refine", "plain", "judge", "grade"; or one-shot (an example)')
    judge: str = option(
        "self", "who scores answers (Eq. 5): self (frozen reference), rules, a model's folder or hub id, http(s)://host/v1"
    )
    judge_model: str | None = option(None, "name of the model on the judge's server")
    judge_options: str = option(
        "{}", "JSON with any of concurrency, timeout, max_failures, patience, extra_body (docs/judges.md)"
    )
    judge_sees: Literal["answer", "response"] = option("answer", "what is judged: the answer body, or all (released code)")

    run: str | None = option(None, "name of the run folder; default: preset, date and time")
    runs_dir: str = option("runs", "where run folders go")
    resume: str = option("never", "auto: newest checkpoint of --run; PATH: that checkpoint; never")
    resume_with_changes: bool = option(False, "continue although flags differ from those of the run")
    seed: int = option(0, "seed of data order and sampling")
    steps: int = option(500, "rollout batches to train on", least=1)
    save_every: int = option(50, "steps between checkpoints; the last step is saved, too; 0: only the last", least=0)
    keep: int = option(2, "checkpoints kept; 0: none is ever saved, and the run cannot be continued", least=0)
    eval_every: int = option(
        0, "steps between evaluations (of the demo, or --eval-benchmarks); 0: before and after only", least=0
    )
    eval_benchmarks: str | None = option(None, "asked while a real model trains: names, or name=FILE:KIND; held out of --data")
    eval_limit: int = option(64, "questions of each benchmark, or held-out ones of the demo; always the same", least=1)
    keep_best: str | None = option(None, "metric (eval/NAME/pasr/accuracy, say) whose best checkpoint is kept beside --keep")
    wandb: Literal["online", "offline", "off"] = option("online", "mirror of metrics.jsonl; offline when no key is set")
    show_every: int = option(50, "steps between tables of samples in wandb; 0: none", least=0)

    questions_per_step: int = option(32, "questions of a rollout batch, all GPUs together (paper: 1 on each)", least=1)
    group_size: int = option(8, "G, refine-prompt responses per question (paper: 8)", least=2)
    num_plain: int | None = option(
        None, "n, plain answers per question (paper: 8); none: 8 where r_refine compares with them, else 0", least=0
    )
    temperature: float = option(
        1.0, "sampling temperature, log-probs are of the same distribution (paper's code: 0.9)", above=0
    )
    max_new_tokens: int = option(1500, "longest response, stop token included (paper: 1,500)", least=1)
    max_prompt_tokens: int = option(1024, "questions with a longer prompt are dropped when the data is loaded", least=1)
    max_slots: int | Literal["auto"] = option(
        "auto", "sequences decoded at once; auto: what memory holds, at most 256", least=1
    )
    plain_policy: Literal["current", "reference"] = option("current", "who writes plain answers; reference: cached on disk")
    plain_thinking: Literal["on", "off"] = option("on", "off: plain prompt rendered without native thinking (Qwen3)")

    refine_reward: Literal["compare", "single", "presence", "none"] = option(
        "compare", "compare: Eq. 6; single: with one plain answer; presence: paid always (w/o comparison); none: plain GRPO"
    )
    zeta: float = option(0.05, "half width of the tie band of Eq. 6 (released code: 0)", least=0)
    adv_norm: Literal["group", "batch", "none"] = option("group", "what advantages are divided by: a std, or nothing")
    mask_truncated: bool = option(False, "leave responses that hit --max-new-tokens out of the loss")

    beta: float = option(0.04, "weight of the KL penalty (paper: 0.04); 0 loads no reference for it", least=0)
    clip_low: float = option(0.2, "ratio is clipped below at 1 - clip_low (paper: 0.2)", least=0)
    clip_high: float = option(0.2, "ratio is clipped above at 1 + clip_high (paper: 0.2)", least=0)
    aggregation: Literal["seq", "token", "const"] = option("token", "of tokens: seq (Eq. 3), token (DAPO), const (Dr. GRPO)")
    old_logprobs: Literal["trainer", "sampler"] = option(
        "trainer", "whose log-probs the ratio divides by: the trainer's, or those the sampler recorded"
    )
    epochs_per_batch: int = option(1, "passes over a rollout batch", least=1)
    minibatches: int = option(1, "optimizer steps per pass; with one of one pass the ratio is 1 and clips are inert", least=1)
    micro_batch_tokens: int = option(16_384, "tokens of one forward and backward, a shared prompt counted once", least=1)

    lr: float = option(
        1e-6,
        "learning rate of AdamW (paper: 1e-6); with --lora-rank ten times the default (LoRA Without Regret, 2025)",
        least=0,
    )
    warmup_steps: int = option(10, "steps of linear warm-up", least=0)
    lr_schedule: Literal["constant", "wsd"] = option(
        "constant", "after warm-up; wsd: constant, then a linear decay over the last half", flag=False
    )
    adam_beta2: float = option(0.999, "decay of AdamW's second moment", flag=False)
    max_grad_norm: float | None = option(1.0, "gradient clipping; none: off (released code)", above=0)
    lora_rank: int = option(0, "rank of adapters, trained in place of the model's weights; 0: full fine-tuning", least=0)
    lora_alpha: float = option(32.0, "adapters are scaled by alpha / rank", above=0)
    lora_targets: str = option("all", "layers with an adapter: q_proj,v_proj, say; all: every linear layer of the blocks")
    activation_checkpointing: bool = option(False, "recompute layers in backward: less memory, a third more time")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "auto: cuda if there is one")
    memory: Literal["auto", "shard", "exact-bf16", "offload"] = option(
        "auto", "where training state lives; auto takes the first that fits and may lower --max-slots, --micro-batch-tokens"
    )
    plan: bool = option(False, "print what each phase takes on the machine of --gpus, --gpu-gib and --host-gib, and stop")
    gpus: int | None = option(None, "--plan: GPUs of the run, eight to a node; default: 1", above=0)
    gpu_gib: float | None = option(None, "--plan: GiB of one GPU (80 GB H100: 79.6, H200: 140.4); default: here", above=0)
    host_gib: float | None = option(None, "--plan: GiB of one node; none: said, not checked", above=0)

    sft_steps: int = option(2400, "steps of the warm start of the embedded task's model", least=0)
    sft_seed: int = option(0, "seed of the warm start, of its weights and corpus; --seed varies the RL alone")

    @property
    def needs_baseline(self) -> bool:
        """True where the refinement reward compares with plain answers (r̄ in Eq. 6), so that they must be sampled."""
        return self.refine_reward in ("compare", "single")

    @property
    def plain_samples(self) -> int:
        """Plain answers per question: n; 1 for `single`; what `--num-plain` asks for where only monitoring needs them."""
        if self.refine_reward == "single":
            return 1
        return (8 if self.needs_baseline else 0) if self.num_plain is None else self.num_plain

    @property
    def judge_kind(self) -> Literal["server", "self", "model", "named"]:
        return judge_kind(self.judge)

    @property
    def reference_writes_plain(self) -> bool:
        """True where plain answers are the initial policy's."""
        return self.plain_samples > 0 and self.plain_policy == "reference"

    @property
    def needs_reference(self) -> bool:
        return self.beta > 0 or self.judge_kind == "self" or self.reference_writes_plain


def judge_kind(judge: str) -> Literal["server", "self", "model", "named"]:
    """Tell what `--judge` is: an address, the frozen reference, another model, or a scorer of NAMED_JUDGES."""
    if judge.startswith(("http://", "https://")):
        return "server"
    if judge == "self":
        return "self"
    return "model" if "/" in judge or Path(judge).is_dir() else "named"


PRESETS: dict[str, dict] = {
    "default": {},
    "demo": {
        "questions_per_step": 16, "steps": 200, "save_every": 100, "eval_limit": 2000, "lr": 2e-4, "lr_schedule": "wsd",
        "adam_beta2": 0.95, "warmup_steps": 5, "aggregation": "seq", "max_new_tokens": 40, "zeta": 0.3,
        "plain_policy": "reference", "judge": "rules", "data": DEMO_DATA,
    },
    "paper": {  # one question on each GPU, see preset_values
        "questions_per_step": 1, "steps": 750, "warmup_steps": 0, "aggregation": "seq", "temperature": 0.9, "zeta": 0.0,
        "max_grad_norm": None,
    },
}  # fmt: skip


def preset_values(preset: str, gpus: int | None = None) -> dict:
    """Return the values of a preset; the paper's asks one question on each GPU (default: each process of this run)."""
    values = dict(PRESETS[preset])
    if preset == "paper":
        values["questions_per_step"] *= gpus or int(os.environ.get("WORLD_SIZE", "1"))
    return values


def parse_config(argv: list[str] | None = None) -> Config:
    """Make the configuration of a command line: preset values, overridden by the flags that were given.

    Raises:
        ValueError: a value out of range, or values that do not fit together.
        SystemExit: unknown flag or unreadable value (exit code 2), or --help.
    """
    description = "PASR: reinforcement learning of proactive self-refinement. Without --model: a demo on the embedded task."
    parser = Parser("train.py", description)
    for spec in fields(Config):
        if spec.metadata["flag"]:
            add_flag(parser, spec, PRESETS)
    given = vars(parser.parse_args(argv))
    preset = given.get("preset") or ("default" if given.get("model") else "demo")
    values = preset_values(preset, given.get("gpus") if given.get("plan") else None)
    if given.get("lora_rank"):
        values["lr"] = round(10 * values.get("lr", Config.lr), 12)
    config = Config(**{**values, **given, "preset": preset})
    check(config)
    return config


def check(config: Config) -> None:
    """Refuse values that cannot work, with what to do instead.

    Raises:
        ValueError: the first problem found.
    """
    check_ranges(config)
    for is_wrong, problem in _conflicts(config):
        if is_wrong:
            raise ValueError(problem)


def check_ranges(config) -> None:
    """Refuse numbers out of the ranges that the `option`s of a dataclass name.

    Raises:
        ValueError: the first problem found.
    """
    why = {"max_grad_norm": "; to switch clipping off, say none",
           "temperature": ": a greedy policy explores nothing and has no log-probs"}  # fmt: skip
    for spec in fields(config):
        value, least, above = getattr(config, spec.name), spec.metadata["least"], spec.metadata["above"]
        if not isinstance(value, (int, float)):
            continue
        if not math.isfinite(value):
            raise ValueError(f"{to_flag(spec.name)} is {value}; it must be a finite number")
        if least is not None and value < least:
            raise ValueError(f"{to_flag(spec.name)} is {value}; it must be at least {least}")
        if above is not None and value <= above:
            raise ValueError(f"{to_flag(spec.name)} is {value}; it must be above {above}{why.get(spec.name, '')}")


def _conflicts(config: Config) -> list[tuple[bool, str]]:
    """Values that do not fit together: (whether it is so, what to tell)."""
    run, is_demo = Path(config.run or ""), config.model is None
    other_task = config.data != DEMO_DATA or config.judge_kind != "named"
    return [
        (run.is_absolute() or ".." in run.parts,
         f"--run {run} leads out of --runs-dir; give a name, and the place by --runs-dir"),
        (config.needs_baseline and config.plain_samples == 0, "--num-plain is 0; Eq. 6 compares with at least 1 plain answer"),
        (config.eval_every > 0 and not is_demo and not config.eval_benchmarks,
         "--eval-every with --model needs --eval-benchmarks: which questions are to be asked?"),
        (bool(config.eval_benchmarks) and is_demo, "--eval-benchmarks needs --model: the demo evaluates its own task"),
        (bool(config.keep_best) and not config.eval_benchmarks,
         "--keep-best needs --eval-benchmarks, whose metrics it chooses by"),
        (config.lora_rank > 0 and config.memory != "auto",
         f"--memory {config.memory} moves weights that are trained; with --lora-rank there are hardly any: leave it out"),
        (bool(config.keep_best) and config.keep == 0, "--keep 0 saves nothing; --keep-best needs --keep 1 or more"),
        (is_demo and config.preset != "demo", f"--preset {config.preset} needs --model; without one there is only the demo"),
        (is_demo and other_task, "--data and --judge need --model: the demo's tiny model reads nothing but its own task"),
    ]  # fmt: skip


class Parser(argparse.ArgumentParser):
    """An ArgumentParser of the flags that are given, whose errors are a line, with the flag that may have been meant."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog, description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS)

    def error(self, message: str) -> None:
        unknown = re.fullmatch(r"unrecognized arguments: (--[\w-]+).*", message)
        close = difflib.get_close_matches(unknown[1], self._option_string_actions, n=1) if unknown else []
        hint = f" (do you mean {close[0]}?)" if close else ""
        self.exit(2, f"error: {message}{hint}; {self.prog} --help lists all flags\n")


def to_flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def add_flag(parser: argparse.ArgumentParser, spec, presets: dict[str, dict]) -> None:
    """Add the flag of a dataclass field made by `option`; its help names the default and those of the presets."""
    values = {name: preset[spec.name] for name, preset in presets.items() if spec.name in preset}
    defaults = ([] if spec.default is None else [f"default: {spec.default}"]) + [f"{name}: {v}" for name, v in values.items()]
    text = (spec.metadata["help"] + (f" ({', '.join(defaults)})" if defaults else "")).replace("%", "%%")
    if spec.type is bool:
        parser.add_argument(to_flag(spec.name), action=argparse.BooleanOptionalAction, help=text)
        return
    kind, *more = get_args(spec.type) if get_origin(spec.type) in (types.UnionType, Union) else (spec.type,)
    if get_origin(kind) is Literal:
        parser.add_argument(to_flag(spec.name), choices=get_args(kind), help=text)
        return
    words = {"none": None} if types.NoneType in more else {w: w for other in more for w in get_args(other)}

    def parse(value: str):
        return words[value.lower()] if value.lower() in words else kind(value)

    parse.__name__ = kind.__name__  # argparse names it in its error message
    parser.add_argument(to_flag(spec.name), type=parse, metavar=kind.__name__.upper(), help=text)
