r"""Eq. 5 by rule for numbers and formulas: 0.5, 1/2, \frac{1}{2} and 50% are one answer. No formula is cut to a number in it.

Plain numbers are compared as exact fractions. All else goes to `math-verify`, which catches every error of an expression, says
False, and limits its time by an alarm signal: a hostile answer costs seconds and scores 0. That works in the main thread only,
which is checked here because elsewhere nothing would parse.
"""

import re
import threading
from fractions import Fraction
from functools import lru_cache

from rewards.final_answer import final_answer, tidy, without_denied

SECONDS = 5  # for parsing one expression, and for comparing two
LONGEST = 2000  # characters of a statement; a longer one is no answer
CLOSE = 2e-6  # relative difference between a decimal and what no decimal equals (1/3, a root)
NUMBER = r"(?:[1-9]\d{0,2}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
QUANTITY = rf"\$?[-+]?[$€£]?(?:{NUMBER})(?:\s*/\s*\d+)?%?"
PLAIN = re.compile(rf"([-+]?)\s*(?:(\d+)\s+(?=\d+\s*/))?((?:{NUMBER})(?:[eE][-+]?\d{{1,3}})?)(?:\s*/\s*(\d+))?\s*(%?)")
SYMBOLS = {
    "×": r"\times ", "·": r"\cdot ", "*": r"\cdot ", "**": "^", "÷": "/", "≤": r"\le ", "<=": r"\le ", "≥": r"\ge ",
    ">=": r"\ge ", "≠": r"\ne ", "!=": r"\ne ", "≈": r"\approx ", "±": r"\pm ", "∞": r"\infty ", "∪": r"\cup ", "√": "sqrt",
    "π": r"\pi ", "²": "^2", "³": "^3", "m²": " m^2", "m³": " m^3", "°": "", "½": " 1/2", "$": "", "€": "", "£": "", "~": " ",
    **dict.fromkeys((r"\$", r"\(", r"\)", r"\displaystyle", r"\!"), ""),
    **dict.fromkeys((r"\,", r"\;", r"\:", r"\ ", r"\quad", r"\qquad"), " "),
}  # fmt: skip
SYMBOL = re.compile(r"(?<!\\)(?:" + "|".join(map(re.escape, sorted(SYMBOLS, key=len, reverse=True))) + ")")
WRAPPER = (r"\\(?:text\w*|mathrm|mathbf|mathit|mbox|underline|boxed|fbox)\s*\{([^{}]*)\}", r" \1 ")
ROOT = (r"(?<!\\)sqrt\s*(?:\(((?:[^()]|\([^()]*\))*)\)|(\d+|[a-z]))", r"\\sqrt{\1\2}")
REWRITES = [  # after the symbols, in this order: one spelling of numbers and functions
    ROOT, ROOT, (r"(?<![\\A-Za-z])(?:pi|infty|sin|cos|tan|log|ln)(?![A-Za-z])", r"\\\g<0> "), (r"\s*\bper ?cent\b", "%"),
    *((rf"(?<=\d)\s*{name}\b", zeros) for name, zeros in (("thousand", "e3"), ("million", "e6"), ("billion", "e9"))),
    (r"(?<=\d)\s*(?:x|\\times|\\cdot)\s*10\s*\^\s*\{?([-+]?\d{1,3})\}?(?!\w)", r"e\1"),
    (r"(?<=[\d)])\s*x\s*(?=\.?\d)", r" \\cdot "),
    (r"(?<![\d.,(\[{])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])", lambda match: match.group().replace(",", "")),
]  # fmt: skip
SEPARATOR = r"(?<=\d)(?:\{,\}|,?\\[!,])\s*(?=\d{3}(?!\d))|(?<=\d) (?=\d{3}(?![\d/.]))"  # of thousands
DECIMAL_COMMA = re.compile(r"(?<![\d.,])(0(?=,\d\d)|\d+(?=,\d\d(?!\d))),(\d+)(?!,?\d)")
UNIT = re.compile(
    r"(?<=[\d)}%])(?:\s+(?:[mgsLlNJWVAKFh]|(?=[a-zA-Z/]{2}))|(?=[a-zA-Z]{2}))(?:[kcdm]?m|[kmc]?g|m?[sLlNJWVAKF]|h|Hz|Pa|ft|in|yd|"
    r"mi|mph|min|hrs?|secs?|lbs?|oz)?(?:\s*/\s*(?:h|hr|s|min|day|kg|m|L)\b)?(?:\s*\^\s*\{?-?[123]\}?)?\Z"
)
REMARK = re.compile(  # behind an answer: "5 (that is 3 + 2)", "5 (3 + 2)"
    r"(?i)[ \t]+\([^()\\]*[a-z]{2}[^()\\]*\)\Z|(?<=\d)[ \t]+\([\d\s.]+[-+*/=][-+*/=\d\s.]*\)\Z"
)
# what splits a statement: words, with the power of a unit; not letters that stand alone, their products (xy) and functions
WORD = re.compile(
    r"(?<![\\A-Za-z{_^])(?!(?:sqrt|sec|csc|cot|exp|min|max|gcd|lcm|mod|det)\b)(?:[A-Za-z][a-z'’-]{2,}|[A-Z]{4,}|i\.e\.|e\.g\.|"
    r"[aAI](?=\s+[A-Za-z]{2})|(?:[iI]s|of|[iI]n|to|or|at|by|[wW]e|[sS]o|as|[iI]t|[iI]f|an|be|[hH]e|on|no|do|us|my|up)(?![A-Za-z(^]))"
    r"(?:\s*\^\s*\{?[23]\}?)?"
)
FORMULA = re.compile(r"[\d\\]|(?<![A-Za-z])[A-Za-z]\)?\s*[-+=<>^/*]\s*\(?[A-Za-z](?![A-Za-z])")
CONCLUDES = re.compile(
    r"(?i)\b(?:so|thus|hence|therefore|giv|mak|means|is\b|are\b|was\b|equal|becom|total|get|ha[sv]|left|leav)"
)
EXPLAINS = re.compile(
    r"(?i)\b(?:because|since|as|for|from|in|per|after|before|at|of|by|with|if|when|where|every|each|on|over|within|that|which)\b"
)
HEDGE = re.compile(r"(?i)\W*(?:(?:and|or|maybe|perhaps|possibly|either|both)\W*)*")
BESIDE = re.compile(r"(?i)[\s,]*[\w'^]*[\s,]*(?:and|or|to|by|but)?[\s,]*")  # between the quantities of "5 feet 6 inches"
BOUND = re.compile(r"(?i)\b(?:(?:less|more|greater|fewer|smaller|larger|higher|lower|other) than|below|above)\W*\Z")


