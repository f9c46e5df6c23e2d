"""What the C library does with memory that a program has freed: kept for the next tensor, or handed back."""

from __future__ import annotations

import ctypes
import os
import sys

# of <malloc.h>
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_keeps = False
_NEVER = 2**31 - 1  # bytes; the largest int that mallopt takes, and glibc trims only above it


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for the tensors to come; return whether it does so now.

    glibc maps every block of more than 32 MB anew and unmaps it when it is freed, so each large activation of each
    forward pass begins with page faults: a third to two thirds of the time of a pass on a CPU, most in a virtual
    machine. Afterwards they are served from one heap; memory then stays with the process at its peak. For a process
    of its own, as the command line is; a program that uses the toolkit as a library may call it too, at its start.
    Nothing is done where the C library is not glibc, or where the environment says how it is to behave (MALLOC_…,
    GLIBC_TUNABLES with glibc.malloc, or an allocator in LD_PRELOAD).
    """
    if not sys.platform.startswith("linux") or _is_set_by_user():
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        return False
    global _keeps
    _keeps = bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _NEVER))
    return _keeps


def hand_back_freed_memory() -> None:
    """Hand the memory that was kept back to the system, between two parts of a program that need other sizes of it.

    Does nothing where `keep_freed_memory` did nothing. Costs milliseconds, and page faults in the next large blocks.
    """
    if _keeps:
        ctypes.CDLL(None).malloc_trim(0)


def _is_set_by_user() -> bool:
    chosen = any(name.startswith("MALLOC_") for name in os.environ)
    tuned = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    return chosen or tuned or "malloc" in os.environ.get("LD_PRELOAD", "")
