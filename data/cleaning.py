"""The paper's three cleaning rules for questions with reference answers, as pure functions of the rows.

1. Over-long reference answers are dropped.
2. Noise is removed: HTML tags, non-alphanumeric rubbish, duplicate entries.
3. Frequency filter: rare, long-tail queries and low-frequency phrases are dropped.

The paper gives no thresholds; each field of `CleaningRules` says what was chosen, and why. Source: arXiv 2508.12903, training
data. It does not define "frequency" either. Here it is document frequency: the share of the *other* questions that have a word
or a pair of neighbouring words. This estimates the same quantity for a corpus of any size. The rule drops a tail, the questions
with the largest share of rare words, so a sample of any size loses the same share.
"""

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, replace
from itertools import pairwise

from data.examples import Example

CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
# Code that nobody fenced, line by line: C-like line ends, LaTeX commands, imports.
CODE_LINE = re.compile(r"^.*[{};][ \t]*(?://.*)?$|^[ \t]*(?:\\|//|#include|import |from [\w.]+ import).*$", re.MULTILINE)
# Not the zero-width joiner, which emoji and some scripts need.
INVISIBLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u200b\u2060\ufeff]")
RULER = re.compile(r"([-_=.~*#])\1{2,}")  # table rules, blanks to fill in, headings: layout, not rubbish
SYMBOL = re.compile(r"[\W_]")
# In scripts without spaces one character counts as one word.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\d_]+(?:['’][^\W\d_]+)*")

# Tags that scraping leaves in prose. <sub> and <sup> are not among them: without them 10<sup>6</sup> would become 106.
INLINE = ["span", "strong", "em", "font", "center", "small", "big", "img", "label", "a", "b", "i", "u"]
TAG_BECOMES = dict.fromkeys(INLINE, "") | {"td": " ", "th": " "}
BREAKS = "br|hr|p|div|li|ul|ol|tr|table|tbody|thead|h[1-6]|blockquote|section|article"  # these become line ends
TAG = re.compile(rf"</?(?P<name>{BREAKS}|{'|'.join(TAG_BECOMES)})(?:\s[^<>]*)?/?>", re.IGNORECASE)
ENTITY = re.compile("&(?:nbsp|amp|quot|apos|#39|lt|gt);")

# A row that speaks of one of these may have markup as its topic, and what stands between < and > may be a type parameter.
MARKUP_TOPIC = re.compile(
    r"\b(x?html?5?|xml|svg|css|json|sql|jsx|markup|markdown|latex|tags?|web\s?(page|site|app|design|scrap)\w*"
    r"|javascript|typescript|java|python|php|react|angular|vue|swift|kotlin|rust|scala|golang|c\+\+|c#"
    r"|code|coding|scripts?|programming|algorithms?|regex|front-?end)(?!\w)",
    re.IGNORECASE,
)

REASONS = {  # in the order of the rules; a row counts for the first rule that removes it
    "long_answer": "1. over-long reference answer",
    "empty": "2. noise: empty question or answer",
    "rubbish": "2. noise: non-alphanumeric rubbish",
    "duplicate": "2. noise: duplicate question",
    "rare_query": "3. frequency: long-tail query",
    "rare_phrases": "3. frequency: low-frequency phrases",
}


