"""mapped: a tensor in a file without a name: as large as the disk has room for, and gone with the process."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from toolkit.errors import ArtifactError

SPARE_BYTES = 16 << 20  # that stay free, for what else is written meanwhile
_DTYPES = {torch.uint8: np.uint8, torch.float32: np.float32}


ADVICE = "make room, or choose another --cache_dir"


def check_mappable(n_bytes: int, folder: Path, *, after: int = 0) -> None:
    """Raise ArtifactError where a tensor of so many bytes would leave hardly any room in `folder`. after: bytes that
    will be written there before it is made."""
    if n_bytes + SPARE_BYTES > shutil.disk_usage(folder).free - after:
        raise ArtifactError(f"{folder}: {_no_room_for(n_bytes)}; {ADVICE}")


def _no_room_for(n_bytes: int) -> str:
    return f"no room for {n_bytes / 1e6:.0f} MB"


def mapped(shape: tuple[int, ...], dtype: torch.dtype, folder: Path) -> Tensor:
    """Return a tensor in a file without a name in `folder`, which goes with the process, however that ends.

    On a disk it takes no memory that others need; on a file system in memory it does. Raises ArtifactError where there
    is no room, or hardly any would be left: a file that only promises its bytes would end the process later.
    """
    n_bytes = int(np.prod(shape)) * dtype.itemsize
    try:
        check_mappable(n_bytes, folder)
        with tempfile.TemporaryFile(dir=folder) as file:
            with contextlib.suppress(AttributeError):  # not on every system
                if n_bytes:
                    os.posix_fallocate(file.fileno(), 0, n_bytes)
            array = np.memmap(file, _DTYPES[dtype], "r+" if n_bytes else "w+", shape=shape if n_bytes else (1,))
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        reason = _no_room_for(n_bytes) if full else f"cannot be written ({error.strerror})"
        raise ArtifactError(f"{folder}: {reason}; {ADVICE}") from error
    return torch.from_numpy(np.asarray(array)) if n_bytes else torch.empty(shape, dtype=dtype)
