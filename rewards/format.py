"""Eq. 4, the format reward, and the parser behind it.

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
    """Eq. 4: r_format = 2 * C1 * C2 * C3 - 1, that is +1.0 for a well-formed response and -1.0 for any other."""
    return 2.0 * has_both_pairs(text) * refines_inside_think(text) * keeps_order(text) - 1.0


def has_both_pairs(text: str) -> bool:
    """C1: exactly one think pair and exactly one answer pair, and the answer is not blank."""
    tags = [match.group() for match in TAG.finditer(text)]
    if any(tags.count(tag) != 1 for tag in SKELETON):
        return False
    begin, end = text.index("<answer>") + len("<answer>"), text.index("</answer>")
    return begin <= end and text[begin:end].strip() != ""


def refines_inside_think(text: str) -> bool:
    """C2: refine pairs are closed, flat (none within another), and each lies inside an open think pair."""
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
    """The parts of a response; None exactly where `format_reward` is -1."""
    if format_reward(text) < 0:
        return None
    think = text[text.index("<think>") + len("<think>") : text.index("</think>")]
    answer = text[text.index("<answer>") + len("<answer>") : text.index("</answer>")]
    refinements = re.findall(r"<refine>(.*?)</refine>", think, flags=re.DOTALL)
    return Response(think.strip(), tuple(part.strip() for part in refinements), answer.strip())


def changes_nothing(response: Response) -> bool:
    """Whether every refinement of a response only repeats, word for word, what stands before it in the thinking."""
    before = ""
    for part in re.split(r"(<refine>.*?</refine>)", response.think, flags=re.DOTALL):
        if part.startswith("<refine>"):
            body = " ".join(part[len("<refine>") : -len("</refine>")].split())
            if body not in before:
                return False
            part = body
        before += " " + " ".join(part.split())
    return len(response.refinements) > 0


def mark_refinements(text: str) -> str:
    """The text with ▶ before and ◀ after each refinement, for places that show no colour. An unclosed one runs to the end."""
    return re.sub(r"<refine>.*?(?:</refine>|\Z)", lambda match: f"▶{match.group()}◀", text, flags=re.DOTALL)


def answer_body(text: str) -> str:
    """What is judged of a refine-prompt response: the body of its one answer pair; empty if it has none or several.

    Other faults do not matter here: the format reward is there for them.
    """
    begin, end = text.find("<answer>"), text.find("</answer>")
    if text.count("<answer>") != 1 or text.count("</answer>") != 1 or end < begin:
        return ""
    return text[begin + len("<answer>") : end].strip()


def plain_answer(text: str) -> str:
    """The part of a plain answer that is judged: what follows native thinking, or all of it; nothing of unfinished thinking."""
    if "</think>" not in text and "<think>" in text:
        return ""
    return text.rpartition("</think>")[2].strip()


def is_plain_wellformed(text: str) -> bool:
    """Whether a plain answer is one: not blank, and without tags, or with native thinking before the answer and no refinement.

    Malformed plain answers lower the baseline of Eq. 6 without being worse at the task; their share is watched.
    """
    if not plain_answer(text) or "<refine>" in text or "</refine>" in text:
        return False
    tags = [match.group() for match in TAG.finditer(text)]
    return tags in ([], SKELETON[:2], SKELETON[1:2]) or format_reward(text) > 0  # some templates open native thinking
