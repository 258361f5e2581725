"""Mistakes of the user end in one line that says what to do, instead of a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager

from rl.distributed import say_once


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns a ValueError or OSError into one line and exit code 2. Wrap set-up in it, not the loop, whose errors are ours."""
    try:
        yield
    except (ValueError, OSError) as error:
        say_once(f"error: {' '.join(str(error).split())}")
        raise SystemExit(2) from error
