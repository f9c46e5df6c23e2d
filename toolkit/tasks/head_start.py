"""Whether images are decoded while torch is imported: where there is a core for it and something to decode."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from toolkit.options import Options


@contextmanager
def head_start(data: Any, options: Options) -> Iterator[None]:
    """Decode the first images of a folder ahead, for as long as the block lasts.

    Nothing is done where it cannot help: in a program that has imported torch already, on one core, for a folder
    whose contents the cache knows, or for a network whose preprocessing is not known without torch. Whatever is wrong
    with the data or the options is left to be said where it always is.
    """
    if not _helps(options) or not isinstance(data, (str, os.PathLike)):
        yield
        return
    from toolkit.backbones.embedded import PACKAGES, preprocessing
    from toolkit.data import ahead
    from toolkit.features.contents import Contents
    from toolkit.storage import cache_folder

    try:
        folder = Path(data).expanduser().absolute()
        known = options.cache and Contents(cache_folder(options.cache_dir) / "contents", folder).path.exists()
        if options.backbone in PACKAGES and folder.is_dir() and not known:
            wanted = preprocessing(options.backbone)
            if options.image_size is not None:
                wanted = wanted.at_image_size(options.image_size)
            processes = min(len(os.sched_getaffinity(0)) - 1, ahead.MOST_PROCESSES)
            ahead.begin(folder, wanted, options.max_pixels, processes)
    except OSError:  # no memory, no processes, an unreadable folder
        pass
    try:
        yield
    finally:
        ahead.end()


def _helps(options: Options) -> bool:
    return (
        sys.platform == "linux"
        and "torch" not in sys.modules
        and options.workers != 0
        and options.strategy in ("auto", "head", "partial", "full")
        and len(os.sched_getaffinity(0)) > 1
    )
