"""From the rows of benchmark files to questions with references. Keys differ from file to file: one reader for each shape."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from data.examples import stable_seed

RELEASED_GPQA_INSTRUCTION = re.compile(r"\AAnswer the following multiple choice question\.[^\n]*\n+")  # we add one of ours
OPTION_LINE = re.compile(r"^[ \t]*(?:Option[ \t]*)?([A-Za-z]|\d)[ \t]*[:.)][ \t]*", re.MULTILINE)


@dataclass(frozen=True)
class BenchmarkItem:
    """One question of a benchmark.

    Attributes:
        id: unique within the benchmark.
        question: what a model is asked.
        references: accepted answers; any of them will do. For a choice: the label of the right option.
        options: (label, text) of each option of a choice, in order.
    """

    id: str
    question: str
    references: tuple[str, ...]
    options: tuple[tuple[str, str], ...] = ()

    @property
    def reference(self) -> str:
        """The references as one text, for a judge or a reader; a choice's with the text of its option."""
        texts = dict(self.options)
        return " | ".join(f"{label}: {texts[label]}" if label in texts else label for label in self.references)


class Row:
    """The fields of one row, read with errors that name the file, the row and the key.

    Args:
        fields: what was parsed.
        place: file and row, for messages.

    Raises:
        ValueError: not an object.
    """

    def __init__(self, fields: object, place: str) -> None:
        if not isinstance(fields, dict):
            raise ValueError(f"{place}: expected a JSON object, found {type(fields).__name__}")
        self.fields, self.place = fields, place

    def fail(self, key: str, problem: str) -> ValueError:
        return ValueError(f"{self.place}: {key!r} {problem}; the row has the keys {sorted(self.fields)}")

    def text(self, key: str) -> str:
        """A text that is not blank; numbers are taken as they are written."""
        value = self.fields.get(key)
        if key not in self.fields or value is None:
            raise self.fail(key, "is missing")
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise self.fail(key, f"is no text but {type(value).__name__}")
        if not str(value).strip():
            raise self.fail(key, "is empty")
        return str(value).strip()

    def texts(self, key: str) -> list[str]:
        """A list of texts, at least one."""
        value = self.fields.get(key)
        if not isinstance(value, Sequence) or isinstance(value, str) or not value:
            raise self.fail(key, "is missing, empty or no list")
        return [Row({key: entry}, self.place).text(key) for entry in value]

    def row(self, key: str) -> "Row":
        """A nested object."""
        if not isinstance(self.fields.get(key), dict):
            raise self.fail(key, "is missing or no object")
        return Row(self.fields[key], f"{self.place}, in {key!r}")


