r"""Eq. 5 by rule for numbers and LaTeX, compared by `math-verify`: 0.5, 1/2, \frac{1}{2} and 50\% are one answer.

math-verify catches every error of an expression, says False, and limits its time by an alarm signal. So a hostile answer costs
seconds and scores 0. It works in the main thread only, which is checked here because elsewhere nothing would parse.
"""

import re
import threading
from functools import lru_cache

from rewards.final_answer import boxed, conclusion, tidy, without_denied

SECONDS = 5  # for parsing one expression, and for comparing two
LONGEST = 2000  # characters of a final answer; what is longer is none
PLAIN_NUMBER = r"[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|[-+]?\.\d+"
QUANTITY = rf"[$€£]?(?:{PLAIN_NUMBER})(?:\s*/\s*\d+)?%?"
HEDGE = re.compile(
    rf"(?:{QUANTITY})[ \t]*[a-z]*[ \t]*,?[ \t]*(?:\bor\b|\band/or\b)[ \t]+(?:maybe |perhaps |possibly )?[$(]*{QUANTITY}", re.I
)
RANGE = re.compile(rf"(?:between |from |about )?{QUANTITY}\s*(?:\u2013|\bto\b|\band\b)\s*{QUANTITY}[a-z ]*", re.I)
LIST = re.compile(r"[-+]?[\d.]+(?:/\d+)?(?:\s*,\s*[-+]?[\d.]+(?:/\d+)?)+")
MIXED = re.compile(r"(?<![\d/.,])(\d+)[ \t]+(\d+)/(\d+)(?![\d/])")
REMARK = re.compile(r"[ \t]+\([^()\\]*[a-z]{2}[^()\\]*\)\Z", re.I)  # behind an answer: "5 (that is 3 + 2)"
LATEX = re.compile(r"\\[a-zA-Z{]|\$[^$]+\$|\^|_\{")


def extract_math(text: str) -> str | None:
    r"""Return the final answer of a text; None if it has none, names two ("5 or 6") or only says what the answer is not.

    It is the last \boxed{...}, else what follows its last "answer is" or "Answer:", else its last line with a digit or formula.
    """
    text = tidy(text)
    if (content := boxed(text)) is not None:
        return content[:LONGEST] or None
    stated = conclusion(without_denied(text, QUANTITY))
    if stated is None:
        lines = [line for line in without_denied(text, QUANTITY).splitlines() if re.search(r"\d|\\|\$", line)]
        stated = lines[-1] if lines else text.strip() if len(text.split()) == 1 else ""
    stated = REMARK.sub("", stated.strip().rstrip(".").strip())
    if not stated or len(stated) > LONGEST or HEDGE.search(stated) or RANGE.fullmatch(stated):
        return None
    return stated


def score_number(answer: str, references: tuple[str, ...]) -> float:
    """Return 1.0 if the answer's number equals one of the references', as numbers; a set or an interval is no number."""
    return float(any(_equal(reference, answer, number=True) for reference in references))


def score_math(answer: str, references: tuple[str, ...]) -> float:
    """Return 1.0 if math-verify holds the answer equal to one of the references, or both are the same LaTeX."""
    plain = _bare_latex(answer)
    return float(any((plain and plain == _bare_latex(r)) or _equal(r, answer, number=False) for r in references))


def math_key(answer: str) -> str:
    """Return the same text for answers that are the same number or expression. Votes are counted by it."""
    parsed = _parse(_delimited(answer))
    return str(parsed[0]) if parsed else _bare_latex(answer)


def _equal(reference: str, answer: str, *, number: bool) -> bool:
    from math_verify import verify  # late: sympy takes a second, and only benchmarks need it

    expected, found = _parse(_delimited(reference)), _parse(_delimited(answer))
    if number and found:
        import sympy

        if not isinstance(found[0], sympy.Expr) or found[0].free_symbols:
            found = [side for side in (getattr(found[0], "rhs", None),) if side is not None]  # x = 5
    return bool(expected and found and verify(list(expected), list(found), timeout_seconds=SECONDS))


def _parse(text: str) -> tuple:
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("score mathematics in the main thread: math-verify limits its time by a signal")
    return _parsed(text)


@lru_cache(maxsize=4096)
def _parsed(text: str) -> tuple:
    """Return the readings of a text: a sympy object and its source, or nothing."""
    from math_verify import parse

    return tuple(parse(text, parsing_timeout=SECONDS))


def _delimited(text: str) -> str:
    """Set LaTeX and lists between dollars, where math-verify looks for them. Sentences keep their words: units are left for it
    to drop. Outside of dollars it takes the last number of a list, the fraction of a mixed number, and nothing of "\\$5".
    """
    text = MIXED.sub(lambda m: f"{int(m[1]) * int(m[3]) + int(m[2])}/{m[3]}", text.strip().replace("\\$", ""))
    if LIST.fullmatch(text) and not re.fullmatch(PLAIN_NUMBER, text):
        return f"${text}$"
    text = re.sub(r"(?<=\d)\{,\}(?=\d)|(?<=\d),\\!(?=\d)|(?<=\d)\\,(?=\d{3})", "", text)
    return text if "$" in text or not (LATEX.search(text) or re.match(r"\s*[\[({]", text)) else f"${text}$"


def _bare_latex(text: str) -> str:
    r"""Return LaTeX in its shortest form: no dollars, spaces, \text{}, \left, \right, nor brackets around a letter."""
    text = re.sub(r"\\(?:text|mbox|mathrm|textbf)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\left|\\right|\\[!,;: ]|[\s$]", "", text).replace("dfrac", "frac").replace("tfrac", "frac")
    return re.sub(r"\A\((\w+)\)\Z", r"\1", text.rstrip(".")).casefold()
