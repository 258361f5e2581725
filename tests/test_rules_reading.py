"""Rules for DROP, summaries and exact texts: written answers, right, wrong and in between."""

import pytest

from rewards.accuracy import RULES, score_benchmark

LANGUAGES = "Tamil and Telugu and Urdu"
READING = [  # (text, references, F1, exact match)
    ("Andre Johnson", ("Andre Johnson",), 1.0, 1.0), ("andre johnson.", ("Andre Johnson",), 1.0, 1.0),
    ("The answer is Andre Johnson.", ("Andre Johnson",), 1.0, 1.0),
    ("**Answer: Andre Johnson**", ("Andre Johnson",), 1.0, 1.0), ("Johnson", ("Andre Johnson",), 0.67, 0.0),
    ("Johnson, Andre", ("Andre Johnson",), 1.0, 0.0), ("Kevin Walter", ("Andre Johnson",), 0.0, 0.0),
    ("Lemon", ("Cleo Lemon", "Lemon"), 1.0, 1.0), ("the Seahawks", ("Seahawks",), 1.0, 1.0), ("98.2", ("98.2",), 1.0, 1.0),
    ("98.2%", ("98.2",), 1.0, 1.0), ("98.20", ("98.2",), 1.0, 1.0), ("1.8", ("98.2",), 0.0, 0.0),
    ("113,532", ("113532",), 1.0, 1.0), ("Answer: 113,532 people", ("113532",), 0.67, 0.0),
    ("7 yards", ("7-yard touchdown pass", "7"), 0.67, 0.0),
    ("7-yard touchdown pass", ("7-yard touchdown pass", "7"), 1.0, 1.0),
    ("8-yard touchdown pass", ("7-yard touchdown pass", "7"), 0.0, 0.0), ("four", ("4", "5", "four"), 1.0, 1.0),
    ("two", ("2",), 0.0, 0.0), ("0.3", (".3", "0.3"), 1.0, 1.0), ("14 August 2005", ("14 August 2005",), 1.0, 1.0),
    ("August 14, 2005", ("14 August 2005",), 1.0, 0.0), ("August 2005", ("14 August 2005",), 0.8, 0.0),
    ("2006", ("14 August 2005",), 0.0, 0.0), (LANGUAGES, (LANGUAGES,), 1.0, 1.0),
    ("Tamil, Telugu, Urdu", (LANGUAGES,), 1.0, 1.0), ("Urdu, Tamil and Telugu", (LANGUAGES,), 1.0, 1.0),
    ("Tamil, Telugu", (LANGUAGES,), 0.67, 0.0), ("Tamil, Telugu, Urdu, Hindi", (LANGUAGES,), 0.75, 0.0),
    ("Tamil, Tamil", ("Tamil and Telugu",), 0.5, 0.0), ("Tamil, Tamil, Telugu", ("Tamil and Telugu",), 0.8, 0.0),
    ("second half", ("second half", "first half"), 1.0, 1.0),
    ("second half or first half", ("second half", "first half"), 0.67, 0.0), ("", ("5",), 0.0, 0.0),
    ("...", ("5",), 0.0, 0.0), ("the", ("5",), 0.0, 0.0), ("1 2 3 4 5 6 7 8 9 10", ("5",), 0.18, 0.0),
    ("Answer: 41.7%", ("41.7%",), 1.0, 1.0), ("€6.5", ("€6.5",), 1.0, 1.0), ("The", ("the",), 1.0, 1.0),
    ("Answer: St. Ives\n\nThe result is clear.", ("St. Ives",), 1.0, 1.0), ("Answer:\n\\[\n12\n\\]", ("12",), 1.0, 1.0),
]  # fmt: skip


@pytest.mark.parametrize(("text", "references", "f1", "exact"), READING)
def test_drop(text, references, f1, exact):
    """Bug guarded: number words, dates, several spans or several references compared otherwise than DROP's authors do."""
    answer, score = score_benchmark("drop", text, references)
    assert score == pytest.approx(f1, abs=0.006)
    assert (RULES["drop"].exact(answer, references) if answer else 0.0) == exact


