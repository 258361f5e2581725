r"""Eq. 5 by rule for numbers and formulas: 0.5, 1/2, \frac{1}{2} and 50% are one answer. A formula is never cut to a number in it.

Plain numbers are compared as exact fractions. All else goes to `math-verify`, which catches every error of an expression, says
False, and limits its time by an alarm signal: a hostile answer costs seconds and scores 0. That works in the main thread only, which
is checked here because elsewhere nothing would parse.
"""

import re
import threading
from fractions import Fraction
from functools import lru_cache

from rewards.final_answer import final_answer, tidy, without_denied

SECONDS = 5  # for parsing one expression, and for comparing two
LONGEST = 2000  # characters of a final answer; what is longer is none
CLOSE = 1e-6  # relative difference of a decimal and what no decimal equals (1/3, a root)
NUMBER = r"(?:[1-9]\d{0,2}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
QUANTITY = rf"\$?[-+]?[$€£]?(?:{NUMBER})(?:\s*/\s*\d+)?%?"
PLAIN = re.compile(rf"([-+]?\s*(?:{NUMBER})(?:[eE][-+]?\d{{1,3}})?)(?:\s*/\s*(\d+))?")
SYMBOLS = {
    "×": r"\times ", "·": r"\cdot ", "*": r"\cdot ", "÷": "/", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "π": r"\pi ", "∞": r"\infty ",
    "∪": r"\cup ", "√": "sqrt", "²": "^2", "³": "^3", "m²": " m^2", "m³": " m^3", "°": "", "½": r"\frac{1}{2}", "±": r"\pm ", "≈": r"\approx ", "**": "^", "<=": r"\le ",
    ">=": r"\ge ", "!=": r"\ne ", r"\displaystyle": "", r"\(": "", r"\)": "", r"\$": "", "$": "", "€": "", "£": "",
    r"\,": " ", r"\;": " ", r"\:": " ", r"\ ": " ", r"\!": "", r"\quad": " ", r"\qquad": " ", "~": " ",
}  # fmt: skip
SYMBOL = re.compile(r"(?<!\\)(?:" + "|".join(map(re.escape, sorted(SYMBOLS, key=len, reverse=True))) + ")")
NAMES = re.compile(r"(?<![\\A-Za-z])(pi|infinity|infty)(?![A-Za-z])")
WRAPPER = re.compile(r"\\(?:text|mathrm|mathbf|textbf|textit|mathit|textnormal|mbox|underline|boxed|fbox)\s*\{([^{}]*)\}")
SEPARATOR = re.compile(r"(?<=\d)(?:\{,\}|,?\\[!,])\s*(?=\d{3}(?!\d))|(?<=\d)\\!|(?<=\d)[ ](?=\d{3}(?![\d/.]))")
THOUSANDS = re.compile(r"(?<![\d.,(\[{])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")
TIMES = re.compile(r"(?<=[\d)])\s*[xX]\s*(?=\.?\d)")
DECIMAL_COMMA = re.compile(r"(?<![\d.,])(0(?=,\d\d)|\d+(?=,\d\d(?!\d))),(\d+)(?!,?\d)")
SCALED = re.compile(rf"({NUMBER})\s*(thousand|million|billion|trillion)\b", re.IGNORECASE)
SCALES = {"thousand": "e3", "million": "e6", "billion": "e9", "trillion": "e12"}
POWER_OF_TEN = re.compile(rf"({NUMBER})\s*(?:[xX]|\\times|\\cdot)\s*10\s*\^\s*\{{?([-+]?\d{{1,3}})\}}?(?!\w)")
MIXED = re.compile(r"(?<![\d/.,])(\d+)\s+(\d+)/(\d+)(?![\d/])|(?<![\d/.,}])(\d+)\\[dt]?frac\{(\d+)\}\{(\d+)\}")
UNIT = re.compile(
    r"(?<=[\d)}%])(?:\s+(?:[mgsLlNJWVAKFh]|(?=[a-zA-Z/²³^]{2}))|(?=[a-zA-Z]{2}))(?:[kcdm]?m|[kmc]?g|m?[sLlNJWVAKF]|h|Hz|Pa|ft|in|yd|mi|mph|"
    r"min|hrs?|secs?|lbs?|oz|dB)?(?:\s*/\s*(?:h|hr|s|min|day|kg|m|L)\b)?(?:\s*\^\s*\{?-?[123]\}?)?\Z"
)
REMARK = re.compile(r"[ \t]+\([^()\\]*[a-z]{2}[^()\\]*\)\Z", re.IGNORECASE)  # behind an answer: "5 (that is 3 + 2)"
# what splits a statement: words, with the power of a unit; not letters that stand alone, their products (xy) and functions
WORD = re.compile(
    r"(?<![\\A-Za-z{_^])(?!(?:sqrt|sin|cos|tan|sec|csc|cot|log|exp|min|max|gcd|lcm|mod|det)\b)(?:[A-Za-z][a-z'’-]{2,}|[A-Z]{4,}|"
    r"[aAI](?=\s+[A-Za-z]{2})|(?:[iI]s|of|[iI]n|to|or|at|by|[wW]e|[sS]o|as|[iI]t|[iI]f|an|be|[hH]e|on|no|do|us|my|up|OR)(?![A-Za-z(^]))"
    r"(?:\s*\^\s*\{?[23]\}?)?"
)
CONCLUDES = re.compile(r"\b(?:so|thus|hence|therefore|giv|mak|means|is\b|are\b|was\b|equal|becom|total|get|ha[sv]|left|leav)", re.IGNORECASE)
EXPLAINS = re.compile(
    r"\b(?:because|since|as|for|from|in|per|after|before|at|of|by|with|if|when|where|every|each|on|over|within|that|which)\b", re.I
)
FORMULA = re.compile(r"[\d\\]|(?<![A-Za-z])[A-Za-z]\)?\s*[-+=<>^/*]\s*\(?[A-Za-z](?![A-Za-z])")
HEDGE = re.compile(r"\W*(?:(?:and|or|maybe|perhaps|possibly|either|both)\W*)*", re.IGNORECASE)
BESIDE = re.compile(r"[\s,]*[\w'²^]*[\s,]*(?:and|or|to|by|but)?[\s,]*", re.IGNORECASE)  # between two quantities of one answer: "5 feet 6 inches"
BOUND = re.compile(r"(?:\b(?:less|more|greater|fewer|smaller|larger|higher|lower|other) than|\b(?:below|above))\W*\Z", re.IGNORECASE)


