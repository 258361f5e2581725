r"""The final answer of a text: where it stands. Every rule reads it here, in training and in evaluation.

Explicit are a box, `####`, a line "Answer: 5", a heading "Final answer" and <answer> tags: the last one counts, whatever prose
follows it. Prose ("so the answer is 5") is as good only if it holds an answer and nothing else, and comes next otherwise. "The
answer is clear" is a sentence about the answer, and holds none.
"""

import re
from collections.abc import Callable, Iterator

Find = Callable[[str], str | None]
LONGEST = 4000  # characters of a statement
MOST = 40  # statements that are looked at, from the end
PROSE = (
    r"\b(?:answer|result|option|choice)\b(?:[ \t]+(?:to|for|of|we|that|you)\b[^.:=\n]{0,60}?)?[ \t]*"
    r"(?:\b(?:is|are)\b[ \t]*:?|\b(?:must|should|would|will)[ \t]+be\b|\bequals\b|[:=])"
)
LEADING = r"(?:(?:so|thus|hence|therefore|and|my|the|final|correct|best|right),?[ \t]+){0,5}"
MARKER = re.compile(
    rf"(?P<explicit>(?:^|(?<=[.!?] ))[^\w\n]*{LEADING}(?:ans(?:wer)?|result|option|choice)\b"
    r"(?:[ \t]+(?:to|for|of)\b[^.:=\n]{0,60}?)?"
    rf"(?:[ \t]*(?:is|are)?[ \t]*[:=]|[^\w\n:=]*$)|####(?!#|[ \t]*(?:step|part|case)\b)|<answer>)"
    rf"|(?P<doubt>\b(?:if|whether|suppose|assum\w+|unless)\b[^.,\n]{{0,30}}?|\b(?:this|that)[ \t]+)?{PROSE}",
    re.IGNORECASE | re.MULTILINE,
)
REPEATED = re.compile(LEADING + PROSE, re.IGNORECASE)  # "Answer: the answer is"
ABOUT = re.compile(  # how a sentence goes on that is about the answer
    r"\W*(?:(?:also|not|very|too|so|as|the|an?|in|both|therefore|\w+ly)[ \t]+){0,2}(?:clear|correct|right|wrong|incorrect|"
    r"accurate|helpful|useful|consistent|positive|negative|reasonable|sensible|plausible|valid|unique|final|exact|obvious|above|below|"
    r"important|best|complete|simpl\w+|required|needed|same|line|agreement|whole|integer|based|given|found|shown|what|because|"
    r"(?:expect|obtain|deriv|support|confirm|verif|justif|explain|check|comput|calculat|determin|reach)\w*)\b", re.IGNORECASE,
)  # fmt: skip
# an answer, nothing else
DIRECT = re.compile(r"(?i)\W{0,4}(?:\d[\d.,/]*[^\d\n]{0,20}|[A-Z]|\\boxed.*|\$[^$\n]+\$)\W*")
SENTENCE = re.compile(r"[.!?)][ \t]+(?=[(\"']*[A-Z])")  # its end
BLANK = re.compile(r"[\s:*]*")
ALIGNED = re.compile(r"\\begin\{((?:align|equation|gather)\w*\*?)\}((?:(?!\\begin\{\1\}).)*?)\\end\{\1\}", re.DOTALL)
DISPLAY = re.compile(r"\\\[((?:(?!\\\[).)*?)\\\]|\$\$((?:(?!\$\$).)*)\$\$|\$[ \t]*\n([^$\n]*)\n[ \t]*\$", re.DOTALL)
EMPHASIS = re.compile(r"(?<![\w*])(\*\*?|__|`)(?=[^\s*])([^\n]{0,300}?)(?<![\s*])\1(?![\w(*])")
SPACES = "[\N{NARROW NO-BREAK SPACE}\N{NO-BREAK SPACE}\N{THIN SPACE}]"
NEXT_BOX = re.compile(
    r"(?i)(?:[\s$,;]|\\[\[\]()]|\\q?quad\b|(?:\\text\s*\{\s*)?(?:[\w()]+\s+){0,4}\b(?:and|or)\b\s*\}?){0,20}(?:[a-z]\w*\s*=\s*)?"
)
NEGATION = r"(?:\b(?:not|never|neither|nor|cannot be|rather than|instead of|unlike|rule[sd]? out|eliminate[sd]?)|n't(?: be)?)"
WORDS_BETWEEN = r"[ \t]+(?:be[ \t]+)?(?:equal[ \t]+to[ \t]+)?(?:the[ \t]+)?(?:answer[ \t]+)?(?:option|choice)?[ \t]*"
DENIED_AFTER = r"[ \t]+(?:is|are|was|were|seems|looks|would be)[ \t]+(?:\w+ly[ \t]+)?(?:not|n't|wrong|incorrect|false|out)\b"


