"""The ten benchmarks of the paper, and any file of your own: the source of their questions and the rule of their answers.

Rows come from a local folder in the layout of the paper's release, or from the hub; a reader for each (data/benchmark_rows.py)
turns a row into a `BenchmarkItem`. An eleventh benchmark is one more entry of `BENCHMARKS`, or, without any code,
`name=FILE:KIND` on the command line: a JSON or JSONL file with (question, answer). Kinds are rules in rewards/accuracy.py.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from data import benchmark_rows as rows
from data.benchmark_rows import BenchmarkItem, Reader, Row
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
    """A set of questions."""

    name: str  # on the command line, in file names and metrics
    title: str  # heads its column of a table; at most 6 characters are shown
    kind: str  # the rule that scores it
    read: Reader  # of a row of `file`
    file: str  # in a folder laid out like the paper's release; the whole path of a file of your own
    hub: HubSplit | None = None  # None: only from a file
    read_hub: Reader | None = None  # of a row of `hub`

    @property
    def judge_kind(self) -> str:
        """The instruction of the judge: "open", "choice" or "summary"."""
        return JUDGED_AS.get(self.kind, "open")

    @property
    def instruction(self) -> str:
        """The form of the answer, said behind each question (before an article); empty for files of your own."""
        return INSTRUCTIONS[self.kind] if self.hub else ""


BENCHMARKS = {
    entry.name: entry
    for entry in (
        Benchmark("gsm8k", "GSM8K", "number", rows.gsm8k, "gsm8k/test.jsonl",
                  HubSplit("openai/gsm8k", "main", "test"), rows.gsm8k),
        Benchmark("math500", "MATH", "math", rows.pair(), "math/math.json",
                  HubSplit("HuggingFaceH4/MATH-500", "default", "test"), rows.pair("problem")),
        Benchmark("aime24", "AIME24", "number", rows.aime, "aime24/aime24.jsonl",
                  HubSplit("HuggingFaceH4/aime_2024", "default", "train"), rows.pair("problem")),
        Benchmark("arc", "ARC", "choice", rows.choice_pair(), "arc/ARC-c/two_keys_test.jsonl",
                  HubSplit("allenai/ai2_arc", "ARC-Challenge", "test"), rows.labelled_hub),
        Benchmark("gpqa", "GPQA", "choice", rows.gpqa, "gpqa/prompt_messages.jsonl",
                  HubSplit("Idavidrein/gpqa", "gpqa_main", "train"), rows.gpqa_hub),
        Benchmark("winogrande", "Wino", "choice", rows.choice_pair(), "winogrande/dev_two_keys.jsonl",
                  HubSplit("allenai/winogrande", "winogrande_xl", "validation"), rows.winogrande_hub),
        Benchmark("commonsenseqa", "CSQA", "choice", rows.choice_pair(), "commonsenseqa/two_keys_version.jsonl",
                  HubSplit("tau/commonsense_qa", "default", "validation"), rows.labelled_hub),
        Benchmark("drop", "DROP", "drop", rows.drop, "drop/test_sampled_313.jsonl",
                  HubSplit("ucinlp/drop", "default", "validation"), rows.drop_hub),
        Benchmark("mmlu", "MMLU", "choice", rows.choice_pair("Question", "Ground_truth"), "mmlu/select_mmlu_test.json",
                  HubSplit("cais/mmlu", "all", "test"), rows.mmlu_hub),
        Benchmark("xsum", "XSum", "summary", rows.pair(), "xsum/test_select313.jsonl",
                  HubSplit("EdinburghNLP/xsum", "default", "test"), rows.pair("document", "summary")),
    )
}  # fmt: skip


def parse_benchmarks(text: str) -> list[Benchmark]:
    """Return the benchmarks of a command line: `all`, or names and `name=FILE:KIND` with commas between them."""
    found: list[Benchmark] = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        if part == "all":
            found += BENCHMARKS.values()
        elif "=" in part:
            found.append(own_benchmark(part))
        elif part in BENCHMARKS:
            found.append(BENCHMARKS[part])
        else:
            names = ", ".join(BENCHMARKS)
            raise ValueError(f"no benchmark is called {part!r}; there are {names}, all, and your own name=FILE:KIND")
    names = [entry.name for entry in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"benchmarks given twice: {', '.join(twice)}")
    if not found:
        raise ValueError(f"no benchmark is named; choose from all, {', '.join(BENCHMARKS)}, or give name=FILE:KIND")
    return found


def own_benchmark(text: str) -> Benchmark:
    """Make a benchmark of `name=FILE:KIND`, a JSON or JSONL file with (question, answer).

    A question is put as it stands, so it must say what form the answer is to have. Options of a choice stand in it, one a line.
    """
    name, _, rest = text.partition("=")
    file, _, kind = rest.rpartition(":")
    if not file or kind not in INSTRUCTIONS:
        raise ValueError(f"{text!r}: a benchmark of your own is name=FILE:KIND, with a KIND of {', '.join(INSTRUCTIONS)}")
    if name in (*BENCHMARKS, "all", "average") or not name.replace("-", "").replace("_", "").isalnum():
        raise ValueError(f"{name!r} cannot name a benchmark of your own: it is taken, or not of letters, digits, - and _")
    return Benchmark(name, name, kind, rows.choice_pair() if kind == "choice" else rows.pair(), file)


def load_benchmark(
    benchmark: Benchmark, data_dir: str | Path | None, *, limit: int | None = None, seed: int = 0
) -> list[BenchmarkItem]:
    """Return its questions, with their instruction.

    Args:
        data_dir: a folder in the layout of the release; None: the hub. A file of your own is read in either case.
        limit: the most questions, drawn by `seed`. The draw for a smaller limit is part of the draw for a larger one.

    Raises:
        ValueError: the file or data set cannot be had, or a row of it (it is named, with the key) is not what it should be.
    """
    # rows, from the hub or a file
    if benchmark.hub and data_dir is None:
        source, read, raw = str(benchmark.hub), benchmark.read_hub, benchmark.hub.rows()
    else:
        source, read = Path(data_dir or "") / benchmark.file if benchmark.hub else Path(benchmark.file), benchmark.read
        if not source.is_file():
            layout = f": a folder like the paper's release holds {benchmark.file}; without one the data set comes from the hub"
            raise ValueError(f"no file of {benchmark.name} at {source}{layout if benchmark.hub else ''}")
        raw = read_rows(source)

    # each row as a question with its instruction
    items = []
    for index, (where, fields) in enumerate(raw):
        item = read(Row(fields, f"{source}, {where}"))
        parts = [item.question, benchmark.instruction]
        if benchmark.kind == "summary":
            parts.reverse()
        items.append(replace(item, id=f"{benchmark.name}-{index}", question="\n\n".join(filter(None, parts))))
    if not items:
        raise ValueError(f"{source} holds no questions of {benchmark.name}")

    # a draw of them, in the order of the file
    if limit is None:
        return items
    drawn = {item.id for item in shuffled(items, seed, epoch=0)[:limit]}
    return [item for item in items if item.id in drawn]


def digest(items: list[BenchmarkItem]) -> str:
    """Return a fingerprint of questions and references, to tell whether two evaluations had the same."""
    return hashlib.blake2b(repr(items).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