def find_options(question: str) -> tuple[tuple[str, str], ...]:
    """The options that a question lists, one a line as `A: text`, `B. text`, `C) text`, `1: text` or `Option2: text`, from A or
    1 on without a gap. Labels as they are written; the last such list counts, and an option may take several lines.
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


def write_options(question: str, texts: Sequence[str], labels: Sequence[str] = "ABCDEFGHIJ") -> str:
    return question + "".join(f"\n{label}: {text}" for label, text in zip(labels, texts, strict=False))


def choice(row: Row, question: str, label: str, key: str, options: tuple[tuple[str, str], ...] = ()) -> BenchmarkItem:
    """A choice whose options are given or stand in the question; `key` is where the label came from, for the message."""
    options = options or find_options(question)
    if not options:
        raise ValueError(f"{row.place}: the question lists no options, one a line as 'A: text'")
    if label not in dict(options):
        raise row.fail(key, f"is {label!r}, which is none of the options {', '.join(name for name, _ in options)}")
    return BenchmarkItem("", question, (label,), options)


def pair(row: Row) -> BenchmarkItem:
    return BenchmarkItem("", row.text("question"), (row.text("answer"),))


def lettered(row: Row) -> BenchmarkItem:
    """(question, answer) with the options in the question: ARC, WinoGrande, CommonsenseQA as released; a choice of your own."""
    return choice(row, row.text("question"), row.text("answer"), "answer")


def gpqa(row: Row) -> BenchmarkItem:
    return choice(row, RELEASED_GPQA_INSTRUCTION.sub("", row.text("question")), row.text("answer"), "answer")


def mmlu(row: Row) -> BenchmarkItem:
    return choice(row, row.text("Question"), row.text("Ground_truth"), "Ground_truth")


def gsm8k(row: Row) -> BenchmarkItem:
    """The reference is what stands behind `####` at the end of the worked solution."""
    _, mark, answer = row.text("answer").rpartition("####")
    if not mark or not answer.strip():
        raise row.fail("answer", "has no '#### NUMBER' at its end")
    return BenchmarkItem("", row.text("question"), (answer.strip(),))


def math(row: Row) -> BenchmarkItem:
    return BenchmarkItem("", row.text("question"), (row.text("answer"),))


def aime(row: Row) -> BenchmarkItem:
    """The released solution is nothing but the boxed result."""
    found = re.search(r"\\boxed\{\s*(\d+)\s*\}", row.text("solution"))
    if not found:
        raise row.fail("solution", r"holds no \boxed{integer}")
    return BenchmarkItem("", row.text("problem"), (found.group(1),))


def drop(row: Row) -> BenchmarkItem:
    """`ref_text` holds every annotator's answer, with | between them; the spans of one answer are joined by "and"."""
    references = tuple(filter(None, (part.strip() for part in row.text("ref_text").split("|"))))
    if not references:
        raise row.fail("ref_text", "holds no answer")
    return BenchmarkItem("", row.text("question"), references)


def math_hub(row: Row) -> BenchmarkItem:
    return BenchmarkItem("", row.text("problem"), (row.text("answer"),))


def aime_hub(row: Row) -> BenchmarkItem:
    return BenchmarkItem("", row.text("problem"), (row.text("answer"),))


def labelled_hub(row: Row) -> BenchmarkItem:
    """ARC and CommonsenseQA: `choices` with a list of labels and one of texts."""
    choices = row.row("choices")
    labels, texts = choices.texts("label"), choices.texts("text")
    if len(labels) != len(texts):
        raise choices.fail("label", "and 'text' have different lengths")
    question = write_options(row.text("question"), texts, labels)
    return choice(row, question, row.text("answerKey"), "answerKey", tuple(zip(labels, texts, strict=True)))


def gpqa_hub(row: Row) -> BenchmarkItem:
    """The right answer's place among the four is drawn from the question's text, so it is the same for everybody."""
    right = row.text("Correct Answer")
    texts = [right] + [row.text(f"Incorrect Answer {i}") for i in (1, 2, 3)]
    random.Random(stable_seed("options", row.text("Question"))).shuffle(texts)
    options = tuple(zip("ABCD", texts, strict=True))
    label = next(label for label, text in options if text == right)
    return choice(row, write_options(row.text("Question"), texts), label, "Correct Answer", options)


def winogrande_hub(row: Row) -> BenchmarkItem:
    texts = [row.text("option1"), row.text("option2")]
    question = f"{row.text('sentence')}\nOption1: {texts[0]}\nOption2: {texts[1]}"
    return choice(row, question, row.text("answer"), "answer", tuple(zip("12", texts, strict=True)))


def mmlu_hub(row: Row) -> BenchmarkItem:
    texts, index = row.texts("choices"), row.text("answer")
    if index not in map(str, range(len(texts))):
        raise row.fail("answer", f"is {index}, which is no index of the {len(texts)} choices")
    options = tuple(zip("ABCDEFGHIJ", texts, strict=False))
    return choice(row, write_options(row.text("question"), texts), "ABCDEFGHIJ"[int(index)], "answer", options)


def drop_hub(row: Row) -> BenchmarkItem:
    question = f"{row.text('passage')}\nHere is the question: {row.text('question')}"
    return BenchmarkItem("", question, tuple(dict.fromkeys(row.row("answers_spans").texts("spans"))))


def xsum_hub(row: Row) -> BenchmarkItem:
    return BenchmarkItem("", row.text("document"), (row.text("summary"),))
