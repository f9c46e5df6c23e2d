"""IDX files, the four of MNIST and Fashion-MNIST, read directly: a Manifest and the pixels of its rows."""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolkit.data.manifest import TEST, UNASSIGNED, Manifest
from toolkit.errors import DataError

FILES = {"train": "train", "test": "t10k"}  # split: how its files begin
IMAGES, LABELS = "-images-idx3-ubyte", "-labels-idx1-ubyte"
BYTE = 0x08  # the type code of unsigned bytes, the only one that these files have
MAX_BYTES = 1 << 36


def is_idx(source: str | os.PathLike[str]) -> bool:
    """Return whether a folder holds IDX images to train on."""
    folder = Path(source).expanduser()
    return any((folder / f"{FILES['train']}{IMAGES}{ending}").is_file() for ending in ("", ".gz"))


def read_idx(
    source: str | os.PathLike[str], *, classes: tuple[str, ...] | None = None
) -> tuple[Manifest, NDArray[np.uint8]]:
    """Return the Manifest of a folder of IDX files, and uint8 (N, S, S), the pixels of its rows.

    Files are named as Fashion-MNIST's, packed by gzip or not: train-images-idx3-ubyte, train-labels-idx1-ubyte, and
    t10k-… for the test split, if there is one. A row's path is SPLIT/LABEL/NUMBER, and rows are in the order of their
    paths, as they are in a folder made from the files. Training images are UNASSIGNED. classes: a model's, to score it
    on these images; by default the labels that train, as text. Raises DataError.
    """
    folder = Path(source).expanduser().absolute()
    paths: list[str] = []
    names: list[str] = []
    parts: list[NDArray[np.uint8]] = []
    for split, start in FILES.items():
        if split == "test" and not any((folder / f"{start}{IMAGES}{ending}").is_file() for ending in ("", ".gz")):
            continue
        images, labels = _array(folder, start + IMAGES, 3), _array(folder, start + LABELS, 1)
        if len(images) != len(labels):
            raise DataError(f"{folder}: {len(images)} {split} images and {len(labels)} labels; expected as many")
        if parts and images.shape[1:] != parts[0].shape[1:]:
            raise DataError(f"{folder}: train and test images differ in size; expected one size")
        paths += [f"{split}/{label}/{number:05d}" for number, label in enumerate(labels.tolist())]
        names += [str(label) for label in labels.tolist()]
        parts.append(images)
    pixels = np.concatenate(parts)
    order = sorted(range(len(paths)), key=paths.__getitem__)
    known = _classes(folder, paths, names) if classes is None else classes
    strange = sorted(set(names) - set(known))
    if strange:
        raise DataError(
            f"{folder}: class {strange[0]!r} is not among those that are trained on: {', '.join(known[:10])}"
        )
    height, width = pixels.shape[1:]
    if height != width:
        raise DataError(f"{folder}: images of {width} × {height} pixels; only square ones are read from IDX files")
    label_of = {name: label for label, name in enumerate(known)}
    manifest = Manifest(
        root=folder,
        classes=known,
        paths=tuple(paths[index] for index in order),
        labels=np.array([label_of[names[index]] for index in order], np.int64),
        splits=np.array([TEST if paths[index].startswith("test/") else UNASSIGNED for index in order], np.int8),
        sizes=np.tile(np.array([width, height], np.int32), (len(paths), 1)),
    )
    return manifest, pixels[order]


def _classes(folder: Path, paths: list[str], names: list[str]) -> tuple[str, ...]:
    trained = {name for path, name in zip(paths, names, strict=True) if path.startswith("train/")}
    if len(trained) < 2:
        raise DataError(f"{folder}: images of {len(trained)} class to train on; at least 2 are needed")
    return tuple(sorted(trained))


def _array(folder: Path, name: str, n_axes: int) -> NDArray[np.uint8]:
    """Return the array of an IDX file of bytes, packed or not; raises DataError for whatever is not one."""
    file = next((folder / f"{name}{ending}" for ending in ("", ".gz") if (folder / f"{name}{ending}").is_file()), None)
    if file is None:
        raise DataError(f"{folder}: {name} is missing (packed, {name}.gz)")
    try:
        with gzip.open(file, "rb") if file.suffix == ".gz" else open(file, "rb") as stream:
            head = stream.read(4 + 4 * n_axes)
            if len(head) < 4 + 4 * n_axes or head[:4] != bytes([0, 0, BYTE, n_axes]):
                raise DataError(f"{file}: not an IDX file of bytes with {n_axes} axes")
            shape = tuple(np.frombuffer(head, ">u4", n_axes, 4).tolist())
            n_bytes = int(np.prod(shape, dtype=object))
            if not 0 < n_bytes <= MAX_BYTES:
                raise DataError(
                    f"{file}: its header speaks of {' × '.join(map(str, shape))} bytes; that is no data set"
                )
            content = stream.read(n_bytes + 1)  # no more than it says, however much is packed in it
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file}: cannot be read ({' '.join(str(error).split()) or type(error).__name__})") from error
    if len(content) != n_bytes:
        more = "more" if len(content) > n_bytes else f"only {len(content)}"
        raise DataError(f"{file}: its header speaks of {n_bytes} bytes, but there are {more}")
    return np.frombuffer(content, np.uint8).reshape(shape)
