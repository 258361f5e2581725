"""A small fixed evaluation while a real model trains: benchmark questions that are not trained on, with both prompts, by rule.

The questions and the draws are the same at every step, so that only the policy differs.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from data.benchmarks import Benchmark, BenchmarkItem, load_benchmark, parse_benchmarks
from data.examples import Example
from data.prompts import PromptRenderer
from rl.config import Config
from rl.distributed import broadcast_from_main, gather_split, main_only, split_over_ranks
from rl.evaluation.methods import METHODS, Method, make_turn
from rl.evaluation.records import AnswerRecord, to_lines
from rl.evaluation.run import score_answer
from rl.evaluation.scores import summarise
from rl.files import write_whole
from rl.records import Completion, Request
from rl.run.checkpoint import checkpoint_folder
from rl.sampler import Sampler

COMPARED = [METHODS["vanilla"], METHODS["pasr"]]  # one turn each: the plain and the refine prompt
REPORTED = ("accuracy", "tokens", "truncated", "wellformed", "refined")


class TrainingEvaluation:
    """The questions of --eval-benchmarks.

    Args:
        longest_prompt: tokens that a prompt may have.

    Raises:
        ValueError: the questions cannot be read, none fits, or --keep-best names a metric that does not exist.
    """

    def __init__(self, config: Config, renderer: PromptRenderer, longest_prompt: int) -> None:
        self.config, self.renderer, self.longest_prompt = config, renderer, longest_prompt
        self.items: list[tuple[Benchmark, BenchmarkItem]] = []
        for benchmark in parse_benchmarks(config.eval_benchmarks):
            items = load_benchmark(benchmark, None, limit=config.eval_limit, seed=0)
            fitting = [item for item in items if self._fits(item)]
            if len(fitting) < len(items):
                count = f"{len(items) - len(fitting)} of {len(items)} questions of {benchmark.name}"
                print(f"--eval-benchmarks: left out {count}: no tokens for them, or over {longest_prompt} tokens a prompt")
            if not fitting:
                raise ValueError(f"--eval-benchmarks: no question of {benchmark.name} can be asked; leave it out")
            self.items += [(benchmark, item) for item in fitting]
        names = [f"eval/{name}/{method.name}/accuracy" for name in [*self.kinds(), "average"] for method in COMPARED]
        if config.keep_best is not None and config.keep_best not in names:
            raise ValueError(f"--keep-best {config.keep_best} is no metric of this evaluation; there are {', '.join(names)}")

    def _fits(self, item: BenchmarkItem) -> bool:
        try:
            lengths = [len(self.renderer.ids(item.question, method.mode)) for method in COMPARED]
        except ValueError:  # characters without a token; the caller counts the question
            return False
        return max(lengths) <= self.longest_prompt

    def kinds(self) -> dict[str, str]:
        """Return the benchmarks with their kinds."""
        return {benchmark.name: benchmark.kind for benchmark, _ in self.items}

    def hold_out(self, examples: list[Example]) -> list[Example]:
        """Return the training questions that are no questions of this evaluation, and print how many are.

        Raises:
            ValueError: none is left.
        """
        held_out = {_folded(item.question.replace(benchmark.instruction, "")) for benchmark, item in self.items}
        kept = [example for example in examples if _folded(example.question) not in held_out]
        if len(kept) < len(examples):
            print(f"held out: {len(examples) - len(kept)} of {len(examples)} training questions are asked by --eval-benchmarks")
        if not kept:
            raise ValueError("every training question is asked by --eval-benchmarks; lower --eval-limit")
        return kept

    def answer(self, sampler: Sampler) -> list[Completion]:
        """Return one answer to every question with either prompt, in one call of the sampler; ranks share the questions."""
        requests = [
            Request(
                self.renderer.ids(item.question, method.mode), 1, self.config.max_new_tokens, 0.0,
                (self.config.seed, "training evaluation", method.mode, item.id),
            )
            for _, item, method in self._questions()
        ]  # fmt: skip
        return gather_split([completions[0] for completions in sampler.generate(split_over_ranks(requests))])

    def _questions(self) -> list[tuple[Benchmark, BenchmarkItem, Method]]:
        return [(*pair, method) for method in COMPARED for pair in self.items]

    def records(self, drawn: list[Completion]) -> list[AnswerRecord]:
        """Return the records of the answers, scored by rule."""
        records = []
        for (benchmark, item, method), completion in zip(self._questions(), drawn, strict=True):
            turn = make_turn(self.renderer, self.renderer.text(item.question, method.mode), completion)
            records.append(score_answer(benchmark, method, item, 0, [turn]))
        return records

    def metrics(self, records: list[AnswerRecord]) -> dict[str, float]:
        """Compute eval/BENCHMARK/METHOD/NUMBER for every benchmark, and eval/average/METHOD/NUMBER over them.

        accuracy: by rule. tokens: per answer. truncated: share that hit --max-new-tokens. wellformed, refined: shares of the
        refine-prompt responses (method pasr).
        """
        metrics = {}
        for method in [method.name for method in COMPARED]:
            cells = {
                name: summarise([r for r in records if (r.benchmark, r.method) == (name, method)], kind)
                for name, kind in self.kinds().items()
            }
            for number in REPORTED:
                values = {name: cell[number] for name, cell in cells.items() if number in cell}
                metrics |= {f"eval/{name}/{method}/{number}": value for name, value in values.items()}
                if values:
                    metrics[f"eval/average/{method}/{number}"] = sum(values.values()) / len(values)
        return metrics

    def run(self, sampler: Sampler, file: Path) -> dict[str, float]:
        """Answer, keep the answers in `file` (JSONL), and return the metrics. All ranks call this together."""
        drawn = self.answer(sampler)

        def score() -> dict[str, float]:
            records = self.records(drawn)
            file.parent.mkdir(exist_ok=True)
            write_whole(file, to_lines(records))
            return self.metrics(records)

        return broadcast_from_main(score)  # on one rank, because rules have time limits and ranks must agree

    def one_line(self, metrics: dict[str, float]) -> str:
        """Return the accuracies as a line for the terminal."""
        shown = [f"{b} {metrics[f'eval/{b}/vanilla/accuracy']:.3f} / {metrics[f'eval/{b}/pasr/accuracy']:.3f}"
                 for b in self.kinds()]  # fmt: skip
        return f"accuracy with plain / refine prompt: {', '.join(shown)}"


def _folded(question: str) -> str:
    return " ".join(question.casefold().split())


class BestStep:
    """The step with the highest value of a metric so far, the earliest of equals.

    Args:
        metric: its name; None: nothing is best.
        rows: metrics of the steps so far, each with "step".

    Attributes:
        step: None before the metric was seen. 0 is the initial model, of which there is no checkpoint.
    """

    def __init__(self, metric: str | None, rows: Iterable[dict] = ()) -> None:
        self.metric, self.step, self.value = metric, None, None
        for row in rows:
            self.update(row["step"], row)

    def update(self, step: int, metrics: dict) -> bool:
        """Take the metrics of a step in, and return whether it is the best so far."""
        value = metrics.get(self.metric)
        if value is None or (self.value is not None and value <= self.value):
            return False
        self.step, self.value = step, value
        return True

    @main_only
    def save(self, run: Path) -> None:
        """Write best.json: metric, step, value and the checkpoint, which is null of the initial model."""
        if self.step is not None:
            folder = checkpoint_folder(run, self.step).relative_to(run) if self.step else None
            content = {"metric": self.metric, "step": self.step, "value": self.value, "checkpoint": folder and str(folder)}
            write_whole(run / "best.json", json.dumps(content, indent=2) + "\n")
