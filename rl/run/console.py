"""The terminal: lines that fit into 100 columns, sizes in round numbers, one-line errors and stop signals."""

import signal
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rl.distributed import print_once

WIDTH = 98


def wrapped(text: str) -> str:
    """Break each long line into several, the further ones indented."""
    layout = dict(width=WIDTH, subsequent_indent="    ", break_on_hyphens=False, break_long_words=False)
    return "\n".join(textwrap.fill(line, **layout) for line in text.split("\n"))


def gib(count: float) -> str:
    """Write bytes of memory."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def gigabytes(count: int) -> str:
    """Write bytes on a disk."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn a ValueError or OSError into one line and exit code 2. It is for set-up; an error in the loop is a bug."""
    try:
        yield
    except (ValueError, OSError) as error:
        print_once(f"error: {' '.join(str(error).split())}")
        raise SystemExit(2) from error


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # a scheduler's end, Ctrl-C, SLURM's warning before the time limit


def sleep_unless_stopped(seconds: float) -> str | None:
    """Wait, and return the name of a stop signal that has come or comes meanwhile."""
    end = time.monotonic() + seconds
    while StopSignals.received is None and (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 1.0))
    return StopSignals.received


class StopSignals:
    """The context in which a stop signal is noted, so that the step can end first. A second signal ends the process.

    Attributes:
        received: name of the stop signal, or None. It belongs to the class, because a process has one such context at a time.
    """

    received: str | None = None

    def __enter__(self) -> "StopSignals":
        self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *exception) -> None:
        StopSignals.received = None
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            print("\nleft at once: what was done since the newest checkpoint is done again with --resume auto", flush=True)
            raise SystemExit(128 + number)
        StopSignals.received = signal.Signals(number).name
        print(f"\n{self.received}: finishing this step and saving; once more to leave at once", flush=True)
