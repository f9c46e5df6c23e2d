"""What goes wrong in a way that a person can mend: one line that says what, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LOST_WORKER = (
    "a decoding process was lost (killed, or out of memory or of space in /dev/shm); run again with --workers 0"
)

NO_MEMORY = "can't allocate memory"  # how torch's allocator for the CPU says it


class ToolkitError(Exception):
    """Something a person can mend; its text is one complete line, shown without a traceback."""


class SettingError(ToolkitError):
    """An option has a value that is unknown, out of range, or of no use to the chosen strategy."""


class DataError(ToolkitError):
    """The data set as a whole cannot be used (single files are quarantined instead)."""


class WeightsError(ToolkitError):
    """Weights are missing, unreachable, or are not the ones that were expected."""


class ArtifactError(ToolkitError):
    """A run folder or model folder is missing, incomplete, damaged, or in the way."""


class LostWorkerError(ToolkitError):
    """Processes that decode are lost.

    lost: which, and how, in words; "" where nobody knows. others_can: whether the same files can be decoded by somebody
    else.
    """

    def __init__(self, lost: str = "", *, others_can: bool = False) -> None:
        super().__init__(f"{LOST_WORKER}: {lost}" if lost else LOST_WORKER)
        self.lost, self.others_can = lost, others_can


class Interrupted(BaseException):
    """A signal asked the program to end; raised once the work is in a state that can be resumed."""

    def __init__(self, signal_number: int, message: str = "") -> None:
        super().__init__(message)
        self.signal_number = signal_number


SHOWN = 20  # names, where none is near


def unknown_name(kind: str, name: str, known: Iterable[str]) -> SettingError:
    """Return the error for a name that is not in a registry, with the nearest names that are."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5) or names[:SHOWN]
    return SettingError(f"unknown {kind} {name!r}; did you mean one of: {', '.join(near)}?")
