"""The configuration: one frozen dataclass is the command line. Every default stands here, once."""

import argparse
import os
import types
from dataclasses import dataclass, field, fields
from typing import Literal, Union, get_args, get_origin

from rewards.judge import NAMED_JUDGES
from rewards.refine import REFINE_REWARDS, needs_baseline
from rl.advantages import NORMS
from rl.config_checks import DEMO_DATA, check, to_flag
from rl.loss import AGGREGATIONS, KL_ESTIMATORS
from rl.terminal import Parser


def option(default, help: str):
    """A field with its help; where a value comes from the paper (arXiv 2508.12903), the help says so."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Config:
    """Everything that decides a training run. Field names are the flags, with dashes."""

    preset: Literal["demo", "default", "paper"] | None = option(None, "named defaults; demo if no --model, else default")
    model: str | None = option(None, "checkpoint folder or hub id; none: the embedded task and its tiny model")
    revision: str | None = option(None, "branch, tag or commit of a hub id")
    data: str = option(
        "evol-instruct", "file of (question, answer) or (instruction, output), hub:OWNER/NAME:CONFIG:SPLIT, evol-instruct"
    )
    prompts: str | None = option(None, 'JSON file that replaces any of the prompts "refine", "plain", "judge", "grade"')
    judge: str = option("self", "who scores answers (Eq. 5): self (frozen reference), rules, a model folder, http(s)://host/v1")
    judge_model: str | None = option(None, "name of the model on the judge's server")
    judge_extra_body: str | None = option(None, "JSON merged into each request, for example to switch a judge's thinking off")
    judge_concurrency: int = option(64, "calls to the judge's server at a time, of each process")
    judge_timeout: float = option(60.0, "seconds a call to the judge's server may take")
    judge_max_failures: float = option(
        0.05, "share of a step's scores, on a process, that may be missing; above it training asks again"
    )
    judge_patience: float = option(600.0, "seconds to wait for a failing judge before the run saves and stops")
    judge_sees: Literal["answer", "response"] = option("answer", "what is judged: the answer body, or all (released code)")

    run: str | None = option(None, "name of the run folder; default: preset, date and time")
    runs_dir: str = option("runs", "where run folders go")
    resume: str = option("never", "auto: newest checkpoint of --run; PATH: that checkpoint; never")
    resume_with_changes: bool = option(False, "continue although flags differ from those of the run")
    seed: int = option(0, "of data order and sampling")
    steps: int = option(500, "rollout batches to train on")
    save_every: int = option(50, "steps between checkpoints; the last step is always saved; 0: only the last")
    keep: int = option(2, "checkpoints kept")
    eval_every: int = option(0, "steps between evaluations (embedded task, or --eval-benchmarks); 0: before and after only")
    eval_questions: int = option(2000, "held-out questions of an evaluation of the embedded task")
    eval_benchmarks: str | None = option(None, "asked while a real model trains: names, or name=FILE:KIND; held out of --data")
    eval_data_dir: str | None = option(None, "folder of the benchmarks' files in the released layout; none: from the hub")
    eval_limit: int = option(64, "questions of each benchmark; always the same ones")
    eval_temperature: float = option(0.0, "of these answers; 0 is greedy")
    keep_best: str | None = option(None, "metric (eval/NAME/pasr/accuracy, say) whose best checkpoint is kept beside --keep")
    wandb: Literal["online", "offline", "off"] = option("online", "mirror of metrics.jsonl; offline when no key is set")
    wandb_group: str | None = option(None, "group of runs in wandb; default: the flags that differ from the preset but seeds")
    table_every: int = option(50, "steps between tables of samples in wandb; 0: none")

    questions_per_step: int = option(32, "questions of a rollout batch, all GPUs together (paper: 1 on each)")
    group_size: int = option(8, "G, refine-prompt responses per question (paper: 8)")
    num_plain: int = option(8, "n, plain answers per question for the baseline (paper: 8)")
    temperature: float = option(1.0, "of sampling; log-probs are of the same distribution (released code: 0.9)")
    max_new_tokens: int = option(1500, "longest response, stop token included (paper: 1,500)")
    max_prompt_tokens: int = option(1024, "questions with a longer prompt are dropped when the data is loaded")
    max_slots: int | Literal["auto"] = option("auto", "sequences decoded at once; auto: what free memory holds, at most 256")
    plain_policy: Literal["current", "reference"] = option("current", "who writes plain answers; reference: cached on disk")
    plain_thinking: Literal["on", "off"] = option("on", "off: plain prompt rendered without native thinking (Qwen3)")
    monitor_plain: bool = option(False, "sample plain answers even where --refine-reward needs none")

    refine_reward: Literal[REFINE_REWARDS] = option(
        "compare", "Eq. 6; single: one plain answer (w/o multi-answer); presence: paid always (w/o comparison); none"
    )
    zeta: float = option(0.05, "half width of the tie band of Eq. 6 (released code: 0)")
    gate_refine: bool = option(False, "the refinement reward counts only where some response of the group is right")
    format_weight: float = option(1.0, "of r_format in Eq. 7 (paper: 1)")
    accuracy_weight: float = option(1.0, "of r_acc in Eq. 7 (paper: 1)")
    refine_weight: float = option(1.0, "of r_refine in Eq. 7 (paper: 1)")
    adv_norm: Literal[NORMS] = option("group", "what advantages are divided by: a std, or nothing")
    adv_eps: float = option(1e-4, "xi, floor of that std (Eq. 2; released code: 1e-4)")
    mask_truncated: bool = option(False, "leave responses that hit --max-new-tokens out of the loss")

    beta: float = option(0.04, "weight of the KL penalty (paper: 0.04); 0 loads no reference for it")
    kl_estimator: Literal[KL_ESTIMATORS] = option("k3", "k3 in the loss (Eq. 3), k3 x ratio, k1 in the reward")
    clip_low: float = option(0.2, "ratio is clipped below at 1 - clip_low (paper: 0.2)")
    clip_high: float = option(0.2, "ratio is clipped above at 1 + clip_high (paper: 0.2)")
    aggregation: Literal[AGGREGATIONS] = option("token", "of tokens: seq (Eq. 3), token (DAPO), const (Dr. GRPO)")
    old_logprobs: Literal["trainer", "sampler"] = option("trainer", "whose log-probs are the denominator of the ratio")
    importance_cap: float = option(0.0, "truncated importance weight trainer/sampler on each token, capped here; 0: off")
    epochs_per_batch: int = option(1, "passes over a rollout batch")
    minibatches: int = option(1, "optimizer steps per pass; with one pass and one minibatch the ratio is 1 and clips are inert")
    micro_batch_tokens: int = option(16_384, "tokens of one forward and backward, a shared prompt counted once")

    lr: float = option(1e-6, "learning rate of AdamW (paper: 1e-6)")
    warmup_steps: int = option(10, "steps of linear warm-up")
    lr_schedule: Literal["constant", "linear", "cosine"] = option("constant", "after warm-up; the others decay to 0")
    lr_decay_share: float = option(1.0, "the decay takes this last part of all steps")
    adam_beta1: float = option(0.9, "AdamW")
    adam_beta2: float = option(0.999, "AdamW")
    weight_decay: float = option(0.0, "AdamW")
    max_grad_norm: float | None = option(1.0, "gradient clipping; none: off (released code)")
    activation_checkpointing: bool = option(False, "recompute layers in backward: less memory, a third more time")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "auto: cuda if there is one")
    memory: Literal["auto", "shard", "exact-bf16", "offload"] = option(
        "auto", "where training state lives; auto takes the fastest that fits and may lower --max-slots, --micro-batch-tokens"
    )
    reference_memory: Literal["auto", "device", "host"] = option("auto", "host: reference streamed layer by layer from there")
    plan: bool = option(False, "print what each phase takes on the machine below, and what --memory auto would do, and stop")
    gpus: int | None = option(None, "--plan: GPUs of the run, eight to a node; default: 1")
    gpu_gib: float | None = option(None, "--plan: memory of one GPU in GiB (80 GB H100: 79.6, H200: 140.4); default: here")
    host_gib: float | None = option(None, "--plan: memory of one node in GiB; none: said, not checked")
    dist_timeout: float = option(120.0, "minutes a process waits for others, whose rollouts may take longer than its own")

    sft_steps: int = option(2400, "warm start of the embedded task's model, in steps")
    sft_seed: int = option(0, "of the warm start: its weights and corpus; --seed varies the RL alone")

    @property
    def uses_plain(self) -> bool:
        """Whether plain answers are sampled at all."""
        return needs_baseline(self.refine_reward) or self.monitor_plain

    @property
    def plain_samples(self) -> int:
        """Plain answers per question."""
        return 0 if not self.uses_plain else 1 if self.refine_reward == "single" else self.num_plain

    @property
    def judge_kind(self) -> Literal["named", "self", "server", "model"]:
        """What --judge is: one of NAMED_JUDGES, the frozen reference, an address, or another model."""
        if self.judge in NAMED_JUDGES:
            return "named"
        if self.judge.startswith(("http://", "https://")):
            return "server"
        return "self" if self.judge == "self" else "model"

    @property
    def reference_writes_plain(self) -> bool:
        """Whether plain answers are the initial policy's."""
        return self.uses_plain and self.plain_policy == "reference"

    @property
    def needs_reference(self) -> bool:
        return self.beta > 0 or self.judge_kind == "self" or self.reference_writes_plain


