"""Eq. 5 by rule: scorers that compare an answer with its reference and need no judge.

A scorer is a pure function (answer, reference) -> score in [0, 1]. `score_by_rule` picks one from the reference.
"""

import re
from collections.abc import Callable
from decimal import Decimal

# an optional sign that is not a minus between two operands, then digits with or without thousands commas and decimals
NUMBER = re.compile(r"(?:(?<![\w)])[-+])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)", re.ASCII)

Rule = Callable[[str, str], float]


def last_number(text: str) -> Decimal | None:
    """The last number in a text: digits with optional sign, thousands commas and decimals ("$1,234.50" is 1234.50)."""
    found = NUMBER.findall(text.replace("\N{MINUS SIGN}", "-"))
    return Decimal(found[-1].replace(",", "")) if found else None


def final_part(reference: str) -> str:
    """What a reference holds to be the answer: the text after the last `####`, where there is one (GSM8K), else all of it."""
    return reference.rpartition("####")[2].strip()


def number_match(answer: str, reference: str) -> float:
    """1.0 if the last number of the answer equals the reference's, as decimals ("42.0" equals "42"), else 0.0."""
    given, wanted = last_number(answer), last_number(final_part(reference))
    return float(given is not None and given == wanted)


def exact_match(answer: str, reference: str) -> float:
    """1.0 if the texts are equal after folding case and white space and dropping a final full stop, else 0.0."""
    return float(_normal(answer) == _normal(final_part(reference)))


def _normal(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()


def rule_for(reference: str) -> Rule:
    """`number_match` where the reference's final part is a number (a currency or per cent sign aside), else `exact_match`."""
    bare = final_part(reference).strip("$€£% ")
    return number_match if NUMBER.fullmatch(bare.replace("\N{MINUS SIGN}", "-")) else exact_match


def score_by_rule(answer: str, reference: str) -> float:
    """Eq. 5 by rule; an empty answer scores 0."""
    return rule_for(reference)(answer, reference) if answer.strip() else 0.0
