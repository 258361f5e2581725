"""Small evaluations that are answered by script."""

from pathlib import Path

from reader import make_answerer, write_rows

from data.benchmarks import Benchmark, load_benchmark, own_benchmark
from rl.evaluation.methods import METHODS
from rl.evaluation.records import AnswerRecord, OutputFolder
from rl.evaluation.run import BenchmarkRun

SETTINGS = {
    "model": "m", "temperature": 0.0, "samples": 1, "max_new_tokens": 8, "limit": None, "seed": 0, "paper_decoding": False,
    "benchmarks": {"sums": "number"}, "data": {"sums": "x"}, "judge": None,
}  # fmt: skip


def write_sums(folder: Path) -> Benchmark:
    """0 + 1 to 5 + 1, as a benchmark of numbers."""
    file = write_rows(folder / "sums.jsonl", [{"question": f"{i} + 1?", "answer": i + 1} for i in range(6)])
    return own_benchmark(f"sums={file}:number")


def run(benchmark, folder, method="vanilla", judges=None, **decoding) -> list[AnswerRecord]:
    out = OutputFolder(folder, SETTINGS)
    try:
        items = load_benchmark(benchmark, None)
        return BenchmarkRun(make_answerer(**decoding), benchmark, items, METHODS[method], out.path).run(judges or {})
    finally:
        out.close()


def arguments(folder: Path, *more: str) -> list[str]:
    return ["--model", str(folder / "m"), "--max-new-tokens", "8", "--out", str(folder / "out"), *more]
