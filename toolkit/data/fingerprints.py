"""What a file is known by, whatever it is called and wherever it lies: its size and a digest of all of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from pathlib import Path

from toolkit.storage import digest

EDGE = 1 << 16  # bytes
WHOLE = "all:"  # stands before the digest of a whole file


def fingerprint(path: Path) -> str:
    """Return a file's size in bytes and a digest of its whole content, as `SIZE-all:HEX`; raises OSError.

    All of it is read, because uncompressed images of one size with plain margins differ in their middle alone.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        found = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
    return f"{size}-{WHOLE}{found.hexdigest()}"


def is_among(path: Path, known: Collection[str]) -> bool:
    """Return whether a file is one of those that `known` fingerprints are of; raises OSError.

    Runs of earlier versions wrote `SIZE-HEX`, the digest of the first and last 64 kB. Such a fingerprint is compared as
    it was made: a copy of a training image is never taken for a new one, but where it is the fingerprint of an
    uncompressed file with plain margins, another image may be taken for a copy. A new run ends that.
    """
    if fingerprint(path) in known:
        return True
    return any(WHOLE not in one for one in known) and _edges(path) in known


def size_in(known: str) -> int:
    """Return the size in bytes that a fingerprint begins with."""
    return int(known.partition("-")[0])


def _edges(path: Path) -> str:
    """Return the fingerprint of earlier versions."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(EDGE)
        if size > EDGE:
            file.seek(max(EDGE, size - EDGE))
            content += file.read(EDGE)
    return f"{size}-{digest(content).hex()}"
