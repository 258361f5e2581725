"""The rule for multiple choice: written answers, right and wrong, among them those that name more than one option."""

import pytest

from rewards.accuracy import score_benchmark
from rewards.format import answer_body, plain_answer

BEETLES = (("A", "climate"), ("B", "expense"), ("C", "sample size"), ("D", "politics"))
ROOMS = (("A", "living room"), ("B", "parlor"), ("C", "music hall"), ("D", "music room"), ("E", "music"))
NAMES = (("1", "Rebecca"), ("2", "Jessica"))
SEEDS = (("1", "store food"), ("2", "attract pollen"), ("3", "take in light"), ("4", "produce chlorophyll"))
COUNTS = (("1", "2"), ("2", "3"))  # a text that is another one's label
MORALS = (("A", "Wrong, Wrong"), ("B", "Wrong, Not wrong"), ("C", "Not wrong, Wrong"), ("D", "Not wrong, Not wrong"))

CHOICES = [  # (options, text, label that the text settles on)
    (BEETLES, "B", "B"), (BEETLES, "b", "B"), (BEETLES, "(B)", "B"), (BEETLES, "B.", "B"), (BEETLES, "B: expense", "B"),
    (BEETLES, "B) expense", "B"), (BEETLES, "expense", "B"), (BEETLES, "Expense.", "B"), (BEETLES, "Answer: B", "B"),
    (BEETLES, "**Answer: B**", "B"), (BEETLES, "Answer: $B$", "B"),
    (BEETLES, "The answer is (B) expense, because equipment costs money.", "B"),
    (BEETLES, "The correct option is B, since A is too general.", "B"),
    (BEETLES, "The answer is B because A does not apply.", "B"), (BEETLES, r"\boxed{B}", "B"),
    (BEETLES, r"$\boxed{\text{B}}$", "B"), (BEETLES, "The answer is expense", "B"),
    (BEETLES, "Equipment is costly.\nB", "B"), (BEETLES, "Let us see.\nA is wrong, C is wrong, D is wrong.\nSo B.", "B"),
    (BEETLES, "I first thought the answer is A. But the answer is B.", "B"), (BEETLES, "The answer is not A, it is B.", "B"),
    (BEETLES, "It cannot be A, C or D, so the answer is B", "B"), (BEETLES, "A", "A"), (BEETLES, "A. climate", "A"),
    (BEETLES, "A sample of beetles would be hard to find.", None), (BEETLES, "The answer is not B", None),
    (BEETLES, "The answer is not B.", None), (BEETLES, "The answer isn't B", None), (BEETLES, "not expense", None),
    (BEETLES, "A or B", None), (BEETLES, "B or A", None), (BEETLES, "The answer is A or B", None),
    (BEETLES, "Answer: A, B", None), (BEETLES, "A and B", None), (BEETLES, "A/B", None), (BEETLES, "A, B, C, D", None),
    (BEETLES, "A: climate\nB: expense\nC: sample size\nD: politics", None),
    (BEETLES, "A: climate B: expense C: sample size D: politics", None),
    (BEETLES, "climate, expense, sample size and politics", None),
    (BEETLES, "The options are climate, expense, sample size, politics.\nAll of them matter.", None), (BEETLES, "", None),
    (BEETLES, "E", None), (BEETLES, "I do not know", None), (BEETLES, "BEETLES", None), (ROOMS, "music room", "D"),
    (ROOMS, "In a music room, I think.", "D"), (ROOMS, "music", "E"), (ROOMS, "the musician's room", None),
    (ROOMS, "music room or music hall", None), (NAMES, "2", "2"), (NAMES, "Option 2", "2"), (NAMES, "Option2: Jessica", "2"),
    (NAMES, "Answer: 2", "2"), (NAMES, "Jessica", "2"), (NAMES, "Jessica was unable to go to sleep.", "2"),
    (NAMES, "Rebecca was more tired than Jessica.", None), (NAMES, "The answer is Jessica, as Rebecca was tired.", None),
    (NAMES, "Option1 or Option2", None), (NAMES, "The answer is not 1, so the answer is 2.", "2"), (NAMES, "12", None),
    (SEEDS, "The answer is 1: store food", "1"), (SEEDS, "1", "1"), (SEEDS, "In 10 of 12 cases", None),
    (SEEDS, "to store food", "1"), (BEETLES, "a", "A"), (BEETLES, "Answer: A; B; C", None),
    (BEETLES, "Answer: A B C D", None), (BEETLES, "A B", None), (COUNTS, "2", "2"), (COUNTS, "Answer: 2", "2"),
    (COUNTS, "3", "2"), (MORALS, "Answer: Not wrong, Wrong", "C"), (MORALS, "Not wrong, not wrong.", "D"),
    (MORALS, "Answer: Wrong, Wrong", "A"), (MORALS, "Answer: B. Wrong, Not wrong", "B"),
    (BEETLES, r"The field is \boxed{2.4\,\text{T}}."+"\n\n**Answer: C**", "C"),
    (BEETLES, r"\boxed{\text{the expense is largest}}"+"\n\nAnswer: D", "D"), (BEETLES, r"\boxed{A} or \boxed{B}", None),
    (BEETLES, "Final answer:\n\\[\nB\n\\]", "B"), (BEETLES, "<answer>B</answer>", "B"),
    (BEETLES, "Answer: B\n\nThe choice is clear.", "B"),
    ((("A", "b"), ("B", "a")), "a", "B"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "text", "label"), CHOICES)
def test_choices(options, text, label):
    """Bug guarded: an answer that names every option, denies the right one, or hedges, scored as right."""
    assert score_benchmark("choice", text, ("B",), options)[0] == label


def test_score_is_of_the_settled_label():
    assert score_benchmark("choice", "The answer is B", ("B",), BEETLES) == ("B", 1.0)
    assert score_benchmark("choice", "The answer is C", ("B",), BEETLES) == ("C", 0.0)
    assert score_benchmark("choice", "A or B", ("B",), BEETLES) == (None, 0.0)


def test_an_answer_only_inside_thinking_is_none():
    """Bug guarded: the label that was thought of, and not given, scored as the answer."""
    assert score_benchmark("choice", plain_answer("<think>The answer is B</think>Sorry."), ("B",), BEETLES)[0] is None
    assert score_benchmark("choice", plain_answer("<think>The answer is B"), ("B",), BEETLES)[0] is None
    assert score_benchmark("choice", answer_body("<think>B</think><answer>A</answer>"), ("B",), BEETLES)[0] == "A"
    assert score_benchmark("choice", answer_body("<answer>B</answer><answer>A</answer>"), ("B",), BEETLES)[0] is None