PRESETS: dict[str, dict] = {
    "default": {},
    "demo": {
        "questions_per_step": 16,
        "steps": 200,
        "save_every": 100,
        "lr": 2e-4,
        "lr_schedule": "linear",
        "lr_decay_share": 0.5,
        "adam_beta2": 0.95,
        "warmup_steps": 5,
        "aggregation": "seq",
        "max_new_tokens": 40,
        "zeta": 0.3,
        "plain_policy": "reference",
        "judge": "rules",
        "data": DEMO_DATA,
    },
    "paper": {
        "questions_per_step": 1,  # on each GPU, see preset_values
        "steps": 750,
        "warmup_steps": 0,
        "aggregation": "seq",
        "temperature": 0.9,
        "max_grad_norm": None,
        "zeta": 0.0,
    },
}


def preset_values(preset: str, gpus: int | None = None) -> dict:
    """The values of a preset on so many GPUs; default: the processes of this run. The paper's asks a question on each."""
    values = dict(PRESETS[preset])
    if preset == "paper":
        values["questions_per_step"] *= gpus or int(os.environ.get("WORLD_SIZE", "1"))
    return values


def parse_config(argv: list[str] | None = None) -> Config:
    """The configuration of a command line: preset values, overridden by the flags that were given.

    Raises:
        ValueError: a value out of range, or values that do not fit together.
        SystemExit: unknown flag or unreadable value (exit code 2), or --help.
    """
    parser = Parser(
        prog="train.py",
        description="PASR: reinforcement learning of proactive self-refinement. Without --model: a demo on the embedded task.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    for spec in fields(Config):
        _add_flag(parser, spec)
    given = vars(parser.parse_args(argv))
    preset = given.get("preset") or ("default" if given.get("model") else "demo")
    config = Config(**{**preset_values(preset, given.get("gpus") if given.get("plan") else None), **given, "preset": preset})
    check(config)
    return config


def _add_flag(parser: argparse.ArgumentParser, spec) -> None:
    flag = to_flag(spec.name)
    values = {name: preset[spec.name] for name, preset in PRESETS.items() if spec.name in preset}
    others = "".join(f", {name}: {value}" for name, value in values.items())
    text = f"{spec.metadata['help']} (default: {spec.default}{others})".replace("%", "%%")
    if spec.type is bool:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
        return
    kind, *more = get_args(spec.type) if get_origin(spec.type) in (types.UnionType, Union) else (spec.type,)
    if get_origin(kind) is Literal:
        parser.add_argument(flag, choices=get_args(kind), help=text)
    else:
        words = {"none": None} if types.NoneType in more else {w: w for other in more for w in get_args(other)}
        parser.add_argument(flag, type=_or_word(kind, words) if words else kind, metavar=kind.__name__.upper(), help=text)


def _or_word(kind: type, words: dict):
    """A parser of `kind` that also knows some words."""

    def parse(text: str):
        return words[text.lower()] if text.lower() in words else kind(text)

    parse.__name__ = kind.__name__  # argparse names it in its error message
    return parse
