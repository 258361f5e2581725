"""The ten benchmarks of the paper, and any file of your own: where the questions come from and how answers are scored.

Each one is an entry of `BENCHMARKS`. Its rows come from a local folder in the layout of the paper's release, or from its data
set on the hub; a reader for each (data/benchmark_rows.py) turns a row into a `BenchmarkItem`. An eleventh benchmark is one more
entry, or, without any code, `name=FILE:KIND` on the command line: a JSON or JSONL file with (question, answer).

Kinds, that is rules in rewards/accuracy.py: number, math, choice, drop, summary, exact.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from data import benchmark_rows as rows
from data.benchmark_rows import BenchmarkItem, Row
from data.examples import HubSplit, read_rows, shuffled

INSTRUCTIONS = {
    "number": "Finish with a line 'Answer: N', where N is the number asked for.",
    "math": "Finish with a line 'Answer: X', where X is the result, as a number or in LaTeX.",
    "choice": "Finish with a line 'Answer: X', where X is the letter or number of the right option.",
    "drop": "Finish with a line 'Answer: X', where X is a number, a date or words of the passage, as short as possible.",
    "summary": "Summarise this article in one sentence. Write the summary and nothing else.",
    "exact": "Finish with a line 'Answer: X', where X is the answer alone.",
}
JUDGED_AS = {"choice": "choice", "summary": "summary"}  # the other kinds are open questions


@dataclass(frozen=True)
class Benchmark:
    """A set of questions.

    Attributes:
        name: on the command line, in file names and metrics.
        title: heads its column of a table; at most 6 characters are shown.
        kind: the rule that scores it.
        read: a row of `file` -> an item.
        file: its place in a folder laid out like the paper's release; for a file of your own, its path.
        hub, read_hub: its split on the hub, and how a row of that is read; None: only from a file.
    """

    name: str
    title: str
    kind: str
    read: Callable[[Row], BenchmarkItem]
    file: str
    hub: HubSplit | None = None
    read_hub: Callable[[Row], BenchmarkItem] | None = None

    @property
    def judge_kind(self) -> str:
        """Which of the judge's three instructions: "open", "choice" or "summary"."""
        return JUDGED_AS.get(self.kind, "open")

    @property
    def instruction(self) -> str:
        """Stands behind each question (before an article), and gives the form of the answer; none for files of your own."""
        return INSTRUCTIONS[self.kind] if self.hub else ""


BENCHMARKS = {
    entry.name: entry
    for entry in (
        Benchmark(
            "gsm8k", "GSM8K", "number", rows.gsm8k, "gsm8k/test.jsonl", HubSplit("openai/gsm8k", "main", "test"), rows.gsm8k
        ),
        Benchmark(
            "math500", "MATH", "math", rows.math, "math/math.json",
            HubSplit("HuggingFaceH4/MATH-500", "default", "test"), rows.math_hub,
        ),
        Benchmark(
            "aime24", "AIME24", "number", rows.aime, "aime24/aime24.jsonl",
            HubSplit("HuggingFaceH4/aime_2024", "default", "train"), rows.aime_hub,
        ),
        Benchmark(
            "arc", "ARC", "choice", rows.lettered, "arc/ARC-c/two_keys_test.jsonl",
            HubSplit("allenai/ai2_arc", "ARC-Challenge", "test"), rows.labelled_hub,
        ),
        Benchmark(
            "gpqa", "GPQA", "choice", rows.gpqa, "gpqa/prompt_messages.jsonl",
            HubSplit("Idavidrein/gpqa", "gpqa_main", "train"), rows.gpqa_hub,
        ),
        Benchmark(
            "winogrande", "Wino", "choice", rows.lettered, "winogrande/dev_two_keys.jsonl",
            HubSplit("allenai/winogrande", "winogrande_xl", "validation"), rows.winogrande_hub,
        ),
        Benchmark(
            "commonsenseqa", "CSQA", "choice", rows.lettered, "commonsenseqa/two_keys_version.jsonl",
            HubSplit("tau/commonsense_qa", "default", "validation"), rows.labelled_hub,
        ),
        Benchmark(
            "drop", "DROP", "drop", rows.drop, "drop/test_sampled_313.jsonl",
            HubSplit("ucinlp/drop", "default", "validation"), rows.drop_hub,
        ),
        Benchmark(
            "mmlu", "MMLU", "choice", rows.mmlu, "mmlu/select_mmlu_test.json",
            HubSplit("cais/mmlu", "all", "test"), rows.mmlu_hub,
        ),
        Benchmark(
            "xsum", "XSum", "summary", rows.pair, "xsum/test_select313.jsonl",
            HubSplit("EdinburghNLP/xsum", "default", "test"), rows.xsum_hub,
        ),
    )
}  # fmt: skip


