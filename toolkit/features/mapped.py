"""mapped: a tensor in a file without a name: as large as the disk has room for, and gone with the process."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from toolkit.errors import ArtifactError

_DTYPES = {torch.uint8: np.uint8, torch.float32: np.float32}


def mapped(shape: tuple[int, ...], dtype: torch.dtype, folder: Path) -> Tensor:
    """Return a tensor in a file without a name in `folder`, which goes with the process, however that ends.

    Raises ArtifactError where there is no room: a file that only promises its bytes would end the process later.
    """
    n_bytes = int(np.prod(shape)) * dtype.itemsize
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            with contextlib.suppress(AttributeError):  # not on every system
                if n_bytes:
                    os.posix_fallocate(file.fileno(), 0, n_bytes)
            array = np.memmap(file, _DTYPES[dtype], "r+" if n_bytes else "w+", shape=shape if n_bytes else (1,))
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        reason = f"no room for {n_bytes / 1e6:.0f} MB" if full else f"cannot be written ({error.strerror})"
        raise ArtifactError(f"{folder}: {reason}; make room, or choose another --cache_dir") from error
    return torch.from_numpy(np.asarray(array)) if n_bytes else torch.empty(shape, dtype=dtype)