BODIES = [
    ("number", "Answer: 64", "64"), ("number", "8*8=64\n#### 64", "64"), ("number", "The answer is 64.", "64"),
    ("math", r"Answer: \frac{3}{7}", r"\frac37"), ("choice", "Answer: B", "B"), ("choice", "The answer is B.", "B"),
    ("drop", "Answer: Ada Byron", "Ada Byron"), ("exact", "Answer: Rome", "Rome"), ("exact", "The answer is Rome.", "Rome"),
]  # fmt: skip
REMARKS = (
    "The result is right.", "The choice is obvious.", "I hope that this answer is useful!",
    "This option is supported by the text.",
    "(The answer is found by multiplying 8 by 8.)", "The steps above confirm that the result is consistent.",
)  # fmt: skip


@pytest.mark.parametrize("remark", REMARKS)
@pytest.mark.parametrize(("kind", "body", "reference"), BODIES)
def test_a_sentence_about_the_answer_is_none(kind, body, reference, remark):
    """Bug guarded: a remark behind the answer, or on its line, taken for the answer."""
    options = (("A", "gravity"), ("B", "friction"))
    for text in (f"{body}\n\n{remark}", f"{body}\n{remark}", f"{body.rstrip('.')}. {remark}"):
        assert score_benchmark(kind, text, (reference,), options)[1] == 1.0, text


def test_drop_f1_is_rounded_like_the_authors_do():
    assert score_benchmark("drop", "Johnson", ("Andre Johnson",))[1] == 0.67


REFERENCE = "The club has sold its ground to pay its debts."
SUMMARIES = [  # (text, least, most)
    (REFERENCE, 1.0, 1.0), (REFERENCE.lower(), 1.0, 1.0), (f"  {REFERENCE}\n", 1.0, 1.0),
    ("The club has sold its ground to pay its debt.", 1.0, 1.0), ("The club sold the ground to pay debts.", 0.7, 0.9),
    ("To pay its debts the club has sold its ground.", 0.4, 0.7), ("The club has sold its ground.", 0.7, 0.8),
    ("debts its pay to ground its sold has club The", 0.2, 0.35), ("A red kite was found in a field.", 0.0, 0.15),
    ("", 0.0, 0.0), ("!!!", 0.0, 0.0), ("club club club club", 0.1, 0.2),
    (REFERENCE + " " + "Nothing else is known about it at all." * 5, 0.2, 0.5),
]  # fmt: skip
MORE = [(f"{REFERENCE} {'word ' * n}", 20 / (20 + n) - 1e-6, 20 / (20 + n) + 1e-6) for n in range(1, 14)]


@pytest.mark.parametrize(("text", "least", "most"), SUMMARIES + MORE)
def test_summaries(text, least, most):
    """Bug guarded: a measure that ignores order or pays for length. A word too many lowers precision: 20 / (20 + n)."""
    assert least <= score_benchmark("summary", text, (REFERENCE,))[1] <= most


EXACT = [
    ("Paris", True), ("paris", True), ("Paris.", True), ("  Paris ", True), ("Answer: Paris", True),
    ("The answer is Paris", True),
    ("the answer is: Paris.", True), (r"\boxed{Paris}", True), ("**Paris**", True), ("#### Paris", True), ("PARIS", True),
    ("`Paris`", True), ("Hm.\nAnswer: Paris", True), ("Answer: London\nAnswer: Paris", True), ("Answer:\nParis", True),
    ("Not Paris", False), ("The answer is not Paris", False), ("Paris or London", False), ("London", False), ("", False),
    ("Paris, France", False), ("Pari", False), ("I think it is Paris", False), ("Answer: Paris\nAnswer: London", False),
    ("Parisian", False), ("P a r i s", False),
]  # fmt: skip


@pytest.mark.parametrize(("text", "right"), EXACT)
def test_exact(text, right):
    """Bug guarded: a text that contains the reference, or denies it, taken for it."""
    assert score_benchmark("exact", text, ("Paris",))[1] == float(right)
    assert score_benchmark("exact", text, ("Rome", "Paris"))[1] == float(right), "any of the references will do"
