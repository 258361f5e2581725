"""How a run speaks to a person: lines that fit into a terminal of 100 columns, sizes in round numbers."""

import signal
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rl.distributed import print_once

WIDTH = 98


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


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns a ValueError or OSError into one line and exit code 2. Wrap set-up in it, not the loop, whose errors are ours."""
    try:
        yield
    except (ValueError, OSError) as error:
        print_once(f"error: {' '.join(str(error).split())}")
        raise SystemExit(2) from error


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # a scheduler's end, Ctrl-C, SLURM's warning before the time limit


_active: list["StopSignals"] = []


def sleep_unless_stopped(seconds: float) -> str | None:
    """Wait; of a stop signal that has come, or comes meanwhile, the name."""
    end = time.monotonic() + seconds
    while True:
        received = next((signals.received for signals in _active if signals.received), None)
        left = end - time.monotonic()
        if received or left <= 0:
            return received
        time.sleep(min(left, 1.0))


class StopSignals:
    """Context in which a stop signal is noted instead of obeyed.

    Attributes:
        received: name of the signal that asked to stop, or None.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict = {}

    def __enter__(self) -> "StopSignals":
        _active.append(self)
        self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *exception) -> None:
        _active.remove(self)
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            print("\nleft at once: what was done since the newest checkpoint is done again with --resume auto", flush=True)
            raise SystemExit(128 + number)
        self.received = signal.Signals(number).name
        print(f"\n{self.received}: finishing this step and saving; once more to leave at once", flush=True)
