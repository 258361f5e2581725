"""Rules for numbers and LaTeX: written answers, right and wrong, among them those that try to be right by accident."""

import threading

import pytest

from rewards import mathematics
from rewards.accuracy import kind_of, score_benchmark, score_by_rule
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
    # a formula, a time or a bound is not cut to the number in it
    (r"\boxed{4n+3}", "3", False), (r"\boxed{7\pi}", "7", False), (r"\boxed{8:45 AM}", "8", False), ("Answer: 7x", "7", False),
    ("Answer: 3x + 4y - 12 = 0", "0", False), ("Answer: more than 9", "9", False), ("x^2 = 49", "49", False),
    ("Answer: m + n = 61", "61", True), ("Answer: AB = 14 cm", "14", True), ("so 18 - 4 = 14 pens in 2 boxes", "14", True),
    # several quantities are no number, in a box neither
    ("Answer: 4 hours 20 minutes", "20", False), ("Answer: 3 cats and 4 dogs", "4", False), (r"\boxed{8 or 9}", "9", False),
    (r"\boxed{8 \text{ to } 9}", "9", False), (r"\boxed{8; 9}", "9", False), (r"\boxed{8} and \boxed{9}", "9", False),
    # forms of a number
    (r"\boxed{\text{64}}", "64", True), (r"\boxed{\mathbf{64}}", "64", True), (r"\boxed{{64}}", "64", True),
    (r'\boxed{"64"}', "64", True), (r"\boxed{+64}", "64", True), (r"\boxed{64\ \text{cm}^2}", "64", True),
    ("64 km/h", "64", True),
    ("Answer: 3e5", "300000", True), ("-2.5e-4", "-0.00025", True), ("Answer: 7 x 10^4", "70000", True),
    ("0.00002", "2e-05", True),
    (r"$2.5 \times 10^{3}$", "2500", True), ("2.5 million", "2500000", True), ("2.5 million", "2.5", False),
    (r"\boxed{22,\! 333,\! 444}", "22333444", True), ("Answer: 40%", "40", True), ("Answer: 40%", "0.4", True),
    ("40%", "4000%", False), ("18,75", "18.75", True), ("30000000000000001", "30000000000000002", False),
    ("0.333333", "1/3", True), ("0.333", "1/3", False), ("\\frac{5}{0}", "5", False), ("The answer is 9 (4 + 5).", "9", True),
    # where the answer stands
    ("Answer:\n\\[\n64\n\\]", "64", True), ("**Final answer**\n\n$$\n64\n$$", "64", True), ("So\n$$\nx = 64\n$$", "64", True),
    ("Answer: $\n64\n$", "64", True), ("\\begin{align}\nx &= 60 + 4 \\\\\n&= 64\n\\end{align}", "64", True),
    (r"Each row has \boxed{8} pens."+"\n\nAnswer: 64", "64", True), (r"\boxed{64} is the answer, not \boxed{63}", "64", True),
    ("Answer: 63\nNo, that is wrong. The answer is 64.", "64", True), ("<answer>64 pens</answer>", "64", True),
    ("8*8 = <<8*8=64>>64 pens", "64", True), ("#### Step 1: add 3\nSo it is 64.", "64", True),
    ("If the answer is 5, no. So 64.", "64", True),
    ("Answer: 64 pens in 8 rows", "64", True), ("Answer: 8 times 8, so 64", "64", True),
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
    # formulas without LaTeX marks, whole
    ("Answer: 4", "4n+3", False), ("Answer: 7-2i", "7+2i", False), ("Answer: 2i+7", "7+2i", True), (r"\(7+2i\)", "7+2i", True),
    ("y < 4", "y > 4", False), (r"y \leq 4", "y <= 4", True), ("Answer: 0", "2x - 3y = 0", False),
    ("2x - 3y = 0", "0", False), ("x^2 = 9", "9", False), ("f(2) = 9", "9", True), ("4!", "24", True),
    ("2*sqrt(11)", r"2\sqrt{11}", True), ("sqrt((1+2)*12)", "6", True), ("3*pi", r"3\pi", True), ("p + q", "q+p", True),
    ("p - q", "q - p", False), (r"\pm 6", "6 or -6", True), ("6", r"\pm 6", False), ("c=4, d=7", "c = 4 and d = 7", True),
    ("7", "c=4, d=7", False), ("4; 5; 6", "4,5,6", True), ("8:30", "8:00", False), ("3:4", "r:s = 3:4", True),
    ("31_7", "31", False),
    # small numbers, and what math-verify does not parse
    (".0000351", ".0000352", False), (r"\frac{1}{3^{70}}", r"\frac{1}{3^{71}}", False),
    (r"2 + \mathrm{e}", r"2 - \mathrm{e}", False),
    (r"1, 2, \ldots, n", r"2, 3, \ldots, n", False), ("(2, 0.00000004)", "(2, 0.00000003)", False), ("(2,5)", "2,5", False),
    ("The answer is Ravi.", r"\text{Ravi}", True), (r"\boxed{(1, 2)} \text{ and } \boxed{(3, 4)}", "(1,2), (3,4)", True),
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
    assert len(score_benchmark("math", r"\boxed{" + "a" * 5000 + "}", ("1",))[0]) <= mathematics.LONGEST
    assert score_benchmark("number", "the answer is 1 " * 3000, ("2",))[1] == 0.0
    assert mathematics.score_math(".", ("$$",)) == 0.0


def test_mathematics_in_a_thread_is_refused():
    """Bug guarded: math-verify outside the main thread gives no error, parses nothing, and scores every answer 0."""
    errors = []

    def score():
        try:
            score_benchmark("number", r"\sqrt{98765}", ("5",))
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=score)
    thread.start()
    thread.join()
    assert "main thread" in errors[0]


def test_relations_with_decimals_are_scored():
    """Bug guarded: a run that ends in a traceback because a response chains relations, which sympy cannot build anew."""
    for text in ("Answer: $1 < 2.5 < 3 < x$", "Answer: $0.5 < x < y < 2$"):
        assert score_benchmark("math", text, ("3",))[1] == score_benchmark("number", text, ("3",))[1] == 0.0


def test_unknown_kind_is_named():
    with pytest.raises(ValueError, match="'poem'"):
        score_benchmark("poem", "a", ("b",))


@pytest.mark.parametrize(("text", "reference", "right"), NUMBERS)
def test_training_reads_what_evaluation_reads(text, reference, right, monkeypatch):
    """Bug guarded: training and evaluation judge by two rules, so that plain answers and answer bodies are not alike."""
    monkeypatch.setattr(mathematics, "SECONDS", 1)
    assert score_by_rule(text, f"A solution with 3 steps.\n#### {reference}") == float(right)


def test_kind_of_training_references():
    """Bug guarded: `\\boxed{72}` and 1e-05 compared as text; a sentence with a dollar sign parsed as a formula."""
    kinds = {"#### 1,000": "number", "50%": "number", r"\boxed{72}": "number", "1e-05": "number", r"\frac{1}{2}": "math"}
    kinds |= {"route 66": "exact", "Paris": "exact", "It costs $5 a month for all of them": "exact", "nan": "exact"}
    assert {reference: kind_of(reference) for reference in kinds} == kinds
