"""Eq. 5 by rule for short texts: DROP's F1 and exact match, ROUGE-L for summaries, equality after folding.

DROP is scored as its authors do (Dua et al. 2019, arXiv 1903.00161): words and numbers are normalised, spans are matched one to
one, a span that shares no number with a reference that has some scores 0, and the best of several references counts.
"""

import re
import string
from functools import lru_cache

from rewards.final_answer import final_answer, tidy

ARTICLES = re.compile(r"\b(?:a|an|the)\b")
WITH_UNIT = re.compile(r"\A[$€£]?(\d[\d,.]*)%?\Z")  # the authors' normalisation reads 98.2% as 982
MOST_SPANS = 10  # that are matched one to one; no reference has more
PUNCTUATION = set(string.punctuation)


def extract_reading(text: str) -> str | None:
    """Return the statement of the final answer; else the whole text, which then pays for its length in F1."""
    text = tidy(text)
    stated = final_answer(text, lambda statement: statement) or text
    return re.sub(r"\A\$(.*)\$\Z", r"\1", stated.strip(" \t\n:").rstrip(".")).strip() or None


def folded(text: str) -> str:
    """Return the text as `exact` compares it: without case, double spaces and a final full stop."""
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()


def score_exact(answer: str, references: tuple[str, ...]) -> float:
    """Return 1.0 if the answer equals one of the references after folding; a reference may state its answer in a sentence."""
    return float(any(folded(answer) in (folded(text), folded(extract_reading(text) or "")) for text in references))


def score_drop(answer: str, references: tuple[str, ...]) -> float:
    """Return the F1 of DROP against the best of the references."""
    return max(_drop_scores(answer, reference)[1] for reference in references)


def drop_exact(answer: str, references: tuple[str, ...]) -> float:
    """Return the exact match of DROP against the best of the references."""
    return max(_drop_scores(answer, reference)[0] for reference in references)


def _drop_scores(answer: str, reference: str) -> tuple[float, float]:
    """Return (exact match, F1). A reference of several spans, joined by "and", is also compared span by span."""
    pairs = [([answer], [reference]), ([WITH_UNIT.sub(r"\1", answer)], [WITH_UNIT.sub(r"\1", reference)])]
    gold = re.split(r"\s+and\s+", reference)
    if len(gold) > 1:
        spans = [part for part in re.split(r",|;|\n|\band\b", answer) if part.strip()]
        pairs.append((spans[:MOST_SPANS] or [answer], gold[:MOST_SPANS]))
    scores = [_compare([reading_key(s) for s in spans], [reading_key(s) for s in gold]) for spans, gold in pairs]
    return max(exact for exact, _ in scores), max(f1 for _, f1 in scores)


def _compare(spans: list[str], gold: list[str]) -> tuple[float, float]:
    """Return the scores of normalised spans, matched one to one for the largest sum of F1, over the larger number of spans."""
    exact = float(set(spans) == set(gold) and len(spans) == len(gold))
    table = [[_bag_f1(set(a.split()), set(b.split())) for b in gold] for a in spans]
    return exact, round(_best_matching(table) / max(len(spans), len(gold), 1), 2)


def _best_matching(table: list[list[float]]) -> float:
    """Return the largest sum of entries of which no two share a row or a column. Exponential in the columns, which are few."""
    best = {0: 0.0}  # columns taken, as bits -> largest sum
    for row in table:
        for taken, total in list(best.items()):
            for column, value in enumerate(row):
                if value and not taken >> column & 1:
                    mask = taken | 1 << column
                    best[mask] = max(best.get(mask, 0.0), total + value)
    return max(best.values())


def _bag_f1(words: set[str], gold: set[str]) -> float:
    numbers = {word for word in gold if _is_number(word)}
    shared = len(words & gold)
    if not words and not gold:  # articles only
        return 1.0
    if not shared or (numbers and not numbers & words):
        return 0.0
    precision, recall = shared / len(words), shared / len(gold)
    return 2 * precision * recall / (precision + recall)


def reading_key(text: str) -> str:
    """Normalise a text, so that answers which DROP takes for equal are equal. Votes are counted by it.

    That is lower case, split at spaces and hyphens, without articles and punctuation; numbers as floats.
    """
    words = []
    for word in re.split(r"[ \-]", tidy(text).casefold()):
        if not _is_number(word):
            word = "".join(sign for sign in word if sign not in PUNCTUATION)
        word = str(float(word)) if _is_number(word) else word
        words += ARTICLES.sub(" ", word).split()
    return " ".join(words)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def score_summary(answer: str, references: tuple[str, ...]) -> float:
    """Return the ROUGE-L F1 with stemming, against the best of the references."""
    return max(_rouge().score(reference, answer)["rougeL"].fmeasure for reference in references)


@lru_cache(maxsize=1)
def _rouge():
    from rouge_score.rouge_scorer import RougeScorer  # late: it loads nltk, and only summaries need it

    return RougeScorer(["rougeL"], use_stemmer=True)