def extract_math(text: str) -> str | None:
    """Return the final answer of a text; None if it has none, names two ("5 or 6 pens") or only says what the answer is not."""
    return final_answer(tidy(text), _stated, lambda line: _stated(line, last=True))


def score_number(answer: str, references: tuple[str, ...]) -> float:
    """Return 1.0 if the answer's number equals one of the references'; a formula, a set or an interval is no number."""
    return float(any(_equal(reference, answer, number=True) for reference in references))


def score_math(answer: str, references: tuple[str, ...]) -> float:
    """Return 1.0 if the answer equals one of the references as an expression, or both are the same LaTeX."""
    plain = _bare_latex(answer)
    return float(any((plain and plain == _bare_latex(r)) or _equal(r, answer, number=False) for r in references))


def math_key(answer: str) -> str:
    """Return the same text for answers that are the same number or expression. Votes are counted by it."""
    value = _value(answer, number=False)
    return _bare_latex(answer) if value is None else str(value)


def is_number(text: str) -> bool:
    """Tell if a text is one plain number, perhaps with a currency or per cent sign, and nothing else."""
    return PLAIN.fullmatch(text.replace("\\", "").strip("$€£% ")) is not None


def _stated(statement: str, *, last: bool = False) -> str | None:
    """Return the number, formula or name that a statement or the last line gives; "" for several; None for sentences."""
    if len(statement) > LONGEST and not last:
        return None
    statement = statement[-LONGEST:]
    kept = without_denied(statement, QUANTITY)
    if FORMULA.search(kept):
        return _part(kept, last=last)
    if re.search(r"\d", statement):
        return ""  # denied
    return statement if len(statement.split()) <= (1 if last else 4) else None