def parse_benchmarks(text: str) -> list[Benchmark]:
    """The benchmarks of a command line: `all`, or names and `name=FILE:KIND` with commas between them.

    Raises:
        ValueError: an unknown name or kind, a name given twice, or nothing at all.
    """
    found: list[Benchmark] = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        found += BENCHMARKS.values() if part == "all" else [own_benchmark(part) if "=" in part else _known(part)]
    names = [entry.name for entry in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"benchmarks given twice: {', '.join(twice)}")
    if not found:
        raise ValueError(f"no benchmark is named; choose from all, {', '.join(BENCHMARKS)}, or give name=FILE:KIND")
    return found


def _known(name: str) -> Benchmark:
    if name not in BENCHMARKS:
        raise ValueError(
            f"no benchmark is called {name!r}; there are {', '.join(BENCHMARKS)}, all, and your own name=FILE:KIND"
        )
    return BENCHMARKS[name]


def own_benchmark(text: str) -> Benchmark:
    """`name=FILE:KIND`: a JSON or JSONL file with (question, answer), asked as they stand: what form the answer is to have, the
    question must say. Options of a choice stand in the question, one a line.

    Raises:
        ValueError: the three parts are not there, the name is taken or unfit for a file name, or the kind is unknown.
    """
    name, _, rest = text.partition("=")
    file, _, kind = rest.rpartition(":")
    if not file or kind not in INSTRUCTIONS:
        raise ValueError(f"{text!r}: a benchmark of your own is name=FILE:KIND, with a KIND of {', '.join(INSTRUCTIONS)}")
    if name in (*BENCHMARKS, "all", "average") or not name.replace("-", "").replace("_", "").isalnum():
        raise ValueError(
            f"{name!r} cannot name a benchmark of your own: it is taken, or has other signs than letters, digits, - _"
        )
    return Benchmark(name, name, kind, rows.lettered if kind == "choice" else rows.pair, file)


def load_benchmark(
    benchmark: Benchmark, data_dir: str | Path | None, *, limit: int | None = None, seed: int = 0
) -> list[BenchmarkItem]:
    """Its questions, with their instruction.

    Args:
        data_dir: a folder in the layout of the release; None: the hub. A file of your own is read in either case.
        limit: at most so many, drawn by `seed`. The draw for a smaller limit is part of the draw for a larger one.

    Raises:
        ValueError: the file or data set cannot be had, or a row of it (it is named, with the key) is not what it should be.
    """
    if benchmark.hub is not None and data_dir is None:
        source, raw, read = benchmark.hub, benchmark.hub.rows(), benchmark.read_hub
    else:
        source = Path(data_dir or "") / benchmark.file if benchmark.hub else Path(benchmark.file)
        raw, read = _local_rows(benchmark, source), benchmark.read
    items = []
    for index, (place, fields) in enumerate(raw):
        item = read(Row(fields, f"{source}, {place}"))
        items.append(replace(item, id=f"{benchmark.name}-{index}", question=_with_instruction(benchmark, item.question)))
    if not items:
        raise ValueError(f"{source} holds no questions of {benchmark.name}")
    if limit is None:
        return items
    drawn = {item.id for item in shuffled(items, seed, epoch=0)[:limit]}
    return [item for item in items if item.id in drawn]


def _with_instruction(benchmark: Benchmark, question: str) -> str:
    parts = [question, benchmark.instruction]
    if benchmark.kind == "summary":
        parts.reverse()
    return "\n\n".join(filter(None, parts))


def _local_rows(benchmark: Benchmark, file: Path) -> list[tuple[str, object]]:
    if not file.is_file():
        layout = f"a folder like the paper's release holds {benchmark.file}; without one the data set is fetched from the hub"
        raise ValueError(f"no file of {benchmark.name} at {file}" + (f": {layout}" if benchmark.hub else ""))
    return read_rows(file)


def digest(items: list[BenchmarkItem]) -> str:
    """A fingerprint of questions and references, to tell whether two evaluations asked the same."""
    return hashlib.blake2b(repr(items).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
