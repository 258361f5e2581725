"""The ten benchmarks of the paper, and any file of your own: their questions, their answers, and the rule of these.

Rows come from a local folder in the layout of the paper's release, or from the hub; a reader for each turns a row into a
`BenchmarkItem`. An eleventh benchmark is one more entry of `BENCHMARKS`, or, without any code, `name=FILE:KIND` on the command
line: a JSON or JSONL file with (question, answer). Kinds are rules in rewards/accuracy.py.
"""

import hashlib
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_uppercase

from data.examples import HubSplit, Row, read_rows, shuffled, stable_seed

RELEASED_INSTRUCTION = re.compile(r"\AAnswer the following multiple choice question\.[^\n]*\n+")  # GPQA's; we add one of ours
OPTION_LINE = re.compile(r"^[ \t]*(?:Option[ \t]*)?([A-Za-z]|\d)[ \t]*[:.)][ \t]*", re.MULTILINE)

Options = tuple[tuple[str, str], ...]  # (label, text) of each option of a choice, in order


@dataclass(frozen=True)
class BenchmarkItem:
    """One question of a benchmark."""

    id: str  # unique within the benchmark
    question: str
    references: tuple[str, ...]  # accepted answers; for a choice the label of the right option
    options: Options = ()

    @property
    def reference(self) -> str:
        """The references as one text, for a judge or a reader; a choice's with the text of its option."""
        texts = dict(self.options)
        return " | ".join(f"{label}: {texts[label]}" if label in texts else label for label in self.references)


Reader = Callable[[Row], BenchmarkItem]


def pair(question: str = "question", answer: str = "answer", form: str = r"(?s).+") -> Reader:
    """Make the reader of an open question; whatever in the answer has the form is an accepted answer."""

    def read(row: Row) -> BenchmarkItem:
        references = tuple(filter(None, map(str.strip, re.findall(form, row.text(answer)))))
        if not references:
            raise row.error(answer, f"holds no answer of the form {form}")
        return BenchmarkItem("", row.text(question), references)

    return read


def choice_pair(question: str = "question", answer: str = "answer") -> Reader:
    """Make the reader of a choice whose options stand in the question."""
    return lambda row: choice(row, RELEASED_INSTRUCTION.sub("", row.text(question)), row.text(answer), answer)


def choice(
    row: Row, question: str, label: str, key: str, texts: Sequence[str] = (), labels: Sequence[str] = ascii_uppercase
) -> BenchmarkItem:
    """Make an item of a choice. The options stand in the question, or are `texts`, which are written below it."""
    options = tuple(zip(labels, texts, strict=False)) or find_options(question)
    if not options:
        raise ValueError(f"{row.source}: the question lists no options, one a line as 'A: text'")
    if label not in dict(options):
        raise row.error(key, f"is {label!r}, which is none of the options {', '.join(dict(options))}")
    written = "".join(f"\n{label}: {text}" for label, text in options) if texts else ""
    return BenchmarkItem("", question + written, (label,), options)


def find_options(question: str) -> Options:
    """Return the options that a question lists, one a line as `A: text`, `B. text`, `C) text`, `1: text` or `Option2: text`.

    Labels run from A or 1 on without a gap. The last such list counts, and an option may take several lines.
    """
    lines = list(OPTION_LINE.finditer(question))
    for start in range(len(lines) - 1, -1, -1):
        if lines[start].group(1) not in "A1":
            continue
        run = [lines[start]]
        for match in lines[start + 1 :]:
            if match.group(1) == chr(ord(run[-1].group(1)) + 1):
                run.append(match)
        if len(run) > 1:
            ends = [match.start() for match in run[1:]] + [len(question)]
            return tuple((m.group(1), question[m.end() : end].strip()) for m, end in zip(run, ends, strict=True))
    return ()


def labelled_hub(row: Row) -> BenchmarkItem:
    """ARC and CommonsenseQA: `choices` with a list of labels and one of texts."""
    choices = row.row("choices")
    labels, texts = choices.texts("label"), choices.texts("text")
    if len(labels) != len(texts):
        raise choices.error("label", "and 'text' have different lengths")
    return choice(row, row.text("question"), row.text("answerKey"), "answerKey", texts, labels)


