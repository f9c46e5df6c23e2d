"""SIGINT and SIGTERM as requests: training ends after the next step, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from toolkit.errors import Interrupted


@dataclass
class StopRequest:
    """Which signal asked for the end, if one did."""

    signal_number: int | None = None

    def listen(self) -> None:
        """Take SIGINT and SIGTERM; outside the main thread signals cannot be caught."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._note)
            signal.signal(signal.SIGTERM, self._note)

    def _note(self, signal_number: int, frame: FrameType | None) -> None:
        if self.signal_number is not None and signal_number == signal.SIGINT:
            raise Interrupted(signal_number)  # the Trainer would turn KeyboardInterrupt into exit code 1
        self.signal_number = signal_number


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Yield a StopRequest that SIGINT and SIGTERM fill in; a second SIGINT interrupts at once."""
    request = StopRequest()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    request.listen()
    try:
        yield request
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
