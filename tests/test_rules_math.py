"""Rules for numbers and LaTeX: written answers, right and wrong, among them those that try to be right by accident."""

import threading

import pytest

from rewards import mathematics
from rewards.accuracy import score_benchmark, score_by_rule
from rewards.format import answer_body, plain_answer

NUMBERS = [  # (text, reference, right)
    ("72", "72", True), ("The answer is 72.", "72", True), ("48/2 = 24 in May, so 48 + 24 = 72.", "72", True),
    ("Answer: 72 clips", "72", True), ("**Answer:** 72", "72", True), ("#### 72", "72", True),
    (r"So we get \boxed{72}. Check: 72 - 24 = 48.", "72", True), ("She pays $1,234.50", "1234.5", True),
    ("385,000 dollars", "385000", True), ("385000.00", "385000", True), ("-7", "-7", True), ("\N{MINUS SIGN}7", "-7", True),
    ("the temperature is \N{EN DASH}7 degrees", "-7", True), ("7", "-7", False), ("-7", "7", False), ("3/4", "0.75", True),
    (r"$\frac{3}{4}$", "0.75", True), ("3/4", "4", False), ("x = 5", "5", True), ("5 or 6", "5", False),
    ("The answer is 5 or 6.", "6", False), ("The answer is not 72.", "72", False),
    ("The answer is not 72, it is 71.", "71", True), ("The answer is not 72, it is 71.", "72", False),
    ("It isn't 72.", "72", False), ("", "72", False), ("I do not know", "72", False), ("seventy-two", "72", False),
    ("172", "72", False), ("72.5", "72", False), ("7.2", "72", False), (r"\boxed{}", "72", False),
    ("Answer:\n72", "72", True), ("First I thought the answer is 70. Wait. The answer is 72.", "72", True),
    ("The answer is 72. No: the answer is 70.", "72", False), ("204", "204", True),
    ("m+n = 3 + 110 = \\boxed{113}", "113", True), ("1\N{NARROW NO-BREAK SPACE}234", "1234", True),
    ("Answer: (3, 5)", "5", False), (r"\boxed{9^{9^{9}}}", "9", False), (r"\boxed{\$18}", "18", True),
    (r"\boxed{\$1{,}234.50}", "1234.5", True), (r"\boxed{5, 6}", "6", False), ("Answer: 5, 6", "6", False),
    (r"\boxed{\{5, 6\}}", "6", False), ("Answer: 10,000", "10000", True), ("Answer: 10 to 18", "18", False),
    ("Answer: 18\N{EN DASH}20", "18", False), ("Answer: 2 1/2 hours", "2.5", True), ("Answer: 5 (that is 3 + 2)", "5", True),
    ("Answer: 5 (that is 3 + 2)", "2", False),
]  # fmt: skip

