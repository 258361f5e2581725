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

from rewards.choices import Options, extract_choice, score_choice
from rewards.drop_and_rouge import drop_exact, extract_reading, reading_key, score_drop, score_summary
from rewards.mathematics import extract_math, math_key, score_math, score_number

# an optional sign that is not a minus between two operands, then digits with or without thousands commas and decimals
NUMBER = re.compile(r"(?:(?<![\w)])[-+])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)", re.ASCII)

Rule = Callable[[str, str], float]
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


def last_number(text: str) -> Decimal | None:
    """Return the last number of a text."""
    return next(reversed(numbers(text)), None)


def final_part(reference: str) -> str:
    """Return the answer that a reference holds: the text after the last `####`, where there is one (GSM8K), else all of it."""
    return reference.rpartition("####")[2].strip()


def number_match(answer: str, reference: str) -> float:
    """Return 1.0 if the last number of the answer equals the reference's, as decimals ("42.0" equals "42"), else 0.0."""
    number = last_number(answer)
    return float(number is not None and number == last_number(final_part(reference)))


def exact_match(answer: str, reference: str) -> float:
    """Return 1.0 if the texts are equal after folding case and white space and dropping a final full stop, else 0.0."""
    return float(_normal(answer) == _normal(final_part(reference)))


def _normal(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()


def rule_for(reference: str) -> Rule:
    """Return `number_match` for a reference that ends in a number (a currency or per cent sign aside), else `exact_match`."""
    bare = final_part(reference).strip("$€£% ")
    return number_match if NUMBER.fullmatch(bare.replace("\N{MINUS SIGN}", "-")) else exact_match


def score_by_rule(answer: str, reference: str) -> float:
    """Eq. 5: r_acc = J(x, reference, y'), by rule. An empty answer scores 0."""
    return rule_for(reference)(answer, reference) if answer.strip() else 0.0


def score_exact(answer: str, references: tuple[str, ...]) -> float:
    """Return 1.0 if the answer equals one of the references after folding case and white space."""
    return max(exact_match(answer, reference) for reference in references)


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
    "exact": BenchmarkRule(lambda text, _: extract_reading(text), score_exact, _normal),
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
