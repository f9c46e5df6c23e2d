"""Decoding ahead: processes that decode the first images while the program still imports torch.

Importing torch keeps one core busy for seconds, and the others have nothing to do. What is decoded by then lies in
memory that the program and its own decoding processes share, and is handed over if the file still looks the same; a
file that is not there, or could not be read, is simply decoded later. So nothing depends on how far they got.
"""

from __future__ import annotations

import mmap
import os
import signal
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from toolkit.data.decode import UnreadableImage, looks_like_image, read_image
from toolkit.data.listing import read_listing
from toolkit.data.preprocessing import Preprocessing
from toolkit.data.views import clean_view, decoded_px

MOST_IMAGES, MOST_BYTES = 512, 80 << 20  # a core decodes about as many while torch is imported
MOST_PROCESSES = 4
AT_LEAST = 8  # images for which it is worth while
MOST_ROWS = 20_000  # of a CSV, which is sorted before its first images are known: 0.1 s


class Decoded(NamedTuple):
    """View 0 of an image, uint8 (3, S, S); the 16-byte digest of the file; width and height as decoded."""

    digest: bytes
    size: tuple[int, int]
    pixels: NDArray[np.uint8]


class DecodedAhead:
    """View 0 of some images, as far as they are decoded. Linux alone: it forks."""

    def __init__(self, paths: Sequence[str], preprocessing: Preprocessing, max_pixels: int, processes: int) -> None:
        side = preprocessing.crop_px
        self.preprocessing, self.max_pixels = preprocessing, max_pixels
        self.paths = list(islice(paths, min(MOST_IMAGES, MOST_BYTES // (3 * side * side))))
        self.places = {path: place for place, path in enumerate(self.paths)}
        n = len(self.paths)
        self.done = _shared((n,), np.uint8)
        self.looks = _shared((n, 4), np.int64)
        self.digests = _shared((n, 16), np.uint8)
        self.sizes = _shared((n, 2), np.int64)
        self.pixels = _shared((n, 3, side, side), np.uint8)
        self._processes: list[int] = []
        try:
            for number in range(min(processes, n)):
                self._processes.append(self._fork(number, processes))
        except BaseException:  # the system allows no more of them, or somebody stops the program just now
            self.stop()
            raise

    def stop(self) -> None:
        """End the processes; what they have finished stays."""
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)  # it writes to nothing but the shared memory, and has no children
        for process in self._processes:
            with suppress(ChildProcessError):  # somebody else has waited for it
                os.waitpid(process, 0)
        self._processes = []

    def get(self, path: str) -> Decoded | None:
        """Return what was made of a file, None if nothing was, or if it looks different since."""
        place = self.places.get(path)
        if place is None or not self.done[place] or _look(path) != self.looks[place].tolist():
            return None
        width, height = self.sizes[place].tolist()
        return Decoded(self.digests[place].tobytes(), (width, height), self.pixels[place])

    def _fork(self, number: int, of: int) -> int:
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})  # the program's are not its
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of a process with threads: NumPy's are idle
                process = os.fork()
            if process == 0:
                self._decode(number, of)
            return process
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def _decode(self, number: int, of: int) -> NoReturn:
        """Decode every `of`-th image, in the process that was forked for it."""
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the program ends it
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what is to be said of a file is said by whoever needs it
            program = os.getppid()
            for place in range(number, len(self.paths), of):
                if os.getppid() != program:
                    break
                self._decode_one(place)
        finally:
            os._exit(0)

    def _decode_one(self, place: int) -> None:
        path = self.paths[place]
        look = _look(path)
        if look is None:
            return
        try:
            digest, image = read_image(path, self.max_pixels, decoded_px(self.preprocessing))
            self.pixels[place] = clean_view(image, self.preprocessing)
        except (UnreadableImage, ValueError, MemoryError):
            return
        self.looks[place] = look
        self.digests[place] = np.frombuffer(digest, np.uint8)
        self.sizes[place] = image.size
        self.done[place] = 1


_begun: DecodedAhead | None = None


def begin(paths: Iterable[str], preprocessing: Preprocessing, max_pixels: int, processes: int) -> None:
    """Begin to decode the first of these files by so many processes; none for fewer than AT_LEAST."""
    global _begun
    end()
    first = list(islice(paths, MOST_IMAGES))
    if len(first) >= AT_LEAST:
        _begun = DecodedAhead(first, preprocessing, max_pixels, processes)


def take(preprocessing: Preprocessing, max_pixels: int) -> DecodedAhead | None:
    """Stop, and return what was decoded, once, if it was for this preprocessing; None if nothing was."""
    found = _begun
    end()
    return found if found and (found.preprocessing, found.max_pixels) == (preprocessing, max_pixels) else None


def end() -> None:
    """Stop, and forget what was decoded."""
    global _begun
    if _begun is not None:
        _begun.stop()
    _begun = None


def images_of(source: Path) -> Iterator[str]:
    """Yield the image files of a data set, a folder or a CSV: about those that `scan` finds, and in its order."""
    if source.is_file():
        listed = {path for _, path, _, _ in islice(read_listing(source), MOST_ROWS)}
        yield from (str(source.parent / path) for path in sorted(listed))
        return
    for where, folders, files in os.walk(source, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (
            path for name in sorted(files) if not name.startswith(".") and looks_like_image(path := f"{where}/{name}")
        )


def _look(path: str) -> list[int] | None:
    """Return what tells a changed file from an unchanged one, None if it cannot be seen."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino & (2**63 - 1)]


def _shared(shape: tuple[int, ...], dtype: type) -> NDArray[np.generic]:
    """Return an array of zeros that this process and those forked from it see alike."""
    length = max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize)
    return np.frombuffer(mmap.mmap(-1, length), dtype, count=int(np.prod(shape))).reshape(shape)