LATEX = [
    (r"\frac{1}{8}", r"\frac{1}{8}", True), ("1/8", r"\frac{1}{8}", True), ("0.125", r"\frac{1}{8}", True),
    (r"$\dfrac18$", r"\frac{1}{8}", True), ("8", r"\frac{1}{8}", False), (r"\boxed{\frac{8}{21}}", r"\frac{8}{21}", True),
    (r"The probability is $\boxed{\dfrac{16}{42}}$.", r"\frac{8}{21}", True), ("(E)", r"\text{(E)}", True),
    ("E", r"\text{(E)}", True), ("(B)", r"\text{(E)}", False), ("864 square inches", r"864 \mbox{ inches}^2", True),
    (r"864 \text{ in}^2", r"864 \mbox{ inches}^2", True), ("120", r"120^\circ", True),
    (r"$120^{\circ}$", r"120^\circ", True), ("120 degrees", r"120^\circ", True), ("12", r"120^\circ", False),
    ("9/5", r"1\frac{4}{5}", True), ("1.8", r"1\frac{4}{5}", True), (r"$2\pi + 18$", r"18+2\pi", True),
    (r"$20\pi$", r"18+2\pi", False), (r"\sqrt{53}", r"\sqrt{53}", True), (r"$\sqrt{35}$", r"\sqrt{53}", False),
    (r"3 \pm 2 \sqrt{2}", r"3 \pm 2 \sqrt{2}", True), (r"$3-2\sqrt2$, $3+2\sqrt2$", r"3 \pm 2 \sqrt{2}", True),
    (r"$3+2\sqrt2$", r"3 \pm 2 \sqrt{2}", False),
    (r"\left(\frac{3}{5},\frac{8}{3}\right]", r"\left(\frac{3}{5},\frac{8}{3}\right]", True),
    ("(3/5, 8/3]", r"\left(\frac{3}{5},\frac{8}{3}\right]", True),
    ("(3/5, 8/3)", r"\left(\frac{3}{5},\frac{8}{3}\right]", False),
    (r"\boxed{\begin{pmatrix} -18 \\ -49 \\ 96 \end{pmatrix}}", r"\begin{pmatrix} -18 \\ -49 \\ 96 \end{pmatrix}", True),
    (r"\boxed{\begin{pmatrix} 18 \\ -49 \\ 96 \end{pmatrix}}", r"\begin{pmatrix} -18 \\ -49 \\ 96 \end{pmatrix}", False),
    (r"(-\infty, 0]", r"(-\infty, 0]", True), ("5.4 cents", r"5.4 \text{ cents}", True), ("Answer: 4005", "4005", True),
    ("", "4005", False), (r"\boxed{4004} or \boxed{4006}", "4005", False), (r"\boxed{((((((((((", "4005", False),
    ("33/100", r"\dfrac{33}{100}", True), ("33\\%", r"\dfrac{33}{100}", True), (r"\boxed{\$36}", "36", True),
    (r"\boxed{2,1}", "1,2", True), (r"\boxed{1,2,3}", "1,2", False), (r"\boxed{\{5, 6\}}", "6", False),
]  # fmt: skip


@pytest.mark.parametrize(("text", "reference", "right"), NUMBERS)
def test_numbers(text, reference, right, monkeypatch):
    """Bug guarded: a number that is denied, one of several, or a part of another one, that counts as the answer."""
    if "9^{9" in text:  # it never ends
        monkeypatch.setattr(mathematics, "SECONDS", 1)
    assert score_benchmark("number", text, (reference,))[1] == float(right)


@pytest.mark.parametrize(("text", "reference", "right"), LATEX)
def test_latex(text, reference, right):
    """Bug guarded: an answer that is right in another notation scored 0, or a near miss scored 1."""
    assert score_benchmark("math", text, (reference,))[1] == float(right)


def test_an_answer_only_inside_thinking_is_none():
    """Bug guarded: a number that was thought of, and not given, scored as the answer."""
    assert score_benchmark("number", plain_answer("<think>it is 72</think> I cannot say."), ("72",)) == (None, 0.0)
    assert score_benchmark("number", plain_answer("<think>it is 72"), ("72",)) == (None, 0.0)
    assert score_benchmark("number", answer_body("<think>it is 72</think><answer>70</answer>"), ("72",))[1] == 0.0
    assert score_benchmark("number", answer_body("it is 72"), ("72",)) == (None, 0.0)


def test_what_is_kept_of_endless_answers():
    """Bug guarded: a box of a megabyte, which is written down and parsed for each vote; an empty reference that dots equal."""
    assert len(score_benchmark("math", r"\boxed{" + "a" * 5000 + "}", ("1",))[0]) == mathematics.LONGEST
    assert mathematics.score_math(".", ("$$",)) == 0.0


def test_mathematics_in_a_thread_is_refused():
    """Bug guarded: math-verify outside the main thread gives no error, parses nothing, and scores every answer 0."""
    errors = []

    def score():
        try:
            score_benchmark("number", "98765", ("98765",))
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=score)
    thread.start()
    thread.join()
    assert "main thread" in errors[0]


def test_unknown_kind_is_named():
    with pytest.raises(ValueError, match="'poem'"):
        score_benchmark("poem", "a", ("b",))


def test_training_rule_is_unchanged():
    """Bug guarded: the reward of `--judge rules` changed by the benchmarks' rules."""
    assert score_by_rule("about $1,234.50", "1234.5") == 1.0
    assert score_by_rule("5 or 6", "6") == 1.0
