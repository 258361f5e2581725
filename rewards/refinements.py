"""Facts about the refinements of a response that its text tells: where, how long, and what became of the answer."""

import re
from dataclasses import dataclass

from rewards.accuracy import numbers
from rewards.format import TAG, parse_response

PAIR = re.compile(r"<refine>(.*?)</refine>", re.DOTALL)
OPTION = re.compile(r"(?<![\w'])([A-J])(?![\w'])")  # an option letter that stands alone
OPTION_ANSWER = re.compile(r"\W*([A-J])(?:\W*|\s*[).:].*)", re.DOTALL)  # "B", "(B)", "B) both": an answer that is an option
FORMULA = re.compile(r"[\\/^_]")

ANSWER_CHANGES = ("new", "written before", "kept")


@dataclass(frozen=True)
class Refinement:
    """One refinement of a well-formed response.

    Attributes:
        before, after: the thinking on both sides of it, without the tags of other refinements.
        body: what it says.
        begin: where it opens, in characters, as a share of the response: 0 is the first character, 1 would be the end.
        characters: of the body.
        share: of the response's characters that are in it, tags included.
        repeats: it only repeats, word for word, what stands before it in the thinking.
    """

    before: str
    body: str
    after: str
    begin: float
    characters: int
    share: float
    repeats: bool


def find_refinements(text: str) -> list[Refinement]:
    """Return the refinements of a response, in order; none where it is malformed: what cannot be parsed is no refinement."""
    if parse_response(text) is None:
        return []
    text = text.strip()
    start, end = text.index("<think>") + len("<think>"), text.index("</think>")
    found = []
    for match in PAIR.finditer(text, start, end):
        before, body, after = without_tags(text[start : match.start()]), match[1].strip(), without_tags(text[match.end() : end])
        repeats = " ".join(body.split()) in " ".join(before.split())
        begin, share = match.start() / len(text), len(match[0]) / len(text)
        found.append(Refinement(before, body, after, begin, len(body), share, repeats))
    return found


def changes_nothing(text: str) -> bool:
    """Tell if a response refines, and all its refinements only repeat what stands before them in the thinking."""
    found = find_refinements(text)
    return bool(found) and all(refinement.repeats for refinement in found)


def mark_refinements(text: str) -> str:
    """Return the text with ▶ before and ◀ after each refinement, to show without colour. An unclosed one runs to the end."""
    return re.sub(r"<refine>.*?(?:</refine>|\Z)", lambda match: f"▶{match.group()}◀", text, flags=re.DOTALL)


def without_tags(text: str) -> str:
    """Return the text with our tags taken out; a space stays where one was, so that no two words become one."""
    return TAG.sub(" ", text).strip()


def answer_change(text: str) -> str | None:
    """Compare the final answer with the candidates before the first refinement, and return what became of it.

    A candidate is whatever has the form of the final answer: every number, compared as a decimal, where the answer body holds
    one number and no formula; every option letter that stands alone, where the body is an option.

        "new"             no candidate before the first refinement equals the final answer: it came with the refinement or after
        "kept"            the last candidate before the first refinement is the final answer
        "written before"  the final answer is among them, but not the last: a candidate that was returned to, or an operand

    "new" needs no draft to have been there: a response that refines before it has any answer counts as new. Whether a
    candidate was meant as an answer the text does not tell.

    Returns:
        None if nothing can be compared: no refinement, a malformed response, or an answer of another form.
    """
    refinements = find_refinements(text)
    if not refinements:
        return None
    answer, before = parse_response(text).answer, refinements[0].before
    if option := OPTION_ANSWER.fullmatch(answer):
        final, candidates = option[1], OPTION.findall(before)
    elif len(found := set(numbers(answer))) == 1 and not FORMULA.search(answer.replace("\\boxed", "")):
        (final,), candidates = found, numbers(before)
    else:
        return None
    if final not in candidates:
        return "new"
    return "kept" if candidates[-1] == final else "written before"