def extract_math(text: str) -> str | None:
    """Return the final answer of a text; None if it has none, names two ("5 or 6 pens") or only says what the answer is not."""
    return final_answer(tidy(text), _stated, lambda line: _stated(line, last=True))


def score_number(answer: str, references: tuple[str, ...]) -> float:
    """Return 1.0 if the answer's number equals one of the references', as numbers; a formula, a set or an interval is no number."""
    return float(any(_equal(reference, answer, number=True) for reference in references))


def score_math(answer: str, references: tuple[str, ...]) -> float:
    """Return 1.0 if the answer equals one of the references as an expression, or both are the same LaTeX."""
    plain = _bare_latex(answer)
    return float(any((plain and plain == _bare_latex(r)) or _equal(r, answer, number=False) for r in references))


def math_key(answer: str) -> str:
    """Return the same text for answers that are the same number or expression. Votes are counted by it."""
    value, percent = _value(answer, number=False)
    return _bare_latex(answer) if value is None else f"{value}{'%' * percent}"


def is_number(text: str) -> bool:
    """Tell if a text is one plain number, perhaps with a currency or per cent sign, and nothing else."""
    return PLAIN.fullmatch(text.replace("\\", "").strip("$€£% ")) is not None


def _stated(statement: str, *, last: bool = False) -> str | None:
    """Return the number, formula or name that a statement or the last line gives; "" for several numbers; None for sentences."""
    statement = statement[-LONGEST:] if last else statement[:LONGEST]
    kept = without_denied(statement, QUANTITY)
    if FORMULA.search(kept):
        return _part(kept, last=last)
    if re.search(r"\d", statement):
        return ""  # denied
    return statement if len(statement.split()) <= (1 if last else 4) else None


