"""What a file is known by, whatever it is called and wherever it lies, without reading all of it."""

from __future__ import annotations

import os
from pathlib import Path

from toolkit.storage import digest

EDGE = 1 << 16  # bytes


def fingerprint(path: Path) -> str:
    """Return a file's size in bytes and a digest of its first and last 64 kB, as `SIZE-HEX`; raises OSError.

    Copies have equal ones. Images that differ have different ones, as good as surely: a compressed picture differs from
    its first changed pixel on.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(EDGE)
        if size > EDGE:
            file.seek(max(EDGE, size - EDGE))
            content += file.read(EDGE)
    return f"{size}-{digest(content).hex()}"


def size_in(known: str) -> int:
    """Return the size in bytes that a fingerprint begins with."""
    return int(known.partition("-")[0])
