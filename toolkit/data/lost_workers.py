"""Decoding processes that die: noticed when their next batch is waited for, and named."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from toolkit.errors import LostWorkerError

# They come of what the process itself did, and so whoever decodes the same file would die of it as well.
CRASHES = tuple(getattr(signal, name) for name in ("SIGSEGV", "SIGILL", "SIGABRT", "SIGFPE") if hasattr(signal, name))

TOLD_WITHIN_S = 10.0  # of the end of a connection

_T = TypeVar("_T")


class _Gate:
    """Lets torch hear of a death while a batch is waited for, and at no other time.

    torch raises in a handler of SIGCHLD, wherever the program then is: in the midst of an optimizer's step, which
    nobody could go on from.
    """

    def __init__(self) -> None:
        self.waits = 0
        self._torchs: Any = None

    def put_before(self) -> None:
        """Take the place of torch's handler, once it has set one."""
        if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
            return
        found = signal.getsignal(signal.SIGCHLD)
        if callable(found) and found != self._pass_on and getattr(found, "__module__", "").startswith("torch."):
            self._torchs = found
            signal.signal(signal.SIGCHLD, self._pass_on)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if self.waits:
            self._torchs(number, frame)


_gate = _Gate()


@contextmanager
def waiting() -> Iterator[None]:
    """Hear of deaths in this block."""
    _gate.waits += 1
    try:
        yield
    finally:
        _gate.waits -= 1


def hear_when_waiting() -> None:
    """Hear of deaths nowhere else, from now on; after torch has begun its first process."""
    _gate.put_before()


def check_alive(batches: Any) -> None:
    """Raise LostWorkerError where a process of a DataLoader's iterator has died."""
    lost = lost_workers(batches)
    if lost:
        raise lost_error(batches)


def lost_workers(batches: Any) -> list[Any]:
    """Return the processes of a DataLoader's iterator that have died."""
    return [worker for worker in getattr(batches, "_workers", ()) if worker.exitcode not in (None, 0)]


def _await_a_death(batches: Any) -> None:
    """Wait until the system tells which process has died, which it may do later than its connections end."""
    until = time.monotonic() + TOLD_WITHIN_S
    while not lost_workers(batches) and time.monotonic() < until:
        time.sleep(0.01)


def lost_error(batches: Any) -> LostWorkerError:
    """Return the error that names the processes that have died, and how, as far as can be known."""
    lost = lost_workers(batches)
    told = ", ".join(f"process {worker.pid} {_how(worker.exitcode)}" for worker in lost)
    crashed = any(-worker.exitcode in CRASHES for worker in lost)
    return LostWorkerError(told, others_can=bool(lost) and not crashed)


def _how(code: int) -> str:
    if code > 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def next_batch(batches: Iterator[_T]) -> _T | None:
    """Return the next batch, None at the end; LostWorkerError where the processes that decode are lost."""
    check_alive(batches)
    try:
        with waiting():
            try:
                return next(batches, None)
            except ConnectionError as error:  # it died while it handed over a batch
                _await_a_death(batches)
                raise lost_error(batches) from error
    except RuntimeError as error:  # torch raises it when it hears of the death, which may be in the lines above
        if not is_lost_worker(error):
            raise
        raise lost_error(batches) from error


def is_lost_worker(error: RuntimeError) -> bool:
    """Return whether torch says that a decoding process has died; it may say so wherever the program then is."""
    text = str(error)
    return any(sign in text for sign in ("exited unexpectedly", "is killed by signal", "DataLoader timed out"))


def ended_at_once(batches: Iterator[_T]) -> Iterator[_T]:
    """Return a DataLoader's iterator, whose processes are killed where torch would terminate them, and whose deaths are
    heard of when a batch is waited for.

    It does so with those that hang; one that outlives SIGTERM, and hangs in C, would never hear of it.
    """
    for worker in getattr(batches, "_workers", ()):
        worker.terminate = worker.kill
    hear_when_waiting()
    return batches
