"""A shard: one published file with the stored numbers of some views, which proves itself when it is read."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from toolkit.storage import publishing

SUFFIX = ".safetensors"
DIGESTS, VIEWS = "digests", "views"
PLACE = "place"  # in the metadata: whose numbers they are

_DTYPES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint8: "U8",
}


class BrokenShardError(Exception):
    """A shard is not what was written."""


def write_shard(
    folder: Path, digests: NDArray[np.uint8], views: NDArray[np.int32], outputs: Mapping[str, Tensor]
) -> Path:
    """Publish `outputs`, tensors of N rows each, of the views (content digest (N, 16), view number (N,)).

    Name and bytes follow from what is in it, so two processes that write the same rows write the same file.
    """
    keys = {DIGESTS: torch.from_numpy(digests), VIEWS: torch.from_numpy(views)}
    tensors = {name: tensor.contiguous() for name, tensor in {**keys, **outputs}.items()}
    sums = {name: _sum(name, tensor) for name, tensor in tensors.items()}
    path = folder / _name(sums)
    with publishing(path) as temporary:
        _write(temporary, tensors, {**sums, PLACE: _place(path)})
    return path


class Shard:
    """An open shard; its tensors are memory-mapped, and verified when they are first read.

    digests: uint8 (N, 16). views: int32 (N,). names: of its outputs. Raises BrokenShardError, and OSError where the
    file cannot be opened at all.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.open("rb").close()  # safe_open's own errors do not tell a file that is broken from one that is barred
        try:
            file: Any = safe_open(path, framework="pt")
            sums: dict[str, str] = file.metadata() or {}
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 — no mapping
        except (SafetensorError, ValueError) as error:
            raise BrokenShardError(f"{path}: {error}") from error
        except (MemoryError, RuntimeError) as error:  # a limit on memory, or on the number of mapped files
            raise OSError(errno.ENOMEM, "its files cannot be mapped into memory") from error
        if sums.pop(PLACE, None) != _place(path):
            raise BrokenShardError(f"{path}: it belongs to another folder")
        self._file, self._sums = file, sums
        self._read: dict[str, Tensor] = {}
        if sums.keys() != shapes.keys() or not {DIGESTS, VIEWS} <= sums.keys() or path.name != _name(sums):
            raise BrokenShardError(f"{path}: its columns are not those that were written")
        self.names = frozenset(sums) - {DIGESTS, VIEWS}
        self.digests: NDArray[np.uint8] = self.tensor(DIGESTS).numpy()
        self.views: NDArray[np.int32] = self.tensor(VIEWS).numpy()
        if any(shape[:1] != [len(self.views)] for shape in shapes.values()) or self.digests.shape[1:] != (16,):
            raise BrokenShardError(f"{path}: its columns are not of one length")

    def tensor(self, name: str) -> Tensor:
        """Return the mapped tensor of an output, (N, …)."""
        if name not in self._read:
            try:
                tensor = self._file.get_tensor(name)
            except (SafetensorError, ValueError) as error:
                raise BrokenShardError(f"{self.path}: {error}") from error
            if self._sums.get(name) != _sum(name, tensor):
                raise BrokenShardError(f"{self.path}: the checksum of {name} differs")
            self._read[name] = tensor
        return self._read[name]


def _write(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file.

    The library's own writer orders metadata at random, leaves files of other names behind when it is killed, gives
    them to their owner alone, and reports a full disk as text.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # so that all are aligned
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name in names:
        start, end = end, end + tensors[name].nbytes
        shape = list(tensors[name].shape)
        header[name] = {"dtype": _DTYPES[tensors[name].dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            out.write(_bytes(tensors[name]))


def _name(sums: Mapping[str, str]) -> str:
    """Return the file name for these sums: it says which outputs of which views, not their values."""
    identity = " ".join([sums[DIGESTS], sums[VIEWS], *sorted(sums.keys() - {DIGESTS, VIEWS})])
    return hashlib.sha256(identity.encode()).hexdigest()[:24] + SUFFIX


def _place(path: Path) -> str:
    """Return what a shard's folder is known by: the backbone's key, and `clean` or a recipe's key."""
    return f"{path.parent.parent.name}/{path.parent.name}"


def _sum(name: str, tensor: Tensor) -> str:
    total = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
    total.update(_bytes(tensor))
    return total.hexdigest()


def _bytes(tensor: Tensor) -> memoryview | bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b""