def _part(text: str, *, last: bool = False) -> str:
    """Return the number or formula in a text, without units and words; "" for two side by side or a bound; words as they are.

    Of several it is the first, or one that a later word concludes ("5 since 3 + 2, so 5"), or for the end of a text the last.
    """
    text = REMARK.sub("", _plain_latex(text).rstrip(". "))
    if not last:  # one sentence
        sentences = re.split(r"(?<=[\w}%)])\s*[.!?]\s+(?=[A-Z(\\])", text)
        text = next((sentence for sentence in sentences if FORMULA.search(sentence)), sentences[0])
    is_part = FORMULA if FORMULA.search(text) else re.compile(r"\A\W*\w\W*\Z")
    parts, gaps, gap, end = [], [], "", 0
    for match in [*WORD.finditer(text), None]:
        piece = text[end : match.start() if match else len(text)]
        if is_part.search(piece) and not re.fullmatch(r"\W*(?:/\W*\w+|\^\W*[23])\W*", piece):
            parts.append(_trimmed(piece))
            gaps.append(gap + re.match(r"(?:[\s,;:=/+]|\\cdot|\\times|-\s)*", piece).group())
            gap = ""
        else:
            gap += piece
        gap, end = (gap + match.group(), match.end()) if match else (gap, end)
    if not parts:
        return text
    if len(parts) > 1 and all(HEDGE.fullmatch(gap) for gap in gaps[1:]):
        return "" if BOUND.search(gaps[0]) else ", ".join(parts)
    at = max([0, *(i for i in range(1, len(parts)) if last or CONCLUDES.search(gaps[i]))])
    while last and at and EXPLAINS.search(gaps[at]) and "=" not in parts[at] and "=" in parts[at - 1]:
        at -= 1  # "7 * 3 = 21 in 3 days"
    beside = [gap for gap in gaps[max(at, 1) : at + 2] if BESIDE.fullmatch(gap) and not EXPLAINS.search(gap) and not CONCLUDES.search(gap)]
    return "" if beside or BOUND.search(gaps[at]) else parts[at]


def _trimmed(part: str) -> str:
    """Return a part without punctuation and unit, and of "1/3 \\approx 0.33" what is exact."""
    exact, _, rounded = part.partition("\\approx")
    part = exact if re.search(r"[\d=\\]", exact) else rounded or exact
    part = re.sub(r"\A(?:[\s,;:=\"'“”?]|\\\")+|(?:[\s,;:=\"'“”?./]|\\\")+\Z", "", part)
    surplus = len(re.findall(r"[(\[]", part)) - len(re.findall(r"[)\]]", part))
    part = part.rstrip("(") if surplus > 0 else part.rstrip(")") if surplus < 0 and not re.match(r"[(\[]", part) else part
    part = part.strip(" \t,;:=").rstrip(".")
    while re.fullmatch(r"\{[^{}]*\}", part):
        part = part[1:-1].strip()
    return UNIT.sub("", part)


def _plain_latex(text: str) -> str:
    """Return a text with one spelling of numbers and signs: no dollars, wrappers, separators of thousands, Unicode signs."""
    for _ in range(3):
        text = WRAPPER.sub(r" \1 ", text)
    text = SEPARATOR.sub("", text)
    text = NAMES.sub(lambda m: r"\pi " if m[1] == "pi" else r"\infty ", SYMBOL.sub(lambda m: SYMBOLS[m.group()], text))
    text = MIXED.sub(lambda m: _improper(*filter(None, m.groups())), text)
    text = SCALED.sub(lambda m: m[1] + SCALES[m[2].lower()], text)
    text = re.sub(r"\s*\bper ?cent\b", "%", text, flags=re.IGNORECASE)
    text = THOUSANDS.sub(lambda m: m.group().replace(",", ""), POWER_OF_TEN.sub(r"\1e\2", text))
    return TIMES.sub(r" \\cdot ", text)


def _improper(whole: str, numerator: str, denominator: str) -> str:
    return f"{int(whole) * int(denominator) + int(numerator)}/{denominator}"


