"""Eq. 5 by rule: pure functions (answer, reference) -> score in [0, 1], which need no judge.

Training calls `score_by_rule`, which picks a rule from the reference. A benchmark names the kind of its answers: `RULES[kind]`
takes the answer out of a text, and scores it.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rewards import mathematics
from rewards.choices import Options, extract_choice, score_choice
from rewards.drop_and_rouge import drop_exact, extract_reading, folded, reading_key, score_drop, score_exact, score_summary
from rewards.mathematics import extract_math, math_key, score_math, score_number

# an optional sign that is not a minus between two operands, then digits with or without thousands commas and decimals
NUMBER = re.compile(rf"(?:(?<![\w)])[-+])?(?:{mathematics.NUMBER})", re.ASCII)
LATEX = re.compile(r"(?!.*(?:\b[A-Za-z]{2,}\s+){3})(?:.*\\[A-Za-z]|\$[^$]+\$\Z|.*\^)", re.DOTALL)  # and no sentence

SOURCES = ("accuracy.py", "choices.py", "format.py", "judge.py", "mathematics.py", "drop_and_rouge.py", "final_answer.py")
LIBRARIES = ("math-verify", "rouge-score", "sympy")


@cache
def rules_version() -> str:
    """Return a fingerprint of all rules, of what takes an answer out of a response, and of the libraries they use.

    Scores on disk are kept by it, so that those of a changed rule are computed anew.
    """
    digest = hashlib.blake2b(repr([_installed(name) for name in LIBRARIES]).encode(), digest_size=6)
    for name in SOURCES:
        digest.update((Path(__file__).parent / name).read_bytes())
    return digest.hexdigest()


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def numbers(text: str) -> list[Decimal]:
    """Return every number of a text: digits with optional sign, thousands commas and decimals ("$1,234.50" is 1234.50)."""
    return [Decimal(found.replace(",", "")) for found in NUMBER.findall(text.replace("\N{MINUS SIGN}", "-"))]


def final_part(reference: str) -> str:
    """Return the answer that a reference holds: the text after the last `####`, where there is one (GSM8K), else all of it."""
    return reference.rpartition("####")[2].strip()


def kind_of(reference: str) -> str:
    """Return the rule of a training example: number (a currency or per cent sign aside), math for LaTeX, exact otherwise."""
    bare = extract_reading(reference) or ""
    return "number" if mathematics.is_number(bare) else "math" if LATEX.match(bare) else "exact"


def score_by_rule(answer: str, reference: str) -> float:
    """Eq. 5: r_acc = J(x, reference, y'), by the rule of the reference's kind. An empty answer scores 0."""
    reference = final_part(reference)
    return score_benchmark(kind_of(reference), answer, (reference,))[1]


@dataclass(frozen=True)
class BenchmarkRule:
    """The way in which answers of one kind are scored.

    Attributes:
        extract: (text, options) -> the answer in it, or None if it gives none.
        score: (answer, references) -> [0, 1], against the best of the references.
        key: answers with the same key count as the same in a vote; None: there is no voting between such answers.
        exact: (answer, references) -> 0 or 1, where `score` is a degree and right or wrong is another question.
    """

    extract: Callable[[str, Options], str | None]
    score: Callable[[str, tuple[str, ...]], float]
    key: Callable[[str], str] | None = None
    exact: Callable[[str, tuple[str, ...]], float] | None = None


RULES = {
    "number": BenchmarkRule(lambda text, _: extract_math(text), score_number, math_key),
    "math": BenchmarkRule(lambda text, _: extract_math(text), score_math, math_key),
    "choice": BenchmarkRule(extract_choice, score_choice, str),
    "drop": BenchmarkRule(lambda text, _: extract_reading(text), score_drop, reading_key, drop_exact),
    "summary": BenchmarkRule(lambda text, _: text.strip() or None, score_summary),
    "exact": BenchmarkRule(lambda text, _: extract_reading(text), score_exact, folded),
}


def score_benchmark(kind: str, text: str, references: tuple[str, ...], options: Options = ()) -> tuple[str | None, float]:
    """Return the answer in a text and its score; a missing answer scores 0.

    Args:
        text: what is left of a response when its thinking is taken off.

    Raises:
        ValueError: no rule of this kind.
    """
    if kind not in RULES:
        raise ValueError(f"no rule scores answers of kind {kind!r}; there are {', '.join(RULES)}")
    answer = RULES[kind].extract(text, options)
    return answer, 0.0 if answer is None else RULES[kind].score(answer, references)
