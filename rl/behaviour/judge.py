"""The judge's part of the behaviour analyses: coherence, alignment and kind of refinements, by the judge of --judge."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from data.prompts import load_tokenizer
from model import Transformer
from model.checkpoint import resolve_checkpoint
from rewards.behaviour_prompt import INSTRUCTIONS, Instruction, parse_option
from rewards.format import parse_response
from rewards.judge import Judgement, Scorer, parse_score
from rewards.refinements import find_refinements, without_tags
from rl.config import Config
from rl.judges import is_server, server_judge
from rl.local_judge import LocalJudge, likely_option, mean_grade


def make_behaviour_scorers(config: Config, load: Callable[[Path], Transformer]) -> dict[str, Scorer]:
    """A scorer for each of `INSTRUCTIONS`.

    Args:
        config: its judge is a server, or a folder or hub id.
        load: makes a frozen model of a folder.

    Raises:
        ValueError: the judge is neither, or cannot be used.
    """
    if config.judge in ("rules", "self"):
        raise ValueError(f"--judge {config.judge} cannot judge behaviour: give a model folder, a hub id or http(s)://host/v1")
    if is_server(config.judge):
        return {name: server_judge(config, i.for_server(), _reply_parser(i)) for name, i in INSTRUCTIONS.items()}
    folder = resolve_checkpoint(config.judge)
    model, tokenizer = load(folder), load_tokenizer(folder)
    return {name: _local_judge(model, tokenizer, instruction) for name, instruction in INSTRUCTIONS.items()}


def _reply_parser(instruction: Instruction) -> Callable[[str], float | None]:
    return partial(parse_option, count=len(instruction.options)) if instruction.options else parse_score


def _local_judge(model: Transformer, tokenizer, instruction: Instruction) -> LocalJudge:
    prompt = instruction.for_local()
    if instruction.options:
        return LocalJudge(model, tokenizer, prompt_template=prompt, symbols=instruction.letters, read=likely_option)
    return LocalJudge(model, tokenizer, prompt_template=prompt, read=mean_grade)


def behaviour_items(question: str, response: str) -> dict[str, list[Judgement]]:
    """What each of `INSTRUCTIONS` is asked about one response; nothing about a malformed one.

    Coherence and kind are asked of each refinement, coherence only where something stands before it.
    """
    parsed = parse_response(response)
    if parsed is None:
        return {name: [] for name in INSTRUCTIONS}
    refinements = find_refinements(response)
    return {
        "coherence": [Judgement(question, r.before, f"{r.body}\n{r.after}".strip()) for r in refinements if r.before],
        "alignment": [Judgement(question, without_tags(parsed.think), parsed.answer)],
        "kind": [Judgement(question, r.before or "(nothing yet)", r.body) for r in refinements],
    }


def ask_all(scorers: dict[str, Scorer], items: dict[str, list[Judgement]]) -> dict[str, list[float | None]]:
    """The scores of each instruction's items, None where one could not be had or read."""
    futures = {name: [scorers[name].submit(item) for item in asked] for name, asked in items.items()}
    for name in items:
        scorers[name].finish()
    return {name: [future.result() for future in asked] for name, asked in futures.items()}
