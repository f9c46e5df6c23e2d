"""Whether images are decoded while torch is imported: where there is a core for it and something to decode."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.options import Options

if TYPE_CHECKING:
    from toolkit.data.preprocessing import Preprocessing

Work = tuple[Iterable[str], "Preprocessing", int]  # files, how they are decoded, and the largest number of pixels


@contextmanager
def head_start(data: Any, options: Options) -> Iterator[None]:
    """Decode the first images of a data set ahead, for as long as the block lasts: those that a backbone will see.

    Nothing is done where it cannot help: in a program that has imported torch already, on one core, for photos in a
    folder of which the cache knows some, or for a network whose preprocessing is not known without torch; nor where
    the system forgets processes that end. Whatever is wrong with the data or the options is left to be said where it
    always is.
    """
    with _ahead(lambda: _first_run(data, options), options.workers):
        yield


@contextmanager
def head_start_of(model: Any, files: Sequence[str], workers: int | None) -> Iterator[None]:
    """Decode the first of some files ahead, for as long as the block lasts, as a saved model wants them."""
    with _ahead(lambda: _prediction(model, files), workers):
        yield


@contextmanager
def _ahead(work: Callable[[], Work | None], workers: int | None) -> Iterator[None]:
    helps = sys.platform == "linux" and "torch" not in sys.modules and workers != 0
    if not helps or len(os.sched_getaffinity(0)) < 2 or signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
        yield
        return
    from toolkit.data import ahead

    try:
        found = work()
        if found is not None:
            ahead.begin(*found, min(len(os.sched_getaffinity(0)) - 1, ahead.MOST_PROCESSES))
    except Exception:  # no memory, no processes, or data and models that nobody can read: others say so
        pass
    try:
        yield
    finally:
        ahead.end()


def _first_run(data: Any, options: Options) -> Work | None:
    """Return what a backbone will see of a data set, None where it is known, or is not to be known without torch."""
    if options.strategy == "scratch" or not isinstance(data, (str, os.PathLike)):
        return None
    from toolkit.backbones.embedded import PACKAGES, preprocessing
    from toolkit.data.ahead import images_of
    from toolkit.features.contents import Contents
    from toolkit.storage import cache_folder

    source = Path(data).expanduser().absolute()
    is_listing = source.suffix.lower() == ".csv" and source.is_file()
    if options.backbone not in PACKAGES or not (is_listing or source.is_dir()):
        return None
    root = source.parent if is_listing else source
    if options.cache and Contents(cache_folder(options.cache_dir) / "contents", root).path.exists():
        return None
    wanted = preprocessing(options.backbone)
    if options.image_size is not None:
        wanted = wanted.at_image_size(options.image_size)
    return images_of(source), wanted, options.max_pixels


def _prediction(model: Any, files: Sequence[str]) -> Work:
    from toolkit.artifacts.description import model_folder, read_description, reading_of

    wanted, max_pixels = reading_of(read_description(model_folder(model)))
    return (str(Path(file)) for file in files), wanted.decoding, max_pixels
