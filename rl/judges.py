"""The scorer that `--judge` names, made and tried out before the policy is loaded."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from data.prompts import Prompts, load_tokenizer
from model import Transformer
from model.checkpoint import fingerprint, resolve_checkpoint
from rewards.http_judge import HttpJudge
from rewards.judge import RuleScorer, Scorer
from rewards.judge_prompt import JUDGE_PROMPT
from rl.config import Config
from rl.local_judge import GRADE_PROMPT, LocalJudge
from rl.preflight import preflight

KEY_VARIABLES = ("PASR_JUDGE_API_KEY", "OPENAI_API_KEY")


def is_server(judge: str) -> bool:
    return judge.startswith(("http://", "https://"))


def make_scorer(
    config: Config, prompts: Prompts, tokenizer, reference: Transformer | None, load: Callable[[Path], Transformer]
) -> Scorer:
    """Build the judge and let it score a handful of answers whose worth is known.

    Args:
        tokenizer, reference: of the frozen initial policy, for `--judge self`.
        load: makes a frozen model of a folder, for `--judge PATH`.

    Raises:
        ValueError: the judge cannot be reached, or refuses every call.
    """
    if config.judge == "rules":
        return RuleScorer()
    if is_server(config.judge):
        scorer: Scorer = server_judge(config, prompts.judge or JUDGE_PROMPT)
    elif config.judge == "self":
        scorer = LocalJudge(reference, tokenizer, prompt_template=prompts.grade or GRADE_PROMPT)
    else:
        folder = resolve_checkpoint(config.judge)
        scorer = LocalJudge(load(folder), load_tokenizer(folder), prompt_template=prompts.grade or GRADE_PROMPT)
    result = preflight(scorer)
    if result.is_unreachable:
        raise ValueError(f"the judge {config.judge} does not answer: {scorer.last_failure or 'every score failed'}")
    if not result.is_able:
        print(result.warning())
    return scorer


def server_judge(config: Config, prompt: str) -> HttpJudge:
    """The server of --judge, asked with a prompt of one's own."""
    return HttpJudge(
        config.judge,
        config.judge_model,
        prompt_template=prompt,
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


def judge_identity(config: Config, prompts: Prompts, source: Path) -> list:
    """Everything a score depends on besides question, reference and answer; must be JSON.

    Args:
        source: folder of the reference, the judge of `--judge self`.
    """
    if config.judge == "rules":
        return ["rules"]
    if is_server(config.judge):
        return [config.judge_model, prompts.judge or JUDGE_PROMPT, config.judge_extra_body]
    folder = source if config.judge == "self" else resolve_checkpoint(config.judge)
    return [fingerprint(folder), prompts.grade or GRADE_PROMPT]
