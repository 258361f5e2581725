"""Stop signals: the step in progress is finished and saved; a second signal leaves at once."""

import signal
import time
from types import FrameType

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
