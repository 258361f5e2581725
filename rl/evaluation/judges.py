"""The judge of an evaluation: what it is asked, and the pass that scores what has been answered."""

from collections.abc import Iterable

from rewards.instructions import JUDGE_KINDS, benchmark_score, instruction
from rewards.judge import Judgement, Scorer
from rl.evaluation.answer_records import AnswerRecord
from rl.evaluation.methods import METHODS, Turn, answer_text
from rl.judges import JudgePrompt

ASKED = {kind: JudgePrompt(instruction(kind, digit=False), instruction(kind, digit=True)) for kind in JUDGE_KINDS}


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