def gpqa_hub(row: Row) -> BenchmarkItem:
    """The right option's position among the four is drawn from the question's text, so it is the same for everybody."""
    right = row.text("Correct Answer")
    texts = [right] + [row.text(f"Incorrect Answer {i}") for i in (1, 2, 3)]
    random.Random(stable_seed("options", row.text("Question"))).shuffle(texts)
    return choice(row, row.text("Question"), ascii_uppercase[texts.index(right)], "Correct Answer", texts)


def winogrande_hub(row: Row) -> BenchmarkItem:
    question = f"{row.text('sentence')}\nOption1: {row.text('option1')}\nOption2: {row.text('option2')}"
    return choice(row, question, row.text("answer"), "answer")


def mmlu_hub(row: Row) -> BenchmarkItem:
    texts, index = row.texts("choices"), row.text("answer")
    if index not in map(str, range(len(texts))):
        raise row.error("answer", f"is {index}, which is no index of the {len(texts)} choices")
    return choice(row, row.text("question"), ascii_uppercase[int(index)], "answer", texts)


def drop_hub(row: Row) -> BenchmarkItem:
    question = f"{row.text('passage')}\nHere is the question: {row.text('question')}"
    return BenchmarkItem("", question, tuple(dict.fromkeys(row.row("answers_spans").texts("spans"))))


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


WORKED_SOLUTION = pair(form=r"####([^#]+)\Z")  # GSM8K: the answer stands at its end

BENCHMARKS = {
    entry.name: entry
    for entry in (
        Benchmark("gsm8k", "GSM8K", "number", WORKED_SOLUTION, "gsm8k/test.jsonl",
                  HubSplit("openai/gsm8k", "main", "test"), WORKED_SOLUTION),
        Benchmark("math500", "MATH", "math", pair(), "math/math.json",
                  HubSplit("HuggingFaceH4/MATH-500", "default", "test"), pair("problem")),
        Benchmark("aime24", "AIME24", "number", pair("problem", "solution", r"\\boxed\{\s*(\d+)\s*\}"), "aime24/aime24.jsonl",
                  HubSplit("HuggingFaceH4/aime_2024", "default", "train"), pair("problem")),
        Benchmark("arc", "ARC", "choice", choice_pair(), "arc/ARC-c/two_keys_test.jsonl",
                  HubSplit("allenai/ai2_arc", "ARC-Challenge", "test"), labelled_hub),
        Benchmark("gpqa", "GPQA", "choice", choice_pair(), "gpqa/prompt_messages.jsonl",
                  HubSplit("Idavidrein/gpqa", "gpqa_main", "train"), gpqa_hub),
        Benchmark("winogrande", "Wino", "choice", choice_pair(), "winogrande/dev_two_keys.jsonl",
                  HubSplit("allenai/winogrande", "winogrande_xl", "validation"), winogrande_hub),
        Benchmark("commonsenseqa", "CSQA", "choice", choice_pair(), "commonsenseqa/two_keys_version.jsonl",
                  HubSplit("tau/commonsense_qa", "default", "validation"), labelled_hub),
        Benchmark("drop", "DROP", "drop", pair(answer="ref_text", form=r"[^|]+"), "drop/test_sampled_313.jsonl",
                  HubSplit("ucinlp/drop", "default", "validation"), drop_hub),
        Benchmark("mmlu", "MMLU", "choice", choice_pair("Question", "Ground_truth"), "mmlu/select_mmlu_test.json",
                  HubSplit("cais/mmlu", "all", "test"), mmlu_hub),
        Benchmark("xsum", "XSum", "summary", pair(), "xsum/test_select313.jsonl",
                  HubSplit("EdinburghNLP/xsum", "default", "test"), pair("document", "summary")),
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
    return Benchmark(name, name, kind, choice_pair() if kind == "choice" else pair(), file)


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