@dataclass(frozen=True)
class CleaningRules:
    """Thresholds of the three rules. Together they bring the full 70,000 rows down to about 40,000, as in the paper.

    Chosen on a sample of 160 rows, of which 59 % stay. Of the full set about 75 % should pass rule 1, nearly all of those
    rule 2 (few duplicates), and 78 % of what is left rule 3: 70,000 x .75 x .98 x .78 = 40,100.
    """

    # Rule 1, in characters, because a length in tokens would make the training set depend on the model. It removes the longest
    # quarter of the sample's answers. The rest has at most 583 tokens of Qwen2.5 (median 4.97 characters a token), so that
    # an answer as long as its reference leaves 900 of the paper's 1,500 new tokens to thinking and refining.
    max_answer_chars: int = 2400
    # Rule 2. Share of letters, digits and combining marks in the characters that are neither space, code nor ruler. The lowest
    # in the sample is .81 (unfenced HTML); formulas and tables reach down to about .6.
    min_alnum_share: float = 0.5
    short_text_chars: int = 20  # rule 2; shorter texts only need one letter or digit: "C++" is a proper answer, at .33
    # Rule 3. A word or phrase is rare when fewer than this share of the other questions use it: in a sample of 200 or fewer
    # no other question, in the full set fewer than 350 others.
    rare_below: float = 0.005
    # Rule 3. The share of rare words in a question is averaged with this many words of average rarity, because the tail would
    # else be all short questions: "Generate a Shakespearean insult." has two rare words of four.
    prior_words: int = 20
    # Rule 3. The shares of the rows that go as long-tail queries (most rare words) and for low-frequency phrases (most rare
    # pairs of neighbouring words). They follow from the paper's 40,000 rows, in equal parts, because the distribution in the
    # sample is smooth and shows no beginning of a tail.
    rare_query_share: float = 0.11
    rare_phrase_share: float = 0.11


def clean(rows: list[Example], rules: CleaningRules) -> tuple[list[Example], dict[str, int]]:
    """Return the tidied rows that all rules leave, in their order, and counts: rows in, removed for each reason, rows out."""
    texts, reasons = apply_rules(rows, rules)
    kept = [text for text, reason in zip(texts, reasons, strict=True) if not reason]
    counts = {"rows_in": len(rows)} | {reason: reasons.count(reason) for reason in REASONS} | {"rows_out": len(kept)}
    stripped = sum(text != tidy(row) for text, row in zip(texts, rows, strict=True))
    return kept, counts | {"tags_stripped": stripped}


def count_table(counts: dict[str, int]) -> str:
    """Return one line for each count."""
    labels = {"rows_in": "rows in", **REASONS, "rows_out": "rows out", "tags_stripped": "(rows freed of stray HTML tags)"}
    return "\n".join(f"{labels[name]:40} {count:>7,}" for name, count in counts.items())


def apply_rules(rows: list[Example], rules: CleaningRules) -> tuple[list[Example], list[str]]:
    """Return the tidied rows, and for each the reason of its removal (one of REASONS) or an empty text."""
    texts = [strip_tags(tidy(row)) for row in rows]

    # rules 1 and 2, row by row
    reasons, seen = [], set()
    for row in texts:
        reason, key = _noise(row, rules), duplicate_key(row.question)
        if not reason and key in seen:
            reason = "duplicate"
        elif not reason:
            seen.add(key)
        reasons.append(reason)

    # rule 3: both parts count over all rows that came through rules 1 and 2, whatever the first part removed
    for reason, share in (("rare_query", rules.rare_query_share), ("rare_phrases", rules.rare_phrase_share)):
        present = [i for i, r in enumerate(reasons) if not r or r in TERMS]
        shares = rare_shares([TERMS[reason](texts[i].question) for i in present], rules)
        rarity = {i: value for i, value in zip(present, shares, strict=True) if not reasons[i]}
        ordered, budget = sorted(rarity.values(), reverse=True), int(share * len(present))
        cut = ordered[budget] if budget < len(ordered) else -1.0  # of rows as rare as the first that stays all stay
        reasons = [reason if rarity.get(i, cut) > cut else old for i, old in enumerate(reasons)]
    return texts, reasons


def _noise(row: Example, rules: CleaningRules) -> str:
    if len(row.reference) > rules.max_answer_chars:
        return "long_answer"
    if not row.question or not row.reference:
        return "empty"
    return "rubbish" if is_rubbish(row.question, rules) or is_rubbish(row.reference, rules) else ""


