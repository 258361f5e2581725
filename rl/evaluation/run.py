"""Runs benchmarks: every question by every method, scored by rule as answers end, then by the judge.

Answers are appended to their record file as they end, so an evaluation that is interrupted goes on where it stopped; draws are
pure functions of the seed and the question, so it ends up with the same answers, on one process or on several.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from data.benchmark_rows import BenchmarkItem
from data.benchmarks import Benchmark
from rewards.accuracy import RULES, rules_version, score_benchmark
from rewards.judge import RIGHT, Judgement, Scorer
from rewards.judge_prompts import JUDGE_KINDS, benchmark_score, instruction
from rl.distributed import broadcast_from_main, gather, gather_split, is_main, split_over_ranks, world_size
from rl.evaluation.methods import METHODS, Answerer, Method, Turn, UnreadableError, answer_text, says_it_holds
from rl.evaluation.records import AnswerRecord, RecordFile
from rl.judging.judge import JudgePrompt

BAR_FORMAT = "{desc:30} {n_fmt}/{total_fmt} |{bar:8}| {elapsed}<{remaining}{postfix}"
Place = tuple[str, int]  # id of a question, number of the answer to it


def run_benchmark(
    answerer: Answerer,
    benchmark: Benchmark,
    items: list[BenchmarkItem],
    method: Method,
    folder: Path,
    judges: dict[str, Scorer],
    tell: Callable[[str], None] = print,
) -> list[AnswerRecord]:
    """All answers of one method to one benchmark, taken from the record file or drawn now; ranks share the questions out.

    Args:
        items: its questions.
        folder: of the evaluation.
        judges: by kind; none: rules alone.
        tell: prints a line.
    """
    title, order = f"{benchmark.name}, {method.name}", [item.id for item in items]

    def take_stock() -> set[Place]:
        file = RecordFile(folder, benchmark.name, method.name)
        if stale := rescore(file, benchmark, method, items):
            tell(f"{title}: the rules have changed; {stale} answers that are there already are scored anew")
        missing = {(id, i) for id in order for i in range(answerer.decoding.samples)} - file.records.keys()
        if missing and file.records:
            tell(f"{title}: {len(file.records)} answers are there already, {len(missing)} to go")
        return missing

    if missing := broadcast_from_main(take_stock):
        answerer.shortened = 0
        _answer_share(answerer, benchmark, items, method, folder, missing)
        shortened = sum(gather(answerer.shortened))  # from here on all ranks have answered
        broadcast_from_main(lambda: RecordFile(folder, benchmark.name, method.name).rewrite(order))
        if shortened:
            tell(f"{title}: {shortened} answers had less room than --max-new-tokens")
    file = RecordFile(folder, benchmark.name, method.name, mend=False)
    if judges and any(record.scores.get("judge") is None for record in file.records.values()):
        judge = judges[benchmark.judge_kind]
        failed = judge_records(judge, benchmark.judge_kind, file.records.values())
        broadcast_from_main(lambda: file.rewrite(order))
        if failed:
            why = next(filter(None, gather(judge.last_failure)), "")
            tell(f"{title}: no judge's score for {failed} answers ({why}); the next run asks again")
    return list(file.records.values())


def rescore(file: RecordFile, benchmark: Benchmark, method: Method, items: list[BenchmarkItem]) -> int:
    """Score the answers that other rules have scored again, and return how many these were.

    Which answers of an oracle were sent back stays as the rules of that time decided it.
    """
    by_id = {item.id: item for item in items}
    stale = [r for r in file.records.values() if r.rules != rules_version() and r.id in by_id and not r.unreadable]
    for record in stale:
        turns = [Turn(**turn) for turn in record.turns]
        new = score_answer(benchmark, method, by_id[record.id], record.sample, turns)
        new.scores["judge"] = record.scores.get("judge")
        file.records[record.id, record.sample] = new
    if stale:
        file.rewrite([item.id for item in items])
    return len(stale)


def _answer_share(
    answerer: Answerer, benchmark: Benchmark, items: list[BenchmarkItem], method: Method, folder: Path, missing: set[Place]
) -> None:
    """Draw this rank's share of the missing answers, and append each to the record file as it ends."""
    asked = {id for id, _ in missing}
    share = split_over_ranks([item for item in items if item.id in asked])
    ids = {item.id for item in share}
    missing = {place for place in missing if place[0] in ids}
    part = f" (1/{world_size()})" if world_size() > 1 else ""
    with tqdm(
        total=len(missing), desc=f"{benchmark.name}, {method.name}{part}", bar_format=BAR_FORMAT, disable=not is_main()
    ) as bar:
        keep = _keeper(RecordFile(folder, benchmark.name, method.name, mend=False), bar)
        _answer_missing(answerer, benchmark, share, method, keep, missing, _shared_first_turns(folder, benchmark, method))


