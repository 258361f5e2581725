"""Eq. 5 by rule for multiple choice: which option an answer settles on, by its label or by its text."""

import re

from rewards.final_answer import final_answer, tidy, without_denied

Options = tuple[tuple[str, str], ...]  # (label, text)
HEDGE = r"(?:,|;|/|&|\bor\b|\band\b|\beither\b)"


def extract_choice(text: str, options: Options) -> str | None:
    """Return the label of the one option that a text settles on; None if it settles on none or hedges between several.

    Looked for in the statements of the final answer, then in the last line, then in the whole text. What a text denies
    ("not B", "B is wrong") does not count. Labels come before option texts.
    """
    text = tidy(text)
    things = [re.escape(label) + r"(?!\w)" for label, _ in options]
    things += sorted((re.escape(body) for _, body in options if body), key=len, reverse=True)

    def settled(part: str) -> str | None:
        part = re.sub(r"\\(?:text|mathrm|textbf|mbox)\s*\{([^{}]*)\}", r"\1", part).strip("$ ")
        return _named(part, options) or _settled(without_denied(part, "|".join(things)), options)

    def stated(statement: str) -> str | None:
        return settled(statement) or ("" if _labels_in(statement, options) | _texts_in(statement, options) else None)

    def concluded(line: str) -> str:
        listed = [part for part in text.splitlines() if _leading(part, options)]  # the last of these is no choice
        return (settled(line) if len(listed) < 2 and not _is_listing(line, options) else None) or settled(text) or ""

    return final_answer(text, stated, concluded)


def score_choice(answer: str, references: tuple[str, ...]) -> float:
    """Return 1.0 if the label is one of the references."""
    return float(answer in references)


def _named(text: str, options: Options) -> str | None:
    """Return the option whose label or text a text is, and nothing else: an option "Not wrong" denies nothing."""
    said = " ".join(text.split()).rstrip(".")
    for fold in (str, str.casefold):  # as it is written before in any case: "c" may be the text of B
        found = [label for label, body in options if fold(said) in (fold(label), fold(" ".join(body.split()).rstrip(".")))]
        if len(found) == 1:
            return found[0]
    return None


def _settled(text: str, options: Options) -> str | None:
    if found := _leading(text, options):
        return found
    found = _labels_in(text, options) or _texts_in(text, options)
    return found.pop() if len(found) == 1 else None


def _leading(text: str, options: Options) -> str | None:
    """Return the label that a text begins with, as an answer: alone, or before a full stop, bracket, colon or explanation."""
    labels = _pattern(label for label, _ in options)
    lead = re.match(
        rf"[\s\"'(\[]{{0,20}}(?:the\s+)?(?:correct\s+)?(?:option|choice|answer|letter)?\s*[(\[\"']{{0,9}}({labels})"
        rf"(?P<close>[)\]\"']*)(?=$|[\s.:;,)\]\"'/&\-])", text, re.IGNORECASE,
    )  # fmt: skip
    if not lead or _is_listing(text, options):
        return None
    rest = text[lead.end() :]
    if re.match(rf"[ \t]+(?:{labels})(?=\s*$|[ \t]+(?:{labels})\b)", rest):
        return None  # "A B C D"
    if re.match(rf"\s*{HEDGE}\s*(?:maybe |perhaps |possibly |also )?(?:[Oo]ption\s*)?[(\"']*(?:{labels})(?![\w'])", rest):
        return None
    label = _written(lead.group(1), options)
    is_word = lead.group(1).islower() or (label in "AI" and re.match(r"\s+[a-z]", rest) and not lead.group("close"))
    explained = re.match(r"\s*(?:$|[.:;,)\]\"'\-]|because|since|as\b|is\b|\()", rest)
    return None if is_word and not (explained and (label not in "AI" or not lead.group(1).islower())) else label


def _is_listing(text: str, options: Options) -> bool:
    """Tell if a text lists several options with their labels."""
    labels = _pattern(label for label, _ in options)
    return len({m.upper() for m in re.findall(rf"(?<![\w.])\(?({labels})\s*[:.)](?=\s)", text)}) > 1


def _labels_in(text: str, options: Options) -> set[str]:
    """Return the labels that stand in a text as labels: upper-case letters, and A and I only where they cannot be words."""
    labels = _pattern(label for label, _ in options)
    found = set()
    for match in re.finditer(rf"(?<![\w'.-])([(\[]?)(?:[Oo]ption\s*)?({labels})([)\]]?)(?![\w'])(?!\.\d)", text):
        label, rest = match.group(2), text[match.end() :]
        is_word = label in ("A", "I") and re.match(rf"[ \t]+(?!or\b|and\b|is\b|because\b|since\b|(?:{labels})\b)\w", rest)
        if not is_word or match.group(1) or "ption" in match.group():
            found.add(label)
    return found


def _texts_in(text: str, options: Options) -> set[str]:
    """Return the labels of the options whose whole text stands in a text. "music" is not named by "music room"."""
    rest, found = " ".join(text.casefold().split()), set()
    for label, body in sorted(options, key=lambda option: -len(option[1])):  # longer texts first
        pattern = re.escape(" ".join(body.casefold().rstrip(".").split()))
        if pattern and re.search(rf"(?<!\w){pattern}(?!\w)", rest):
            found.add(label)
            rest = re.sub(rf"(?<!\w){pattern}(?!\w)", " ", rest)
    return found


def _pattern(words) -> str:
    return "|".join(re.escape(word) for word in words)


def _written(label: str, options: Options) -> str:
    return next(name for name, _ in options if name.casefold() == label.casefold())