def _equal(reference: str, answer: str, *, number: bool) -> bool:
    reference = extract_math(reference) or reference
    if ("." in reference) != ("." in answer):  # one of the two may have a decimal comma
        pairs = {(reference, answer), (DECIMAL_COMMA.sub(r"\1.\2", reference), DECIMAL_COMMA.sub(r"\1.\2", answer))}
    else:
        pairs = {(reference, answer)}
    for reference, answer in pairs:
        (expected, expected_percent), (found, found_percent) = _value(reference, number=False), _value(answer, number=number)
        if isinstance(expected, str) or isinstance(found, str) or expected is None or found is None:
            same = expected is not None and expected == found
        else:
            same = _same(expected, found)
            if expected_percent != found_percent:  # "50%" is 50 of a hundred or 1/2, whichever is asked for
                same = same or _same(expected / 100 if expected_percent else expected, found / 100 if found_percent else found)
        if same:
            return True
    return False


@lru_cache(maxsize=4096)
def _value(text: str, *, number: bool) -> tuple:
    """Return (a Fraction, a sympy object or None, is per cent) for an answer. A number is one side of "x = 5", and no formula."""
    part = _part(text)
    if number and "," not in part or "=" in part and not re.search(r"[A-Za-z,]", part):
        left, _, right = part.rpartition("=")  # an equation in x is no number, and "m + n = 5" is
        if not (number and re.search(r"\d\s*[A-Za-z](?![A-Za-z])|[A-Za-z]\s*[-*/^]|[-*/^]\s*[A-Za-z]", left.rpartition("=")[2])):
            part = _trimmed(right)
    percent = part.endswith("%")
    part = part.rstrip("% \\")
    if plain := PLAIN.fullmatch(part):
        denominator = int(plain[2] or 1)
        return Fraction(re.sub(r"[,\s+]", "", plain[1])) / denominator if denominator else None, percent
    if re.search(r"\d\s*_|\d\s*:\s*\d", part):  # other bases than ten, times and ratios are compared as they are written
        return None if number else re.sub(r"[\s{}]|(?<=[ap])\.|(?<=m)\.", "", part.rpartition("=")[2]).casefold(), False
    if not part:
        return None, False
    value = _parse(part)
    return (None if number and not _is_scalar(value) else value), percent


def _parse(text: str):
    """Return a sympy object for LaTeX or a plain formula, taken as a whole; None if it is none."""
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("score mathematics in the main thread: math-verify limits its time by a signal")
    from math_verify import LatexExtractionConfig, parse  # late: sympy takes a second

    found = parse(f"${text}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=SECONDS)
    return found[0] if found else None


def _is_scalar(value) -> bool:
    if isinstance(value, Fraction):
        return True
    import sympy

    return isinstance(value, sympy.Expr) and not value.free_symbols


def _is_decimal(value) -> bool:
    """Tell if a value is written with a decimal point, or could be."""
    if not isinstance(value, Fraction):
        import sympy

        return value.has(sympy.Float)
    return value.denominator > 1 and 10 ** value.denominator.bit_length() % value.denominator == 0


def _same(expected, found) -> bool:
    """Compare exactly, but a decimal with what no decimal equals to six digits."""
    close = CLOSE if _is_decimal(expected) != _is_decimal(found) else 0
    if isinstance(expected, Fraction) and isinstance(found, Fraction):
        return expected == found or min(expected.denominator, found.denominator) > 1 and abs(expected - found) <= close * abs(expected)
    import sympy
    from math_verify import verify
    from math_verify.errors import TimeoutException
    from math_verify.utils import timeout

    expected, found = (sympy.Rational(v.numerator, v.denominator) if isinstance(v, Fraction) else v for v in (expected, found))
    if not (_is_scalar(expected) and _is_scalar(found)):
        return bool(verify([expected], [found], timeout_seconds=SECONDS))

    def near() -> bool:
        left, right = expected.evalf(30), found.evalf(30)
        return left.is_finite and right.is_finite and bool(abs(left - right) <= max(close, 1e-20) * max(abs(left), abs(right)))

    try:
        return expected == found or timeout(SECONDS)(near)()
    except (TimeoutException, ArithmeticError, TypeError, ValueError, AttributeError, RecursionError, MemoryError):
        return False


def _bare_latex(text: str) -> str:
    r"""Return LaTeX in its shortest form: no dollars, spaces, \text{}, \left, \right, nor brackets around a letter."""
    text = re.sub(r"\\left(?![a-z])|\\right(?![a-z])|\s", "", _plain_latex(text)).replace("dfrac", "frac").replace("tfrac", "frac")
    return re.sub(r"\A\((\w+)\)\Z", r"\1", text.strip(".,")).casefold()