def _keeper(file: RecordFile, bar: tqdm) -> Callable[[AnswerRecord], None]:
    """Appends records and shows how it goes."""
    total = Counter()

    def keep(record: AnswerRecord) -> None:
        file.append(record)
        total.update(answers=1, score=record.scores["rule"], tokens=record.tokens)
        bar.set_postfix_str(f"score {total['score'] / total['answers']:.3f}, {total['tokens']} tokens", refresh=False)
        bar.update()

    return keep


def _answer_missing(
    answerer: Answerer,
    benchmark: Benchmark,
    items: list[BenchmarkItem],
    method: Method,
    keep_record: Callable[[AnswerRecord], None],
    missing: set[Place],
    shared: dict[Place, Turn],
) -> None:
    """Draw the missing answers to these questions, and hand each to `keep_record` as it ends."""

    def keep(item: BenchmarkItem, sample: int, turns: list[Turn]) -> None:
        if (item.id, sample) in missing:
            keep_record(score_answer(benchmark, method, item, sample, turns))

    wanted: dict[str, list[int]] = {}
    for id, sample in sorted(missing):
        wanted.setdefault(id, []).append(sample)
    readable = []
    for item in items:
        try:
            answerer.check(item, method.mode)
        except UnreadableError as error:
            for sample in wanted[item.id]:
                keep_record(unreadable_record(benchmark, method, item, sample, str(error)))
        else:
            readable.append(item)
    if method.review is None:
        answerer.first_turns(readable, method.mode, keep)
        return

    first = {(item.id, i): turn for item in readable for i in _samples(answerer) if (turn := shared.get((item.id, i)))}
    unknown = [item for item in readable if any((item.id, i) not in first for i in _samples(answerer))]
    answerer.first_turns(unknown, method.mode, lambda item, i, turns: first.update({(item.id, i): turns[0]}))
    to_review = []
    for item in readable:
        for i in _samples(answerer):
            turn = first[item.id, i]
            score = score_benchmark(benchmark.kind, answer_text(turn, method.mode), item.references, item.options)[1]
            if method.only_wrong and score >= RIGHT:
                keep(item, i, [turn])
            elif (item.id, i) in missing:
                to_review.append((item, i, turn))
    answerer.second_turns(to_review, method, keep)


def _samples(answerer: Answerer) -> range:
    return range(answerer.decoding.samples)


def _shared_first_turns(folder: Path, benchmark: Benchmark, method: Method) -> dict[Place, Turn]:
    """Vanilla's answers, which are the first turns of the methods that review: same prompt, same draws."""
    if method.review is None:
        return {}
    assert method.mode == METHODS["vanilla"].mode
    known = RecordFile(folder, benchmark.name, "vanilla", mend=False).records
    return {place: Turn(**record.turns[0]) for place, record in known.items() if record.turns}


def score_answer(benchmark: Benchmark, method: Method, item: BenchmarkItem, sample: int, turns: list[Turn]) -> AnswerRecord:
    """The record of an answer, scored by rule. Where a review leaves the solution as it is, the answer before it stands."""
    place = len(turns) - 1
    if place and says_it_holds(turns[place]):
        place -= 1
    answer, score = score_benchmark(benchmark.kind, answer_text(turns[place], method.mode), item.references, item.options)
    scores: dict[str, float | None] = {"rule": score, "judge": None}
    if (exact := RULES[benchmark.kind].exact) is not None:
        scores["exact"] = 0.0 if answer is None else exact(answer, item.references)
    return AnswerRecord(
        benchmark=benchmark.name,
        method=method.name,
        id=item.id,
        sample=sample,
        question=item.question,
        reference=item.reference,
        turns=[asdict(turn) for turn in turns],
        answer=answer,
        answer_turn=place,
        tokens=sum(turn.tokens for turn in turns),
        scores=scores,
        rules=rules_version(),
    )


def unreadable_record(benchmark: Benchmark, method: Method, item: BenchmarkItem, sample: int, why: str) -> AnswerRecord:
    """The record of a question that the model could not be given: a score of 0, and the reason."""
    scores: dict[str, float | None] = {"rule": 0.0, "judge": None}
    if RULES[benchmark.kind].exact is not None:
        scores["exact"] = 0.0
    return AnswerRecord(
        benchmark.name, method.name, item.id, sample, item.question, item.reference, [], None, 0, 0, scores, why
    )


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
    for i, record in enumerate(share := split_over_ranks(unscored)):
        if text := judged_text(record):
            asked[i] = judge.submit(Judgement(record.question, record.reference, text))
    judge.finish()
    own = [benchmark_score(kind, asked[i].result()) if i in asked else 0.0 for i in range(len(share))]
    scores = gather_split(own)
    for record, score in zip(unscored, scores, strict=True):
        record.scores["judge"] = score
    return scores.count(None)


def judged_text(record: AnswerRecord) -> str:
    """The response that the answer stands in, without its thinking: what the judge reads."""
    if not record.turns:
        return ""
    return answer_text(Turn(**record.turns[record.answer_turn]), METHODS[record.method].mode)