def tidy(row: Example) -> Example:
    """Give texts one kind of line ending, and remove invisible characters, what UTF-8 cannot write and space around."""

    def tidied(text: str) -> str:
        text = INVISIBLE.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
        return text.encode("utf-8", "replace").decode("utf-8").strip()  # lone surrogates, which JSON can spell

    return replace(row, question=tidied(row.question), reference=tidied(row.reference))


def strip_tags(row: Example) -> Example:
    """Remove the formatting tags and entities that scraping left in prose; the text between the tags stays.

    A row that may have markup as its topic (MARKUP_TOPIC, in the question or the answer) keeps every character, as does
    code between backticks, because a question about HTML is worth nothing without its tags.
    """
    texts = (row.question, row.reference)
    if not any(TAG.search(text) or ENTITY.search(text) for text in texts):
        return row
    if any(MARKUP_TOPIC.search(TAG.sub(" ", text)) for text in texts):
        return row
    return replace(row, question=_strip(row.question), reference=_strip(row.reference))


def _strip(text: str) -> str:
    prose, codes = CODE.split(text), [*CODE.findall(text), ""]
    return "".join(_strip_prose(part) + code for part, code in zip(prose, codes, strict=True)).strip()


def _strip_prose(text: str) -> str:
    closed = {name.casefold() for name in re.findall(r"</(\w+)>", text)}

    def replacement(match: re.Match) -> str:
        name = match["name"].casefold()
        if len(name) == 1 and name not in closed:
            return match.group()  # <a>, <b> and <p> without an end are variables: a vector <a>, a message <p>
        return TAG_BECOMES.get(name, "\n")

    if TAG.search(text):
        text = re.sub(r"\n{3,}", "\n\n", TAG.sub(replacement, text))
    return ENTITY.sub(lambda match: html.unescape(match[0]).replace("\xa0", " "), text)


def is_rubbish(text: str, rules: CleaningRules) -> bool:
    """Tell if a text is mostly symbols, code and rulers left aside; or code without a single letter or digit."""
    prose = RULER.sub(r"\1", CODE.sub(" ", text))
    characters = "".join(prose.split())
    if not characters:
        return not any(map(str.isalnum, text))
    symbols = sum(not unicodedata.category(c).startswith("M") for c in SYMBOL.findall(characters))  # marks belong to letters
    if len(characters) < rules.short_text_chars:
        return symbols == len(characters)
    return len(characters) - symbols < rules.min_alnum_share * len(characters)


def duplicate_key(question: str) -> str:
    """Return a key that is equal for questions that differ in case, spaces, composition of accents, or the mark at the end.

    Symbols count, so that 3 + 4 and 3 - 4 remain two questions, and so do exclamation marks: 5! is not 5.
    """
    return " ".join(unicodedata.normalize("NFC", question).casefold().split()).rstrip(".? ")


def query_words(question: str) -> list[str]:
    """Return the words of a question outside code, because names in code are rare in a common question too."""
    return WORD.findall(CODE_LINE.sub(" ", CODE.sub(" ", question)).casefold())


TERMS = {  # the distinct terms that the two frequency rules count: words, and pairs of neighbouring words
    "rare_query": lambda question: set(query_words(question)),
    "rare_phrases": lambda question: set(pairwise(query_words(question))),
}


def rare_shares(documents: list[set[Hashable]], rules: CleaningRules) -> list[float]:
    """Return for each document the share of its terms that are rare, drawn towards the corpus mean by `prior_words`.

    A term is rare if fewer than `rare_below` of the *other* documents have it.
    """
    frequency = Counter(term for document in documents for term in document)
    limit, prior = rules.rare_below * (len(documents) - 1), rules.prior_words
    rare = [sum(frequency[term] - 1 < limit for term in document) for document in documents]
    mean = sum(rare) / max(1, sum(map(len, documents)))
    return [(r + prior * mean) / max(1, len(d) + prior) for r, d in zip(rare, documents, strict=True)]
