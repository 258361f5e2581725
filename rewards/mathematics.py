r"""Eq. 5 by rule for numbers and LaTeX, compared by `math-verify`: 0.5, 1/2, \frac{1}{2} and 50\% are one answer.

math-verify catches every error of the expressions it is given, says False, and bounds its time by an alarm signal. So a hostile
answer costs seconds and scores 0; and it works in the main thread only, which is checked here: elsewhere nothing would parse.
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
    r"""The final answer of a text: its last \boxed{...}, else what follows its last "answer is" or "Answer:", else its last
    line with a digit or formula. None where there is none, or where it names two ("5 or 6") or only says what it is not.
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
    """1.0 if the answer's number equals one of the references', as numbers; a set or an interval is no number."""
    return float(any(_equal(reference, answer, number=True) for reference in references))


def score_math(answer: str, references: tuple[str, ...]) -> float:
    """1.0 if math-verify holds the answer equal to one of the references, or both are the same LaTeX."""
    return float(any(_same_latex(reference, answer) or _equal(reference, answer, number=False) for reference in references))


def math_key(answer: str) -> str:
    """The same text for answers that are the same number or expression: what votes are counted by."""
    parsed = _parse(_delimited(answer))
    return str(parsed[0]) if parsed else _bare_latex(answer)


def _equal(reference: str, answer: str, *, number: bool) -> bool:
    from math_verify import verify  # late: sympy takes a second, and only benchmarks need it

    wanted, given = _parse(_delimited(reference)), _parse(_delimited(answer))
    if number and given:
        import sympy

        if not isinstance(given[0], sympy.Expr) or given[0].free_symbols:
            given = [side for side in (getattr(given[0], "rhs", None),) if side is not None]  # x = 5
    return bool(wanted and given and verify(list(wanted), list(given), timeout_seconds=SECONDS))


def _parse(text: str) -> tuple:
    _need_main_thread()
    return _parsed(text)


@lru_cache(maxsize=4096)
def _parsed(text: str) -> tuple:
    """Candidates for what a text says: a sympy object and its source, or nothing."""
    from math_verify import parse

    return tuple(parse(text, parsing_timeout=SECONDS))


def _need_main_thread() -> None:
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("score mathematics in the main thread: math-verify limits its time by a signal")


def _delimited(text: str) -> str:
    """Set LaTeX and lists between dollars, where math-verify looks for them. Sentences keep their words: units are left for it
    to drop. Outside of dollars it takes the last number of a list, the fraction of a mixed number, and nothing of "\\$5".
    """
    text = MIXED.sub(lambda m: f"{int(m[1]) * int(m[3]) + int(m[2])}/{m[3]}", text.strip().replace("\\$", ""))
    if LIST.fullmatch(text) and not re.fullmatch(PLAIN_NUMBER, text):
        return f"${text}$"
    text = re.sub(r"(?<=\d)\{,\}(?=\d)|(?<=\d),\\!(?=\d)|(?<=\d)\\,(?=\d{3})", "", text)
    return text if "$" in text or not (LATEX.search(text) or re.match(r"\s*[\[({]", text)) else f"${text}$"


def _same_latex(reference: str, answer: str) -> bool:
    return _bare_latex(reference) != "" and _bare_latex(reference) == _bare_latex(answer)


def _bare_latex(text: str) -> str:
    r"""LaTeX without what does not matter: dollars, spaces, \text{} around words, \left, \right, brackets around a letter."""
    text = re.sub(r"\\(?:text|mbox|mathrm|textbf)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\left|\\right|\\[!,;: ]|[\s$]", "", text).replace("dfrac", "frac").replace("tfrac", "frac")
    return re.sub(r"\A\((\w+)\)\Z", r"\1", text.rstrip(".")).casefold()
