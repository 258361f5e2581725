"""The judge of an evaluation: a scorer for each of the three instructions, and the pass that scores what has been answered."""

from collections.abc import Callable, Iterable
from pathlib import Path

from data.prompts import load_tokenizer
from model import Transformer
from model.checkpoint import fingerprint, resolve_checkpoint
from rewards.instructions import JUDGE_KINDS, benchmark_score, instruction
from rewards.judge import Judgement, Scorer
from rl.config import Config
from rl.evaluation.answer_records import AnswerRecord
from rl.evaluation.methods import METHODS, Turn, answer_text
from rl.judges import is_server, server_judge
from rl.local_judge import LocalJudge
from rl.preflight import preflight


def make_judges(config: Config, model: Transformer, tokenizer, load: Callable[[Path], Transformer]) -> dict[str, Scorer] | None:
    """Scorers by kind ("open", "choice", "summary"), or None for `--judge rules`. The first is tried on known answers.

    Args:
        config: its judge flags and runs_dir, where the cache of scores goes, are used.
        model, tokenizer: what is evaluated, for `--judge self`.
        load: makes a frozen model of a folder, for `--judge PATH`.

    Raises:
        ValueError: the judge cannot be reached, or refuses every call.
    """
    if config.judge == "rules":
        return None
    if is_server(config.judge):
        judges: dict[str, Scorer] = {kind: server_judge(config, instruction(kind, digit=False)) for kind in JUDGE_KINDS}
    else:
        if config.judge != "self":
            folder = resolve_checkpoint(config.judge)
            model, tokenizer = load(folder), load_tokenizer(folder)
        judges = {k: LocalJudge(model, tokenizer, prompt_template=instruction(k, digit=True)) for k in JUDGE_KINDS}
    result = preflight(judges["open"])
    if result.is_unreachable:
        raise ValueError(f"the judge {config.judge} does not answer: {judges['open'].last_failure or 'every score failed'}")
    if not result.is_able:
        print(result.warning())
    return judges


def judge_identity(config: Config, source: Path) -> str | None:
    """What a judge's scores depend on besides the answers; two evaluations with different ones do not mix."""
    if config.judge == "rules":
        return None
    if is_server(config.judge):
        return f"{config.judge_model} {config.judge_extra_body or ''}".strip()
    return str(fingerprint(source if config.judge == "self" else resolve_checkpoint(config.judge)))


def judge_records(judge: Scorer, kind: str, records: Iterable[AnswerRecord]) -> int:
    """Score the records that the judge has not scored, in place; an empty answer scores 0 without a call.

    Returns:
        How many scores could not be had: they stay None, and the next run asks again.

    Raises:
        JudgeRefusedError: no call can work.
    """
    asked = []
    for record in records:
        if record.scores.get("judge") is None:
            text = judged_text(record)
            if text:
                asked.append((record, judge.submit(Judgement(record.question, record.reference, text))))
            else:
                record.scores["judge"] = 0.0
    judge.finish()
    for record, future in asked:
        record.scores["judge"] = benchmark_score(kind, future.result())
    return sum(record.scores["judge"] is None for record, _ in asked)


def judged_text(record: AnswerRecord) -> str:
    """The response that the answer stands in, without its thinking: what the judge reads."""
    if not record.turns:
        return ""
    return answer_text(Turn(**record.turns[record.answer_turn]), METHODS[record.method].mode)
