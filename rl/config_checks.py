"""Whether the values of a `Config` can work, each alone and together."""

import math
from dataclasses import fields
from pathlib import Path

from rewards.judge import NAMED_JUDGES

DEMO_DATA = "division"  # --data of the embedded task


def to_flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def check(config) -> None:
    """Refuse values that cannot work, with what to do instead.

    Raises:
        ValueError: the first problem found.
    """
    _check_ranges(config)
    _check_together(config)
    check_judge(config)


def _check_ranges(config) -> None:
    least = {
        2: ("group_size",),
        1: ("steps", "questions_per_step", "num_plain", "max_new_tokens", "max_prompt_tokens", "keep", "epochs_per_batch",
            "minibatches", "micro_batch_tokens", "eval_questions", "eval_limit", "judge_concurrency", "max_slots"),
        0: ("zeta", "beta", "clip_low", "clip_high", "lr", "warmup_steps", "weight_decay", "importance_cap", "adv_eps",
            "save_every", "eval_every", "sft_steps", "judge_max_failures", "judge_patience", "eval_temperature", "table_every"),
    }  # fmt: skip
    for minimum, names in least.items():
        for name in names:
            if (value := getattr(config, name)) != "auto" and value < minimum:
                raise ValueError(f"{to_flag(name)} is {value}; it must be at least {minimum}")
    for spec in fields(config):
        value = getattr(config, spec.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{to_flag(spec.name)} is {value}; it must be a finite number")
    for name in ("gpus", "gpu_gib", "host_gib"):
        if getattr(config, name) is not None and getattr(config, name) <= 0:
            raise ValueError(f"{to_flag(name)} is {getattr(config, name)}; it must be above 0")
    if config.max_grad_norm is not None and config.max_grad_norm <= 0:
        raise ValueError("--max-grad-norm must be above 0; to switch clipping off, say none")
    if not (0 <= config.adam_beta1 < 1 and 0 <= config.adam_beta2 < 1):
        raise ValueError("--adam-beta1 and --adam-beta2 must be at least 0 and below 1")
    if config.temperature <= 0:
        raise ValueError("--temperature must be above 0: a greedy policy explores nothing and has no log-probs")
    if config.run and (Path(config.run).is_absolute() or ".." in Path(config.run).parts):
        raise ValueError(f"--run {config.run} leads out of --runs-dir; give a name, and the place by --runs-dir")


def _check_together(config) -> None:
    if config.dist_timeout * 60 <= config.judge_patience:
        raise ValueError("--dist-timeout (minutes) must be longer than --judge-patience (seconds): others wait meanwhile")
    if config.eval_every and config.model and not config.eval_benchmarks:
        raise ValueError("--eval-every with --model needs --eval-benchmarks: which questions are to be asked?")
    if config.eval_benchmarks and not config.model:
        raise ValueError("--eval-benchmarks needs --model: the demo evaluates its own task")
    if config.keep_best and not config.eval_benchmarks:
        raise ValueError("--keep-best needs --eval-benchmarks, whose metrics it chooses by")
    if config.kl_estimator == "k1-reward" and (config.beta == 0 or config.mask_truncated):
        raise ValueError("--kl-estimator k1-reward needs --beta above 0, and goes without --mask-truncated")
    if config.kl_estimator == "k1-reward" and config.old_logprobs == "sampler":
        raise ValueError("--kl-estimator k1-reward needs --old-logprobs trainer")
    if config.importance_cap and config.old_logprobs == "sampler":
        raise ValueError("--importance-cap corrects the trainer's ratio; it needs --old-logprobs trainer")
    if config.reference_memory == "host" and config.reference_writes_plain:
        raise ValueError(
            "--plain-policy reference decodes with the reference, and from host memory every token would wait for all weights; "
            "use --reference-memory device, or --plain-policy current"
        )
    if config.model is None and config.preset != "demo":
        raise ValueError(f"--preset {config.preset} needs --model; without one there is only the demo")
    if config.model is None and (config.data != DEMO_DATA or config.judge_kind != "named"):
        raise ValueError("--data and --judge need --model: the tiny model of the demo reads nothing but its own task")


def check_judge(config) -> None:
    """Refuse a --judge that cannot be one.

    Raises:
        ValueError: it is nothing that is known, or a server without the name of a model.
    """
    if config.judge_kind == "server" and not config.judge_model:
        raise ValueError("--judge with a server needs --judge-model NAME: which of its models is to judge?")
    if config.judge_kind == "model" and "/" not in config.judge and not Path(config.judge).is_dir():
        known = ", ".join(NAMED_JUDGES)
        raise ValueError(f"no judge is called {config.judge}; say {known}, self, a model's folder or hub id, or http://HOST/v1")