def final_answer(text: str, find: Find, find_in_line: Find | None = None) -> str | None:
    """Return what is found in the statements of the final answer, from the most to the least binding; None if nothing is.

    Args:
        text: as `tidy` returns it.
        find: looks for an answer in a whole statement. None: it holds none of this kind; "": it does not settle on one.
        find_in_line: looks in a line of a text without a statement, from the last line up.
    """
    for statement in statements(text):
        if (answer := find(statement)) is not None:
            return answer or None
    for line in reversed(text.splitlines() if find_in_line else []):
        speaks_about = any(ABOUT.match(line, match.end()) for match in MARKER.finditer(line))
        if line.strip() and not speaks_about and (answer := find_in_line(line)) is not None:
            return answer or None
    return None


def statements(text: str) -> Iterator[str]:
    """Yield the statements of a text, whole, from the most to the least binding."""
    ranked = [(2, begin, content) for begin, content in _boxes(text)[-MOST:]]
    markers = list(MARKER.finditer(text))[-MOST:]
    for match, following in zip(markers, [*markers, None][1:], strict=True):
        # the rest of the line, else the next line, up to a sentence that speaks of the answer again
        start = BLANK.match(text, match.end()).end()
        if repeated := REPEATED.match(text, start):
            start = BLANK.match(text, repeated.end()).end()
        end = min(text.find("\n", start) % (len(text) + 1), start + LONGEST)
        if following and start < following.start() < end:
            ends = [found.start() for found in SENTENCE.finditer(text, start, following.start() + 1)]
            end = ends[-1] if ends else end
        statement = text[start:end].partition("</answer>")[0].strip()
        if match["explicit"] or not (match["doubt"] or ABOUT.match(statement)):
            is_sure = match["explicit"] or DIRECT.fullmatch(SENTENCE.split(statement)[0])
            ranked.append((2 if is_sure else 1, match.start(), statement))
    return (statement for _, _, statement in sorted(ranked, reverse=True) if statement)


def _boxes(text: str) -> list[tuple[int, str]]:
    r"""Return (where, content) of each \boxed{...} whose braces close and which is not denied; neighbours ("and") are one."""
    opened, found = [], []
    for token in re.finditer(r"\\(?:boxed|fbox)\s*\{|(?<!\\)[{}]", text):
        if token.group() != "}":
            opened.append(token)
        elif opened and len((begin := opened.pop()).group()) > 1:
            before = text[max(0, begin.start() - 60) : begin.start()]
            if not re.search(rf"{NEGATION}{WORDS_BETWEEN}\$?\Z", before, re.IGNORECASE):
                found.append((begin.start(), token.end(), text[begin.end() : token.start()].strip()))
    joined: list[tuple[int, str]] = []
    for (_, last_end, _), (begin, _, content) in zip([(0, 0, ""), *found], found, strict=False):
        if joined and NEXT_BOX.fullmatch(text, last_end, begin):
            content = f"{joined.pop()[1]}, {content}"
        joined.append((begin, content))
    return joined


def tidy(text: str) -> str:
    """Return the text with plain minus signs and spaces, without emphasis, and with display mathematics on one line."""
    text = re.sub("[\N{MINUS SIGN}\N{HYPHEN}\N{NON-BREAKING HYPHEN}\N{FULLWIDTH HYPHEN-MINUS}]", "-", text)
    text = re.sub("(?<![\\w)])\N{EN DASH}(?=[\\d.])", "-", text)  # between two numbers it means "to"
    text = re.sub(SPACES, " ", re.sub(rf"(?<=\d){SPACES}(?=\d{{3}})", "", text)).replace("\\%", "%")
    text = re.sub(r"<<[^<>\n]*>>|<\|\w+\|>.*", "", text, flags=re.DOTALL)  # GSM8K's calculator; what follows an end of turn
    text = ALIGNED.sub(lambda m: " ".join(m[2].replace("&", " ").replace("\\\\", " ").split()), text)
    text = DISPLAY.sub(lambda m: f"${' '.join((m[1] or m[2] or m[3] or '').split())}$", text)
    return EMPHASIS.sub(r"\2", text).strip()


def without_denied(text: str, thing: str) -> str:
    """Return the text without what it denies: "not 5", "B is wrong". `thing` is a pattern of what may be denied."""
    text = re.sub(rf"{NEGATION}{WORDS_BETWEEN}\(?(?:{thing})\)?", " ", text, flags=re.IGNORECASE)
    return re.sub(rf"\(?(?:{thing})\)?{DENIED_AFTER}", " ", text, flags=re.IGNORECASE)
