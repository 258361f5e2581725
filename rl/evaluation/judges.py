"""The judge of an evaluation: what it is asked, and the pass that scores what has been answered."""

from collections.abc import Iterable

from rewards.instructions import JUDGE_KINDS, benchmark_score, instruction
from rewards.judge import Judgement, Scorer
from rl.distributed import deal, gather_dealt
from rl.evaluation.answer_records import AnswerRecord
from rl.evaluation.methods import METHODS, Turn, answer_text
from rl.judges import JudgePrompt

ASKED = {kind: JudgePrompt(instruction(kind, digit=False), instruction(kind, digit=True)) for kind in JUDGE_KINDS}


def judge_records(judge: Scorer, kind: str, records: Iterable[AnswerRecord]) -> int:
    """Score the records that the judge has not scored, in place; an empty answer scores 0 without a call. All ranks call this
    with the same records and share them out.

    Returns:
        How many scores could not be had: they stay None, and the next run asks again.

    Raises:
        JudgeRefusedError: no call can work.
    """
    unscored = [record for record in records if record.scores.get("judge") is None]
    asked = {}
    for i, record in enumerate(share := deal(unscored)):
        if text := judged_text(record):
            asked[i] = judge.submit(Judgement(record.question, record.reference, text))
    judge.finish()
    own = [benchmark_score(kind, asked[i].result()) if i in asked else 0.0 for i in range(len(share))]
    scores = gather_dealt(own)
    for record, score in zip(unscored, scores, strict=True):
        record.scores["judge"] = score
    return scores.count(None)


def judged_text(record: AnswerRecord) -> str:
    """The response that the answer stands in, without its thinking: what the judge reads."""
    if not record.turns:
        return ""
    return answer_text(Turn(**record.turns[record.answer_turn]), METHODS[record.method].mode)
