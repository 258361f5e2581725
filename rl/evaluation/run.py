"""Run benchmarks: every question by every method, scored by rule as answers end, then by the judge.

Answers are appended to their record file as they end, so an interrupted evaluation goes on where it stopped. Draws are pure
functions of the seed and the question, so it ends up with the same answers, on one process or on several.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from data.benchmarks import Benchmark, BenchmarkItem
from rewards.accuracy import RULES, rules_version, score_benchmark
from rewards.judge import RIGHT, Judgement, Scorer
from rewards.judge_prompts import JUDGE_KINDS, benchmark_score, instruction
from rl.distributed import broadcast_from_main, gather, gather_split, is_main, split_over_ranks, world_size
from rl.evaluation.methods import METHODS, Answerer, Method, Turn, answer_text, says_it_holds
from rl.evaluation.records import AnswerRecord, RecordFile
from rl.judging.judge import JudgePrompt

BAR_FORMAT = "{desc:30} {n_fmt}/{total_fmt} |{bar:8}| {elapsed}<{remaining}{postfix}"
JUDGE_PROMPTS = {kind: JudgePrompt(instruction(kind, digit=False), instruction(kind, digit=True)) for kind in JUDGE_KINDS}
Key = tuple[str, int]  # id of a question, number of the answer to it


@dataclass(frozen=True)
class BenchmarkRun:
    """One method on one benchmark: a cell of the table.

    Attributes:
        items: questions of the benchmark.
        folder: folder of the evaluation.
    """

    answerer: Answerer
    benchmark: Benchmark
    items: list[BenchmarkItem]
    method: Method
    folder: Path

    @property
    def title(self) -> str:
        return f"{self.benchmark.name}, {self.method.name}"

    @property
    def keys(self) -> list[Key]:
        """Every answer there is to be, in the order of the file."""
        return [(item.id, i) for item in self.items for i in range(self.answerer.decoding.samples)]

    def file(self, method: str | None = None, *, mend: bool = False) -> RecordFile:
        return RecordFile(self.folder, self.benchmark.name, method or self.method.name, mend=mend)

    def run(self, judges: dict[str, Scorer]) -> list[AnswerRecord]:
        """Return all answers, read from the record file or drawn now. All ranks call this together and share the questions.

        Args:
            judges: scorers by kind of question; none: rules alone.
        """
        # draw what is missing
        if missing := broadcast_from_main(self._missing):
            self.answerer.shortened = 0
            self._answer_share(missing)
            shortened = sum(gather(self.answerer.shortened))  # from here on all ranks have answered
            broadcast_from_main(lambda: self.file(mend=True).rewrite(self.keys))
            if shortened:
                print(f"{self.title}: {shortened} answers had less room than --max-new-tokens")
        # judge what the judge has not scored
        file, judge = self.file(), judges[self.benchmark.judge_kind] if judges else None
        if judge and any(record.scores.get("judge") is None for record in file.records.values()):
            failed = judge_records(judge, self.benchmark.judge_kind, file.records.values())
            broadcast_from_main(lambda: file.rewrite(self.keys))
            if failed:
                why = next(filter(None, gather(judge.last_failure)), "")
                print(f"{self.title}: no judge's score for {failed} answers ({why}); the next run asks again")
        return list(file.records.values())

    def _missing(self) -> set[Key]:
        """Return the answers that the record file lacks, after its records were scored by today's rules."""
        file = self.file(mend=True)
        if stale := self._rescore(file):
            print(f"{self.title}: the rules have changed; {stale} answers that are there already are scored anew")
        missing = set(self.keys) - file.records.keys()
        if missing and file.records:
            print(f"{self.title}: {len(file.records)} answers are there already, {len(missing)} to go")
        return missing

    def _rescore(self, file: RecordFile) -> int:
        """Score the answers that other rules have scored again, and return how many these were.

        Which answers of an oracle got a second turn stays as the rules of that time decided it.
        """
        items = {item.id: item for item in self.items}
        stale = [r for r in file.records.values() if r.rules != rules_version() and r.id in items and not r.unreadable]
        for record in stale:
            new = score_answer(self.benchmark, self.method, items[record.id], record.sample, record.turns)
            new.scores["judge"] = record.scores.get("judge")
            file.records[record.id, record.sample] = new
        if stale:
            file.rewrite(self.keys)
        return len(stale)

    def _answer_share(self, missing: set[Key]) -> None:
        """Draw this rank's share of the missing answers, and append each to the record file as it ends."""
        ids = {id for id, _ in missing}
        share = split_over_ranks([item for item in self.items if item.id in ids])
        missing = {key for key in missing if key[0] in {item.id for item in share}}
        part = f" (1/{world_size()})" if world_size() > 1 else ""
        with tqdm(total=len(missing), desc=f"{self.title}{part}", bar_format=BAR_FORMAT, disable=not is_main()) as bar:
            file, total = self.file(), Counter()

            def keep(record: AnswerRecord) -> None:
                file.append(record)
                total.update(answers=1, score=record.scores["rule"], tokens=record.tokens)
                bar.set_postfix_str(f"score {total['score'] / total['answers']:.3f}, {total['tokens']} tokens", refresh=False)
                bar.update()

            self._answer(share, missing, keep)

    def _answer(self, items: list[BenchmarkItem], missing: set[Key], keep: Callable[[AnswerRecord], None]) -> None:
        """Draw the missing answers to these questions, and pass the record of each to `keep` as it ends."""
        answerer, mode, samples = self.answerer, self.method.mode, range(self.answerer.decoding.samples)

        def deliver(item: BenchmarkItem, sample: int, turns: list[Turn], unreadable: str = "") -> None:
            if (item.id, sample) in missing:
                keep(score_answer(self.benchmark, self.method, item, sample, turns, unreadable))

        # questions that the model cannot be given
        readable = []
        for item in items:
            if reason := answerer.unreadable(item, answerer.renderer.text(item.question, mode)):
                for sample in samples:
                    deliver(item, sample, [], reason)
            else:
                readable.append(item)
        if self.method.review is None:
            answerer.first_turns(readable, mode, deliver)
            return
        # first turns of the methods that review: vanilla's answers where they are there, which have the same prompt and draws
        assert mode == METHODS["vanilla"].mode
        first = {key: record.turns[0] for key, record in self.file("vanilla").records.items() if record.turns}
        new = [item for item in readable if any((item.id, i) not in first for i in samples)]
        answerer.first_turns(new, mode, lambda item, i, turns: first.update({(item.id, i): turns[0]}))
        # second turns
        to_review = []
        for item in readable:
            for i in samples:
                turn = first[item.id, i]
                if self.method.only_wrong and score_turn(self.benchmark, self.method, item, turn)[1] >= RIGHT:
                    deliver(item, i, [turn])
                elif (item.id, i) in missing:
                    to_review.append((item, i, turn))
        answerer.second_turns(to_review, self.method, deliver)


