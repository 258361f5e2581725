"""How a run speaks to a person: lines that fit into a terminal of 100 columns, sizes in round numbers."""

import textwrap

WIDTH = 98


def wrapped(text: str) -> str:
    """A long line as several, the further ones indented."""
    return textwrap.fill(text, WIDTH, subsequent_indent="    ", break_on_hyphens=False, break_long_words=False)


def gib(count: float) -> str:
    """Bytes of memory."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def gigabytes(count: int) -> str:
    """Bytes on a disk."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
