"""How a run speaks to a person: lines that fit into a terminal of 100 columns, sizes in round numbers."""

import argparse
import difflib
import re
import textwrap

WIDTH = 98


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are a line, with the flag that may have been meant, and not a page of usage."""

    def error(self, message: str) -> None:
        unknown = re.fullmatch(r"unrecognized arguments: (--[\w-]+).*", message)
        close = difflib.get_close_matches(unknown[1], self._option_string_actions, n=1) if unknown else []
        hint = f" (do you mean {close[0]}?)" if close else ""
        self.exit(2, f"error: {message}{hint}; {self.prog} --help lists all flags\n")


def wrapped(text: str) -> str:
    """A long line as several, the further ones indented."""
    return textwrap.fill(text, WIDTH, subsequent_indent="    ", break_on_hyphens=False, break_long_words=False)


def count(number: int, noun: str) -> str:
    """1 question, 2 questions."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def gib(count: float) -> str:
    """Bytes of memory."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def gigabytes(count: int) -> str:
    """Bytes on a disk."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
