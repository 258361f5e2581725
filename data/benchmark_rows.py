"""Readers of benchmark rows: each turns a row into a question with references. Keys differ from file to file.

A name with `_hub` is the reader of the data set on the hub, one without reads the released file.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from data.examples import stable_seed

RELEASED_GPQA_INSTRUCTION = re.compile(r"\AAnswer the following multiple choice question\.[^\n]*\n+")  # we add one of ours
OPTION_LINE = re.compile(r"^[ \t]*(?:Option[ \t]*)?([A-Za-z]|\d)[ \t]*[:.)][ \t]*", re.MULTILINE)
LETTERS = "ABCDEFGHIJ"

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


class Row:
    """The fields of one row, read with ValueErrors that name the file and row (`source`) and the key."""

    def __init__(self, fields: object, source: str) -> None:
        if not isinstance(fields, dict):
            raise ValueError(f"{source}: expected a JSON object, found {type(fields).__name__}")
        self.fields, self.source = fields, source

    def error(self, key: str, problem: str) -> ValueError:
        return ValueError(f"{self.source}: {key!r} {problem}; the row has the keys {sorted(self.fields)}")

    def text(self, key: str) -> str:
        """Return a text that is not blank; a number becomes its text."""
        value = self.fields.get(key)
        if value is None:
            raise self.error(key, "is missing")
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise self.error(key, f"is no text but {type(value).__name__}")
        if not str(value).strip():
            raise self.error(key, "is empty")
        return str(value).strip()

    def texts(self, key: str) -> list[str]:
        """Return a list of texts, at least one."""
        value = self.fields.get(key)
        if not isinstance(value, Sequence) or isinstance(value, str) or not value:
            raise self.error(key, "is missing, empty or no list")
        return [Row({key: entry}, self.source).text(key) for entry in value]

    def row(self, key: str) -> "Row":
        """Return a nested object."""
        if not isinstance(self.fields.get(key), dict):
            raise self.error(key, "is missing or no object")
        return Row(self.fields[key], f"{self.source}, in {key!r}")


Reader = Callable[[Row], BenchmarkItem]


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


def choice(
    row: Row, question: str, label: str, key: str, texts: Sequence[str] = (), labels: Sequence[str] = LETTERS
) -> BenchmarkItem:
    """Make an item of a choice. The options stand in the question, or are `texts`, which are written below it."""
    options = tuple(zip(labels, texts, strict=False)) or find_options(question)
    if not options:
        raise ValueError(f"{row.source}: the question lists no options, one a line as 'A: text'")
    if label not in dict(options):
        raise row.error(key, f"is {label!r}, which is none of the options {', '.join(dict(options))}")
    written = "".join(f"\n{label}: {text}" for label, text in options) if texts else ""
    return BenchmarkItem("", question + written, (label,), options)


def pair(question: str = "question", answer: str = "answer") -> Reader:
    """Make the reader of an open question."""
    return lambda row: BenchmarkItem("", row.text(question), (row.text(answer),))


def choice_pair(question: str = "question", answer: str = "answer") -> Reader:
    """Make the reader of a choice whose options stand in the question."""
    return lambda row: choice(row, row.text(question), row.text(answer), answer)


def labelled_hub(row: Row) -> BenchmarkItem:
    """ARC and CommonsenseQA: `choices` with a list of labels and one of texts."""
    choices = row.row("choices")
    labels, texts = choices.texts("label"), choices.texts("text")
    if len(labels) != len(texts):
        raise choices.error("label", "and 'text' have different lengths")
    return choice(row, row.text("question"), row.text("answerKey"), "answerKey", texts, labels)


def gsm8k(row: Row) -> BenchmarkItem:
    """The reference is what stands behind `####` at the end of the worked solution."""
    _, mark, answer = row.text("answer").rpartition("####")
    if not mark or not answer.strip():
        raise row.error("answer", "has no '#### NUMBER' at its end")
    return BenchmarkItem("", row.text("question"), (answer.strip(),))


def aime(row: Row) -> BenchmarkItem:
    """The released solution is nothing but the boxed result."""
    found = re.search(r"\\boxed\{\s*(\d+)\s*\}", row.text("solution"))
    if not found:
        raise row.error("solution", r"holds no \boxed{integer}")
    return BenchmarkItem("", row.text("problem"), (found.group(1),))


def gpqa(row: Row) -> BenchmarkItem:
    return choice(row, RELEASED_GPQA_INSTRUCTION.sub("", row.text("question")), row.text("answer"), "answer")


def gpqa_hub(row: Row) -> BenchmarkItem:
    """The right option's position among the four is drawn from the question's text, so it is the same for everybody."""
    right = row.text("Correct Answer")
    texts = [right] + [row.text(f"Incorrect Answer {i}") for i in (1, 2, 3)]
    random.Random(stable_seed("options", row.text("Question"))).shuffle(texts)
    return choice(row, row.text("Question"), LETTERS[texts.index(right)], "Correct Answer", texts)


def winogrande_hub(row: Row) -> BenchmarkItem:
    question = f"{row.text('sentence')}\nOption1: {row.text('option1')}\nOption2: {row.text('option2')}"
    return choice(row, question, row.text("answer"), "answer")


def mmlu_hub(row: Row) -> BenchmarkItem:
    texts, index = row.texts("choices"), row.text("answer")
    if index not in map(str, range(len(texts))):
        raise row.error("answer", f"is {index}, which is no index of the {len(texts)} choices")
    return choice(row, row.text("question"), LETTERS[int(index)], "answer", texts)


def drop(row: Row) -> BenchmarkItem:
    """`ref_text` holds every annotator's answer, with | between them; the spans of one answer are joined by "and"."""
    references = tuple(filter(None, (part.strip() for part in row.text("ref_text").split("|"))))
    if not references:
        raise row.error("ref_text", "holds no answer")
    return BenchmarkItem("", row.text("question"), references)


def drop_hub(row: Row) -> BenchmarkItem:
    question = f"{row.text('passage')}\nHere is the question: {row.text('question')}"
    return BenchmarkItem("", question, tuple(dict.fromkeys(row.row("answers_spans").texts("spans"))))
