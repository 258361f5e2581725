"""The judge that `--judge` names, made for the prompts it is to answer, and tried out before the policy is loaded."""

import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from data.prompts import Prompts, load_tokenizer
from model import Transformer
from model.folder import fingerprint, resolve_checkpoint, text_folder
from rewards.accuracy import rules_version
from rewards.http_judge import RESERVED, HttpJudge
from rewards.judge import NAMED_JUDGES, Judgement, Scorer, parse_score
from rewards.judge_prompts import GRADE_PROMPT, JUDGE_PROMPT
from rl.config import judge_kind
from rl.distributed import pick_device
from rl.judging.cache import ScoreCache
from rl.judging.local_judge import GRADES, LocalJudge, mean_grade
from rl.run.console import wrapped
from rl.run.processes import TIMEOUT_MINUTES
from rl.weights.policy import load_frozen

KEY_VARIABLES = ("PASR_JUDGE_API_KEY", "OPENAI_API_KEY")
MARGIN = 0.25  # by which right answers must score above the others, on average

_SUM = ("What is 17 + 26?", "43")
_CAPITAL = ("Name the capital of Japan.", "Tokyo")
_ICE = (
    "Why does ice float on water? Answer in one sentence.",
    "Water expands when it freezes, so ice is less dense than the liquid it floats on.",
)
CASES = (  # answers that are known to be right, wrong or empty
    ("right", Judgement(*_SUM, "17 + 26 = 43")),
    ("right", Judgement(*_CAPITAL, "Tokyo")),
    ("right", Judgement(*_ICE, "Because frozen water takes up more space, it has a lower density than liquid water.")),
    ("wrong", Judgement(*_SUM, "17 + 26 = 53")),
    ("wrong", Judgement(*_CAPITAL, "Seoul")),
    ("wrong", Judgement(*_ICE, "Because ice is warmer than the water below it, and warm things rise.")),
    ("empty", Judgement(*_SUM, "...")),
    ("empty", Judgement(*_ICE, "I do not know.")),
)


@dataclass(frozen=True)
class JudgeOptions:
    """The settings of a judge: `--judge-options` holds any of these fields as JSON."""

    concurrency: int = 64  # calls to the judge's server at a time, of each process
    timeout: float = 60.0  # seconds that one call may take
    max_failures: float = 0.05  # share of a step's scores, on a process, that may be missing; above it training asks again
    patience: float = 600.0  # seconds to wait for a failing judge before the run saves and stops
    extra_body: dict[str, Any] | None = None  # merged into each request, for example to switch a judge's thinking off

    @classmethod
    def parse(cls, text: str) -> "JudgeOptions":
        """Read `--judge-options`.

        Raises:
            ValueError: not a JSON object, an unknown field, or a value that cannot work.
        """
        try:
            options = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"--judge-options is not valid JSON: {error}") from error
        names = [spec.name for spec in fields(cls)]
        if not isinstance(options, dict) or not options.keys() <= set(names):
            raise ValueError(f"--judge-options must be a JSON object with any of {', '.join(names)}; it is {text}")
        options = cls(**options)
        for name, least in {"concurrency": 1, "timeout": 1e-3, "max_failures": 0, "patience": 0}.items():
            value = getattr(options, name)
            if type(value) not in (int, float) or not least <= value < math.inf:
                raise ValueError(f"--judge-options: {name} is {value!r}; it must be a number of at least {least}")
        body, longest = options.extra_body, 60 * TIMEOUT_MINUTES
        for is_wrong, problem in [
            (type(options.concurrency) is not int, f"concurrency is {options.concurrency!r}; it must be a whole number"),
            (options.patience >= longest, f"patience must be below {longest:.0f}; other ranks wait no longer"),
            (not isinstance(body, dict | None), "extra_body must be a JSON object"),
            (isinstance(body, dict) and RESERVED & body.keys(), f"extra_body cannot replace any of {sorted(RESERVED)}"),
        ]:
            if is_wrong:
                raise ValueError(f"--judge-options: {problem}")
        return options


def flags_that_differ(now: dict, before: dict, besides: set[str]) -> list[str]:
    """Return the flags of `now` that differ, besides some; of `--judge-options` only `max_failures` and `extra_body` count."""

    def deciding(name: str, config: dict):
        if name != "judge_options" or config.get(name) is None:
            return config.get(name)
        options = JudgeOptions.parse(config[name])
        return options.max_failures, options.extra_body

    return [name for name in now if name not in besides and deciding(name, now) != deciding(name, before)]


@dataclass(frozen=True)
class JudgeSpec:
    """The judge that a command line names."""

    name: str
    model: str | None  # of a server
    options: JudgeOptions
    folder: Path  # in which the scores of a server are cached
    device: torch.device  # of a judge in this process

    @classmethod
    def of(cls, config, folder: Path) -> "JudgeSpec":
        """Read the judge flags of a configuration.

        Raises:
            ValueError: a judge or option that does not exist, or a server without the name of its model.
        """
        name, options = config.judge, JudgeOptions.parse(config.judge_options)
        if judge_kind(name) == "named" and name not in NAMED_JUDGES:
            others = "self, a model's folder or hub id, or http://HOST/v1"
            raise ValueError(f"no judge is called {name}; say {', '.join(NAMED_JUDGES)}, {others}")
        if judge_kind(name) == "server" and not config.judge_model:
            raise ValueError("--judge with a server needs --judge-model NAME: which of its models is to judge?")
        return cls(name, config.judge_model, options, folder, pick_device(config.device))

    @property
    def kind(self) -> Literal["server", "self", "model", "named"]:
        return judge_kind(self.name)


