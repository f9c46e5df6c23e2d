"""What the files of a folder hold: the digest of each, taken once and believed as long as the file looks the same."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from toolkit.progress import counting
from toolkit.storage import TEMPORARY_PREFIX, publish_bytes

DIGEST_BYTES = 16  # as `storage.digest` has them
READERS = min(16, os.cpu_count() or 1)  # threads; reading waits for the disk, hashing leaves the interpreter's lock
BLOCK = 4096  # files that are handed to the threads at a time
LOCK, LOCK_WAIT_S = "lock", 10.0
COUNTED_FROM_FILES, COUNTED_FROM_BYTES = 4096, 1 << 30  # less than both is read before anybody wonders
COUNTED_AT_A_TIME = 64

# A file that changed this short a time before it was looked at could change again without a new time stamp: file
# systems count in steps of up to 2 s. Its digest is used, but not remembered.
SETTLED_AFTER_NS = 2_500_000_000


class Looks(NamedTuple):
    """What tells a changed file from an unchanged one, of N files, and when they were looked at (Unix time, ns).

    values: int64 (N, 4): size, mtime, ctime, inode; −1 for what is no regular file that can be seen.
    """

    values: NDArray[np.int64]
    at_ns: int

    @property
    def seen(self) -> NDArray[np.bool_]:
        """Return bool (N,): whether there is a file."""
        seen: NDArray[np.bool_] = self.values[:, 0] >= 0
        return seen

    @property
    def settled(self) -> NDArray[np.bool_]:
        """Return bool (N,): whether a later change of a file is sure to change its look."""
        settled: NDArray[np.bool_] = np.all(np.abs(self.values[:, 1:3] - self.at_ns) > SETTLED_AFTER_NS, axis=1)
        return settled & self.seen


class Contents:
    """Remembers the digests of the files below one root, in one file of the cache folder.

    A digest is believed while path, size, mtime, ctime and inode are those that it was taken for: ctime cannot be set
    back, so a file with other bytes and a forged mtime is read again. What cannot be remembered is only read again.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        name = hashlib.blake2b(os.fsencode(os.path.realpath(root)), digest_size=12).hexdigest()
        self.path = folder / f"{name}.safetensors"
        self.root = root

    def look(self, paths: Sequence[str]) -> Looks:
        """Return what the files `root / path` look like now."""
        now = time.time_ns()
        values = np.full((len(paths), 4), -1, np.int64)
        root = os.fspath(self.root)
        for index, path in enumerate(paths):
            try:
                status = os.stat(os.path.join(root, path))
            except (OSError, ValueError):  # ValueError: a NUL in the path
                continue
            if stat.S_ISREG(status.st_mode):
                look = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
                values[index] = [number & (2**63 - 1) for number in look]
        return Looks(values, now)

    def digests(self, paths: Sequence[str]) -> NDArray[np.uint8]:
        """Return uint8 (N, 16): the digests of the files `root / path`; zeros for one that cannot be read."""
        known_paths, known_looks, known_digests = self._known()
        looks = self.look(paths)
        places = {path: index for index, path in enumerate(known_paths)}
        place = np.array([places.get(path, -1) for path in paths], np.int64)
        digests = np.zeros((len(paths), DIGEST_BYTES), np.uint8)
        same = looks.seen & (place >= 0)
        same[same] = (known_looks[place[same]] == looks.values[same]).all(axis=1)
        digests[same] = known_digests[place[same]]
        unknown = np.flatnonzero(looks.seen & ~same).tolist()
        n_bytes = int(looks.values[unknown, 0].sum())
        digests[unknown] = self._read([paths[index] for index in unknown], n_bytes)
        self.remember([paths[index] for index in unknown], Looks(looks.values[unknown], looks.at_ns), digests[unknown])
        return digests

    def remember(self, paths: Sequence[str], looks: Looks, digests: NDArray[np.uint8]) -> None:
        """Believe from now on that files of these looks have these digests, uint8 (N, 16), zeros where unknown.

        looks: from before the files were read.
        """
        new = np.flatnonzero(looks.settled & digests.any(axis=1)).tolist()
        if not new:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.parent / LOCK).acquire(timeout=LOCK_WAIT_S):
                for stray in self.path.parent.glob(f"{TEMPORARY_PREFIX}*"):  # what a killed process left unfinished
                    stray.unlink(missing_ok=True)
                known_paths, known_looks, known_digests = self._known()
                fresh = {paths[index] for index in new}
                kept = [index for index, path in enumerate(known_paths) if path not in fresh]
                joined = "\0".join([*(known_paths[index] for index in kept), *(paths[index] for index in new)])
                columns: dict[str, NDArray[Any]] = {
                    "paths": np.frombuffer(joined.encode("utf-8", "surrogatepass"), np.uint8),
                    "looks": np.concatenate([known_looks[kept], looks.values[new]]),
                    "digests": np.concatenate([known_digests[kept], digests[new]]),
                }
                columns["sum"] = np.frombuffer(_sum(columns), np.uint8)
                publish_bytes(self.path, save(columns))
        except (OSError, Timeout):
            pass

    def _read(self, paths: Sequence[str], n_bytes: int) -> NDArray[np.uint8]:
        """Return the digests of files as they are now, uint8 (N, 16), and say how far it is where that takes long."""
        found = bytearray()
        quiet = len(paths) < COUNTED_FROM_FILES and n_bytes < COUNTED_FROM_BYTES
        with (
            nullcontext() if quiet else counting("reading files", len(paths), "files") as counter,
            ThreadPoolExecutor(READERS) as pool,
        ):
            for start in range(0, len(paths), BLOCK):  # one future a file, all at a time, would take memory
                digests = pool.map(self._digest, paths[start : start + BLOCK])
                while some := list(islice(digests, COUNTED_AT_A_TIME)):
                    found += b"".join(some)
                    if counter is not None:
                        counter.advance(len(some))
        return np.frombuffer(bytes(found), np.uint8).reshape(-1, DIGEST_BYTES)

    def _digest(self, path: str) -> bytes:
        try:
            with open(self.root / path, "rb") as file:
                return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST_BYTES)).digest()
        except OSError:
            return bytes(DIGEST_BYTES)

    def _known(self) -> tuple[list[str], NDArray[np.int64], NDArray[np.uint8]]:
        """Return K paths, looks (K, 4) and digests (K, 16); none if there are none yet or the file is damaged."""
        try:
            columns = load_file(self.path)
            if columns["sum"].tobytes() == _sum(columns):
                paths = columns["paths"].tobytes().decode("utf-8", "surrogatepass").split("\0")
                return paths, columns["looks"], columns["digests"]
        except (OSError, SafetensorError, KeyError, ValueError):
            pass
        return [], np.empty((0, 4), np.int64), np.empty((0, DIGEST_BYTES), np.uint8)


def _sum(columns: dict[str, NDArray[Any]]) -> bytes:
    total = hashlib.sha256()
    for name in ("paths", "looks", "digests"):
        total.update(np.ascontiguousarray(columns[name]).view(np.uint8).data)
    return total.digest()
