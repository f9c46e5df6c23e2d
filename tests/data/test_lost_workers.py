"""Decoding processes that die: named, however late the system tells of their death."""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest

from toolkit.data.lost_workers import next_batch
from toolkit.errors import LostWorkerError


class Worker:
    """A process whose connection ends at once, and whose exit code is known a little later."""

    pid = 77

    def __init__(self, told_after_s: float) -> None:
        self.told_at = time.monotonic() + told_after_s

    @property
    def exitcode(self) -> int | None:
        return -signal.SIGKILL if time.monotonic() > self.told_at else None


class Batches:
    """Stands for a DataLoader's iterator, one of whose processes dies while it hands over a batch."""

    def __init__(self, worker: Worker) -> None:
        self._workers = [worker]

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        raise ConnectionResetError(104, "Connection reset by peer")


@pytest.mark.parametrize("told_after_s", [0.0, 0.3])
def test_a_death_that_is_told_later_than_the_connection_ends_is_named(told_after_s: float) -> None:
    with pytest.raises(LostWorkerError, match="process 77 was killed by SIGKILL") as caught:
        next_batch(Batches(Worker(told_after_s)))
    assert caught.value.others_can
