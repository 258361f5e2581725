"""Eq. 4, the format reward, and the parser of responses.

A well-formed response, with any number of refinements (none included):

    <think> ... <refine> ... </refine> ... </think> <answer> ... </answer>
"""

import re
from dataclasses import dataclass

TAG = re.compile(r"<(/?)(think|refine|answer)>")
SKELETON = ["<think>", "</think>", "<answer>", "</answer>"]


@dataclass(frozen=True)
class Response:
    """The parts of a well-formed response, without their tags and surrounding white space."""

    think: str
    refinements: tuple[str, ...]
    answer: str


def format_reward(text: str) -> float:
    """Eq. 4: r_format = 2 C1 C2 C3 - 1, which is +1.0 for a well-formed response and -1.0 for any other."""
    return 2.0 * has_both_pairs(text) * refines_inside_think(text) * keeps_order(text) - 1.0


def has_both_pairs(text: str) -> bool:
    """C1: there is exactly one think pair and exactly one answer pair, and the answer is not blank."""
    tags = [match.group() for match in TAG.finditer(text)]
    return all(tags.count(tag) == 1 for tag in SKELETON) and between(text, "answer").strip() != ""


def refines_inside_think(text: str) -> bool:
    """C2: refine pairs are closed, none is within another, and each lies inside an open think pair."""
    thinking = refining = False
    for closing, name in TAG.findall(text):
        if name == "refine":
            if not thinking or refining != bool(closing):
                return False
            refining = not closing
        elif refining:
            return False  # another pair begins or ends inside a refinement
        elif name == "think":
            thinking = not closing
    return not refining


def keeps_order(text: str) -> bool:
    """C3: the think pair comes before the answer pair, and only white space stands outside of the two."""
    matches = [match for match in TAG.finditer(text) if match.group(2) != "refine"]
    if [match.group() for match in matches] != SKELETON:
        return False
    think_open, think_close, answer_open, answer_close = matches
    outside = text[: think_open.start()] + text[think_close.end() : answer_open.start()] + text[answer_close.end() :]
    return outside.strip() == ""


def parse_response(text: str) -> Response | None:
    """Return the parts of a response; None exactly where `format_reward` is -1."""
    if format_reward(text) < 0:
        return None
    think = between(text, "think")
    refinements = re.findall(r"<refine>(.*?)</refine>", think, flags=re.DOTALL)
    return Response(think.strip(), tuple(part.strip() for part in refinements), between(text, "answer").strip())


def between(text: str, name: str) -> str:
    """Return what stands between the first opening and the first closing tag of a name; "" if they are not in this order."""
    _, opened, rest = text.partition(f"<{name}>")
    body, closed, _ = rest.partition(f"</{name}>")
    return body if opened and closed else ""


def answer_body(text: str) -> str:
    """Return what is judged of a refine-prompt response: the body of its one answer pair, "" if it has none or several.

    Other faults do not matter here, because the format reward is for them.
    """
    is_single = text.count("<answer>") == text.count("</answer>") == 1
    return between(text, "answer").strip() if is_single else ""


def plain_answer(text: str) -> str:
    """Return what is judged of a plain answer: all but native thinking, and nothing of thinking that did not end."""
    if "</think>" not in text and "<think>" in text:
        return ""
    return text.rpartition("</think>")[2].strip()