def _part(text: str, *, last: bool = False) -> str:
    """Return the number or formula in a text, without units and words; "" for two side by side or a bound; words as they are.

    Of several it is the first, or one that a later word concludes ("3 + 2 pens, so 5"), or for the end of a text the last.
    """
    text = REMARK.sub("", _plain_latex(text).rstrip(". "))
    if not last:  # one sentence
        sentences = re.split(r"(?<=[\w}%)])\s*[.!?]\s+(?=[A-Z(\\])", text)
        text = next(filter(FORMULA.search, sentences), sentences[0])

    # parts, and the words in the gap before each
    is_part = FORMULA if FORMULA.search(text) else re.compile(r"\A\W*\w\W*\Z")
    parts, gaps, gap, end = [], [], "", 0
    for begin, word, next_end in [*((m.start(), m.group(), m.end()) for m in WORD.finditer(text)), (len(text), "", 0)]:
        piece = text[end:begin]
        if is_part.search(piece) and not re.fullmatch(r"\W*(?:/\W*\w+|\^\W*[23])\W*", piece):
            parts.append(_trimmed(piece))
            gaps.append(gap + re.match(r"(?:[\s,;:=/+]|\\cdot|\\times|-\s)*", piece).group())
            piece = re.search(r"[\s.,;:!?]*\Z", piece).group()
            gap = ""
        gap, end = gap + piece + word, next_end
    if not parts:
        return text

    # the one part that is the answer
    if all(HEDGE.fullmatch(gap) for gap in gaps[1:]):
        return "" if BOUND.search(gaps[0]) else ", ".join(parts)
    concluding = [i for i in range(1, len(parts)) if last or CONCLUDES.search(gaps[i])]
    at = max(concluding, default=0)
    while last and at and "=" in parts[at - 1] and "=" not in parts[at] and EXPLAINS.search(gaps[at]):
        if re.search(r"[.;!?]", gaps[at]) or CONCLUDES.search(gaps[at]):
            break
        at -= 1  # "7 * 3 = 21 pens in 3 boxes"
    neighbours = [gap for gap in gaps[max(at, 1) : at + 2] if BESIDE.fullmatch(gap)]
    if BOUND.search(gaps[at]) or any(not EXPLAINS.search(gap) and not CONCLUDES.search(gap) for gap in neighbours):
        return ""
    return parts[at]


def _trimmed(part: str) -> str:
    r"""Return a part without punctuation and unit; of "1/3 \approx 0.33" what is exact."""
    exact, _, rounded = part.partition(r"\approx")
    part = exact if re.search(r"[\d=\\]", exact) else rounded or exact
    part = re.sub(r"\A(?:[\s,;:=\"'“”?]|\\\")+|(?:[\s,;:=\"'“”?./]|\\\")+\Z", "", part)
    surplus = len(re.findall(r"[(\[]", part)) - len(re.findall(r"[)\]]", part))
    part = part.rstrip("( ") if surplus > 0 else part.rstrip(").") if surplus < 0 and part[0] not in "([" else part
    while re.fullmatch(r"\{[^{}]*\}", part):
        part = part[1:-1].strip()
    return UNIT.sub("", part)


def _plain_latex(text: str) -> str:
    """Return a text in one spelling of numbers and signs, without dollars and wrappers of text."""
    for pattern, replacement in (WRAPPER, WRAPPER, (SEPARATOR, ""), (SYMBOL, lambda match: SYMBOLS[match.group()]), *REWRITES):
        text = re.sub(pattern, replacement, text)
    return text


def _equal(reference: str, answer: str, *, number: bool) -> bool:
    pairs = [(extract_math(reference) or reference, answer)]
    if ("%" in pairs[0][0]) != ("%" in answer):  # "50%" is 1/2, or 50 of a hundred where that is asked for
        pairs.append(tuple(side.replace("%", "") for side in pairs[0]))
    if ("." in pairs[0][0]) != ("." in answer):
        pairs.append(tuple(DECIMAL_COMMA.sub(r"\1.\2", side) for side in pairs[0]))
    return any(_same(_value(reference, number=False), _value(answer, number=number)) for reference, answer in pairs)


