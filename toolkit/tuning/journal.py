"""The journal of a study: lines of JSON that several processes append to, and that a kill cannot spoil."""

from __future__ import annotations

import os
from pathlib import Path

from filelock import FileLock
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from toolkit.errors import ArtifactError


class WholeLines:
    """Keeps other writers out, and cuts off what a killed one left of its last line.

    Optuna's own locks are files that a killed process leaves behind, for which the others wait half a minute; this one
    goes with the process.
    """

    def __init__(self, journal: Path) -> None:
        self.journal = journal
        self.lock = FileLock(f"{journal}.lock")

    def acquire(self) -> bool:
        """Wait for the journal, and mend it."""
        self.lock.acquire()
        with open(self.journal, "r+b") as file:
            size = file.seek(0, os.SEEK_END)
            end = size
            while end > 0:
                file.seek(end - 1)
                if file.read(1) == b"\n":
                    break
                end -= 1
            if end < size:
                file.truncate(end)
        return True

    def release(self) -> None:
        """Let the next one write."""
        self.lock.release()


def is_journal(path: Path, study: str) -> bool:
    """Return whether a file is the journal of a study of that name, or the beginning of one."""
    try:
        with open(path, "rb") as file:
            first = file.readline(1_000)
    except OSError:
        return False
    start = b'{"op_code":0'
    if not first.endswith(b"\n"):  # killed in its first line
        return first[: len(start)] == start[: len(first)]
    return first.startswith(start) and f'"study_name":"{study}"'.encode() in first


def open_journal(path: Path) -> JournalStorage:
    """Return the storage in a file, which is made if it is not there; ArtifactError for one that is no journal."""
    try:
        backend = JournalFileBackend(str(path), lock_obj=WholeLines(path))  # type: ignore[arg-type]  # has what it uses
        return JournalStorage(backend)
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise ArtifactError(
            f"{path} is not the journal of a search ({type(error).__name__}); choose another --out"
        ) from error
