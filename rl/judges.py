"""The judge that `--judge` names, made for whatever it is to be asked, and tried out before the policy is loaded."""

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from data.prompts import Prompts, load_tokenizer
from model import Transformer
from model.checkpoint import fingerprint, resolve_checkpoint
from rewards.accuracy import rules_version
from rewards.http_judge import HttpJudge
from rewards.judge import NAMED_JUDGES, Scorer, parse_score
from rewards.judge_prompt import JUDGE_PROMPT
from rl.config import Config
from rl.local_judge import GRADE_PROMPT, GRADES, LocalJudge, mean_grade
from rl.memory.build import load_frozen
from rl.preflight import preflight

KEY_VARIABLES = ("PASR_JUDGE_API_KEY", "OPENAI_API_KEY")


@dataclass(frozen=True)
class JudgePrompt:
    """One thing to ask about answers, in the form that either kind of judge can be asked in.

    Attributes:
        server, local: the prompt for a judge that writes its reply, and for one whose next-token probabilities are read.
        parse: reads a reply: a score in [0, 1], or None.
        symbols, read: see `LocalJudge`.
    """

    server: str
    local: str
    parse: Callable[[str], float | None] = parse_score
    symbols: str = GRADES
    read: Callable[[Tensor], Tensor] = mean_grade


def training_prompt(prompts: Prompts) -> JudgePrompt:
    """Eq. 5."""
    return JudgePrompt(prompts.judge or JUDGE_PROMPT, prompts.grade or GRADE_PROMPT)


def make_scorer(
    config: Config, prompts: Prompts, own: tuple[Transformer, PreTrainedTokenizerBase] | None, device: torch.device
) -> Scorer:
    """The scorer of a training run; arguments and errors as in `make_scorers`."""
    return make_scorers(config, {"answer": training_prompt(prompts)}, own, device, tried="answer")["answer"]


def make_scorers(
    config: Config,
    asked: dict[str, JudgePrompt],
    own: tuple[Transformer, PreTrainedTokenizerBase] | None,
    device: torch.device,
    *,
    tried: str,
) -> dict[str, Scorer]:
    """A scorer for each prompt, by name. One, if it is a model, is let score a handful of answers whose worth is known.

    Args:
        config: names the judge; the cache of a server's scores goes into its runs_dir.
        own: model and tokenizer of `--judge self`.
        tried: name of a prompt by which right answers should score higher than wrong ones.

    Raises:
        ValueError: the judge cannot be reached, or refuses every call.
    """
    if config.judge_kind == "named":
        return {name: NAMED_JUDGES[config.judge]() for name in asked}
    if config.judge_kind == "server":
        scorers: dict[str, Scorer] = {name: _server_judge(config, prompt) for name, prompt in asked.items()}
    else:
        model, tokenizer = own if config.judge_kind == "self" else _load_judge(config, device)
        scorers = {
            name: LocalJudge(model, tokenizer, prompt_template=prompt.local, symbols=prompt.symbols, read=prompt.read)
            for name, prompt in asked.items()
        }
    result = preflight(scorers[tried])
    if result.is_unreachable:
        hint = ": is a server running there?" if config.judge_kind == "server" else ""
        raise ValueError(
            f"the judge {config.judge} does not answer ({scorers[tried].last_failure or 'every score failed'}){hint}"
        )
    if not result.is_able:
        print(result.warning())
    return scorers


def _load_judge(config: Config, device: torch.device) -> tuple[Transformer, PreTrainedTokenizerBase]:
    folder = resolve_checkpoint(config.judge)
    return load_frozen(folder, device), load_tokenizer(folder)


def _server_judge(config: Config, prompt: JudgePrompt) -> HttpJudge:
    return HttpJudge(
        config.judge,
        config.judge_model,
        prompt_template=prompt.server,
        parse=prompt.parse,
        concurrency=config.judge_concurrency,
        timeout=config.judge_timeout,
        extra_body=parse_extra_body(config.judge_extra_body),
        cache_file=Path(config.runs_dir) / "judge_cache.jsonl",
        api_key=next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), None),
    )


def parse_extra_body(text: str | None) -> dict | None:
    """`--judge-extra-body` as a dictionary.

    Raises:
        ValueError: not a JSON object.
    """
    if text is None:
        return None
    try:
        body = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--judge-extra-body is not valid JSON: {error}") from error
    if not isinstance(body, dict):
        raise ValueError("--judge-extra-body must be a JSON object")
    return body


def judge_identity(config: Config, source: Path, asked: Iterable[JudgePrompt]) -> list[str | None]:
    """Everything a score depends on besides question, reference and answer; scores with different ones do not mix.

    Args:
        source: folder of the model that `--judge self` stands for.
    """
    if config.judge_kind == "named":
        return [config.judge, rules_version()]
    if config.judge_kind == "server":
        return [config.judge_model, *(prompt.server for prompt in asked), config.judge_extra_body]
    folder = source if config.judge_kind == "self" else resolve_checkpoint(config.judge)
    return [fingerprint(folder), *(prompt.local for prompt in asked)]
