"""The final answer of a text, and what the text denies. Shared by the rules for numbers and for choices."""

import re

# "the answer is", "Answer:", "final answer =", and GSM8K's ####; what follows on the line is the answer
MARKER = re.compile(
    r"####|\b(?:answer|result|choice|option)\b(?:[ \t]+(?:to|for)\b[^.:\n]{0,60})?"
    r"[ \t]*(?:\bis\b[ \t]*:?|\bmust be\b|\bshould be\b|\bwould be\b|\bequals\b|[:=])",
    re.IGNORECASE,
)
EMPHASIS = re.compile(r"\*\*|__|`|(?<!\w)\*(?=\w)|(?<=\w)\*(?!\w)")
NEGATION = r"(?:\b(?:not|never|neither|nor|cannot be|rather than|instead of|unlike|rule[sd]? out|eliminate[sd]?)|n't(?: be)?)"
WORDS_BETWEEN = r"[ \t]+(?:be[ \t]+)?(?:equal[ \t]+to[ \t]+)?(?:the[ \t]+)?(?:answer[ \t]+)?(?:option|choice)?[ \t]*"
DENIED_AFTER = (
    r"[ \t]+(?:is|are|was|were|seems|looks|would be)[ \t]+(?:\w+ly[ \t]+)?(?:not\b|n't\b|wrong\b|incorrect\b|false\b|out\b)"
)


def tidy(text: str) -> str:
    """Return the text with typographic minus signs and spaces made plain, and emphasis taken off."""
    text = re.sub("[\N{MINUS SIGN}\N{HYPHEN}\N{NON-BREAKING HYPHEN}\N{FULLWIDTH HYPHEN-MINUS}]", "-", text)
    text = re.sub("(?<![\\w)])\N{EN DASH}(?=[\\d.])", "-", text)  # between two numbers it means "to"
    text = re.sub("(?<=\\d)[\N{NARROW NO-BREAK SPACE}\N{NO-BREAK SPACE}\N{THIN SPACE}](?=\\d{3})", "", text)
    text = text.replace("\\%", "%")
    return EMPHASIS.sub("", re.sub("[\N{NARROW NO-BREAK SPACE}\N{NO-BREAK SPACE}\N{THIN SPACE}]", " ", text))


def boxed(text: str) -> str | None:
    r"""Return the content of the last \boxed{...} whose braces close."""
    for match in reversed(list(re.finditer(r"\\(?:boxed|fbox)\s*\{", text))):
        depth = 1
        for at in range(match.end(), len(text)):
            depth += (text[at] == "{") - (text[at] == "}")
            if depth == 0:
                return text[match.end() : at].strip()
    return None


def conclusion(text: str) -> str | None:
    """Return what follows the last "the answer is", "Answer:" or "####": the rest of that line, else the next one."""
    found = list(MARKER.finditer(text))
    if not found:
        return None
    rest = text[found[-1].end() :].lstrip()
    return rest.split("\n", 1)[0].strip()


def without_denied(text: str, thing: str) -> str:
    """Return the text without what it denies: "not 5", "B is wrong". `thing` is a pattern of what may be denied."""
    text = re.sub(rf"{NEGATION}{WORDS_BETWEEN}\(?(?:{thing})\)?", " ", text, flags=re.IGNORECASE)
    return re.sub(rf"\(?(?:{thing})\)?{DENIED_AFTER}", " ", text, flags=re.IGNORECASE)