@dataclass(frozen=True)
class JudgePrompt:
    """A prompt about answers, for either kind of judge."""

    server: str  # for a judge that writes its reply
    local: str  # for a judge whose next-token probabilities are read
    parse: Callable[[str], float | None] = parse_score  # of a reply: a score in [0, 1], or None
    symbols: str = GRADES  # this and the next one: see `LocalJudge`
    read: Callable[[Tensor], Tensor] = mean_grade


def training_prompt(prompts: Prompts) -> JudgePrompt:
    """Return the prompt of Eq. 5 in training."""
    return JudgePrompt(prompts.judge or JUDGE_PROMPT, prompts.grade or GRADE_PROMPT)


def make_scorers(
    spec: JudgeSpec, prompts: dict[str, JudgePrompt], own: tuple[Transformer, PreTrainedTokenizerBase] | None, *, tried: str
) -> dict[str, Scorer]:
    """Make a scorer for each prompt, by name. One, if it is a model, is first tried out on the known answers.

    Args:
        own: model and tokenizer of `--judge self`.
        tried: name of a prompt by which right answers should score higher than wrong ones.

    Raises:
        ValueError: the judge cannot be reached, or refuses every call.
    """
    if spec.kind == "named":
        return {name: NAMED_JUDGES[spec.name]() for name in prompts}

    # a scorer for each prompt
    scorers: dict[str, Scorer] = {}
    if spec.kind == "server":
        options, key = spec.options, next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), None)
        shared = dict(
            concurrency=options.concurrency, timeout=options.timeout, extra_body=options.extra_body, api_key=key,
            cache=ScoreCache(spec.folder / "judge_cache.jsonl"),
        )  # fmt: skip
        for name, prompt in prompts.items():
            scorers[name] = HttpJudge(spec.name, spec.model, prompt_template=prompt.server, parse=prompt.parse, **shared)
    else:
        if spec.kind == "model":
            folder = resolve_checkpoint(spec.name)
            own = load_frozen(folder, spec.device), load_tokenizer(text_folder(folder))
        for name, prompt in prompts.items():
            scorers[name] = LocalJudge(*own, prompt_template=prompt.local, symbols=prompt.symbols, read=prompt.read)

    # the known answers
    scores = preflight(scorers[tried])
    if all(score is None for score in scores):
        hint = ": is a server running there?" if spec.kind == "server" else ""
        raise ValueError(f"the judge {spec.name} does not answer ({scorers[tried].last_failure or 'every score failed'}){hint}")
    if warning := preflight_warning(scores):
        print(warning)
    return scorers


def judge_identity(spec: JudgeSpec, source: Path, prompts: Iterable[JudgePrompt]) -> list[str | None]:
    """Return what a score depends on besides question, reference and answer; scores with different identities do not mix.

    Args:
        source: folder of the model that `--judge self` stands for.
    """
    if spec.kind == "named":
        return [spec.name, rules_version()]
    if spec.kind == "server":
        extra = spec.options.extra_body
        return [spec.model, *(prompt.server for prompt in prompts), json.dumps(extra, sort_keys=True) if extra else None]
    folder = source if spec.kind == "self" else resolve_checkpoint(spec.name)
    return [fingerprint(folder), *(prompt.local for prompt in prompts)]


def preflight(scorer: Scorer) -> list[float | None]:
    """Return the scores of the known answers. These calls do not count in the scorer's stats of the first step."""
    futures = [scorer.submit(item) for _, item in CASES]
    scorer.finish()
    scorer.take_stats()
    return [future.result(timeout=0) for future in futures]


def preflight_warning(scores: list[float | None]) -> str | None:
    """Return the message to a user whose judge does not tell right answers from others, with a line for each known answer.

    None if right answers score on average at least MARGIN above wrong ones, and above empty ones. One judge in sixteen that
    draws its scores at random passes. A kind of answer without any score does not.
    """
    # the mean of each kind
    means = {}
    for kind in ("right", "wrong", "empty"):
        scored = [score for (k, _), score in zip(CASES, scores, strict=True) if k == kind and score is not None]
        means[kind] = fmean(scored) if scored else math.nan
    if all(means["right"] - means[kind] >= MARGIN for kind in ("wrong", "empty")):  # False where a mean is NaN
        return None

    # the message
    lines = [
        "WARNING: this judge does not tell right answers from wrong ones: its scores are noise.",
        f"Mean score of known answers: {', '.join(f'{kind} {mean:.2f}' for kind, mean in means.items())}; "
        f"{scores.count(None)} of {len(scores)} failed.",
        "score   answer is   question -> answer",
    ]
    for (kind, item), score in zip(CASES, scores, strict=True):
        shown = "failed" if score is None else f"{score:.2f}"
        lines.append(wrapped(f"{shown:<8}{kind:<12}{item.question} -> {item.answer}"))
    return "\n".join([*lines, "Use a stronger --judge, or --judge rules where answers can be checked by rule."])