def score_turn(benchmark: Benchmark, method: Method, item: BenchmarkItem, turn: Turn) -> tuple[str | None, float]:
    """Return what the rule takes for the answer of a response, and its score."""
    return score_benchmark(benchmark.kind, answer_text(turn, method.mode), item.references, item.options)


def score_answer(
    benchmark: Benchmark, method: Method, item: BenchmarkItem, sample: int, turns: list[Turn], unreadable: str = ""
) -> AnswerRecord:
    """Return the record of an answer, scored by rule. Where a review leaves the solution as it is, the answer before it stands.

    Args:
        turns: none for a question that the model could not be given, which scores 0.
        unreadable: why it could not.
    """
    last = max(0, len(turns) - 1)
    if last and says_it_holds(turns[last]):
        last -= 1
    answer, score = score_turn(benchmark, method, item, turns[last]) if turns else (None, 0.0)
    scores: dict[str, float | None] = {"rule": score, "judge": None}
    if (exact := RULES[benchmark.kind].exact) is not None:
        scores["exact"] = 0.0 if answer is None else exact(answer, item.references)
    tokens, rules = sum(turn["tokens"] for turn in turns), rules_version() if turns else ""
    head = (benchmark.name, method.name, item.id, sample, item.question, item.reference)
    return AnswerRecord(*head, turns, answer, last, tokens, scores, unreadable, rules)


def judge_records(judge: Scorer, kind: str, records: Iterable[AnswerRecord]) -> int:
    """Score the records that the judge has not scored, in place; an empty answer scores 0 without a call.

    All ranks call this with the same records and share them.

    Returns:
        How many scores failed: they stay None, and the next run asks again.

    Raises:
        JudgeRefusedError: no call can work.
    """
    unscored = [record for record in records if record.scores.get("judge") is None]
    share, futures = split_over_ranks(unscored), {}
    for i, record in enumerate(share):
        # the judge reads the response without its thinking
        text = answer_text(record.turns[record.answer_turn], METHODS[record.method].mode) if record.turns else ""
        if text:
            futures[i] = judge.submit(Judgement(record.question, record.reference, text))
    judge.finish()
    own = [benchmark_score(kind, futures[i].result()) if i in futures else 0.0 for i in range(len(share))]
    scores = gather_split(own)
    for record, score in zip(unscored, scores, strict=True):
        record.scores["judge"] = score
    return scores.count(None)
