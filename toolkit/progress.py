"""Progress of long work on stderr: a live bar on a terminal, a plain line now and then in a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

SECONDS_BETWEEN_LINES = 10.0


def say(text: str) -> None:
    """Write a line for the person on stderr; stdout is kept for results."""
    print(text, file=sys.stderr, flush=True)


class Counter:
    """Counts finished items of one piece of work and shows rate and time left."""

    def __init__(self, label: str, total: int, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = 0
        self._start = self._shown = time.monotonic()

    def advance(self, n: int) -> None:
        """Count `n` more items."""
        self.done += n
        now = time.monotonic()
        if now - self._shown >= SECONDS_BETWEEN_LINES:
            self._shown = now
            self._show(now)

    def _show(self, now: float) -> None:
        rate = self.done / max(now - self._start, 1e-9)
        left_s = (self.total - self.done) / max(rate, 1e-9)
        say(f"{self.label}: {self.done}/{self.total} {self.unit}, {rate:.3g} {self.unit}/s, {left_s:.0f} s left")

    def close(self) -> None:
        """Show the final count."""
        seconds = time.monotonic() - self._start
        rate = self.done / max(seconds, 1e-9)
        say(f"{self.label}: {self.done} {self.unit} in {seconds:.1f} s ({rate:.3g} {self.unit}/s)")


class _LiveCounter(Counter):
    """The same counter as a bar that is drawn in place."""

    def __init__(self, label: str, total: int, unit: str) -> None:
        super().__init__(label, total, unit)
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task(label, total=total)
        self._bar.start()

    def advance(self, n: int) -> None:
        """Count `n` more items."""
        self.done += n
        self._bar.update(self._task, advance=n)

    def close(self) -> None:
        """Remove the bar and show the final count."""
        self._bar.stop()
        super().close()


@contextmanager
def counting(label: str, total: int, unit: str = "images") -> Iterator[Counter]:
    """Yield a Counter for `total` items."""
    counter = _LiveCounter(label, total, unit) if sys.stderr.isatty() else Counter(label, total, unit)
    try:
        yield counter
    finally:
        counter.close()