@lru_cache(maxsize=4096)
def _value(text: str, *, number: bool):
    """Return a Fraction, a sympy object, a text or None for an answer. A number may be one side of "x = 5", but no formula."""
    part = _part(text)
    if (number and "," not in part) or ("=" in part and not re.search(r"(?<![\\A-Za-z])[A-Za-z]|,", part)):
        left, _, right = part.rpartition("=")  # an equation in x is no number, "m + n = 5" is one
        algebra = r"\d\s*[A-Za-z](?![A-Za-z])|[A-Za-z]\s*[-*/^]|[-*/^]\s*[A-Za-z]"
        part = part if number and re.search(algebra, left.rpartition("=")[2]) else _trimmed(right)
    if plain := PLAIN.fullmatch(part):
        sign, whole, numerator, denominator, percent = plain.groups()
        if int(denominator or 1) == 0:
            return None
        value = int(whole or 0) + Fraction(numerator.replace(",", "")) / int(denominator or 1)
        return Fraction(f"{sign}1") * value / (100 if percent else 1)
    if re.search(r"\d\s*_|\d\s*:\s*\d", part):  # other bases than ten, times and ratios are compared as they are written
        return None if number else re.sub(r"[\s{}]|(?<=[ap])\.|(?<=m)\.", "", part.rpartition("=")[2]).casefold()
    value = _parsed(part) if 0 < len(part) < 500 else None
    return value if not number or _is_scalar(value) else None


def _parsed(text: str):
    """Return a sympy object for LaTeX or a plain formula, taken as a whole; None if it is none."""
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("score mathematics in the main thread: math-verify limits its time by a signal")
    from math_verify import LatexExtractionConfig, parse  # late: sympy takes a second
    from sympy import Float, Rational

    found = parse(f"${text}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=SECONDS)
    exact = {decimal: Rational(str(decimal)) for decimal in found[0].atoms(Float)} if found else {}
    try:  # math-verify rounds decimals to six digits
        return found[0].xreplace(exact) if exact else found[0] if found else None
    except AttributeError:  # a chain of relations, which its parser cannot build anew
        return found[0]


def _is_scalar(value) -> bool:
    from sympy import Expr

    return isinstance(value, Fraction) or (isinstance(value, Expr) and not value.free_symbols)


def _is_decimal(value) -> bool:
    """Tell if a value has digits behind its decimal point, and an end of them."""
    return isinstance(value, Fraction) and value.denominator > 1 and 10**30 % value.denominator == 0


def _same(expected, found) -> bool:
    """Compare exactly, but a decimal with what no decimal equals to six digits."""
    # absent, as text, as fractions
    if expected is None or found is None or isinstance(expected, str) or isinstance(found, str):
        return expected is not None and expected == found
    close = CLOSE if _is_decimal(expected) != _is_decimal(found) else 1e-20
    if isinstance(expected, Fraction) and isinstance(found, Fraction):
        integers = 1 in (expected.denominator, found.denominator)
        return expected == found or (close == CLOSE and not integers and abs(expected - found) <= CLOSE * abs(expected))

    # as sympy objects: numbers by their value, because math-verify takes tiny differences for none
    from math_verify import verify
    from math_verify.errors import TimeoutException
    from math_verify.utils import timeout
    from sympy import Eq, FiniteSet, Interval, Number, Rational, Symbol, Tuple
    from sympy.core.function import AppliedUndef

    expected, found = (Rational(v.numerator, v.denominator) if isinstance(v, Fraction) else v for v in (expected, found))
    if _is_scalar(expected) and _is_scalar(found):
        values = timeout(SECONDS)(lambda: (expected.evalf(30), found.evalf(30)))
        try:
            left, right = values()
            return expected == found or (left.is_finite and right.is_finite and bool(abs(left - right) <= close * abs(left)))
        except (TimeoutException, ArithmeticError, TypeError, ValueError, AttributeError, RecursionError, MemoryError):
            return False
    for one, other in ((expected, found), (found, expected)):
        if isinstance(one, FiniteSet) and isinstance(other, Tuple | Interval):
            return False  # "1, 3" is no point and no interval
        is_equation = isinstance(one, Eq) and not isinstance(one.lhs, Symbol | AppliedUndef)
        if is_equation and _is_scalar(other) and (one.rhs == 0 or any(abs(n) != 1 for n in one.lhs.atoms(Number))):
            return False  # "x = 5" and "m + n = 5" are 5, and an equation in x is no number
    return bool(verify([expected], [found], timeout_seconds=SECONDS))


def _bare_latex(text: str) -> str:
    r"""Return LaTeX in its shortest form: no dollars, spaces, \text{}, \left, \right, nor brackets around a letter."""
    text = re.sub(r"\\left(?![a-z])|\\right(?![a-z])|\s|(?<=\\)[dt](?=frac)", "", _plain_latex(text))
    return re.sub(r"\A\((\w+)\)\Z", r"\1", text.strip(".,")).casefold()
