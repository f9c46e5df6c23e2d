"""`toolkit features`: pooled features of a folder's images as a table."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from toolkit.errors import ArtifactError, SettingError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """Features of N images in path order.

    paths: str (N,). X: float32 (N, D). y: int64 (N,), −1 where unlabelled. classes: str (C,).
    split: str (N,), "train", "val", "test" or "". quarantined: (path, reason) of files that could not be used.
    """

    paths: NDArray[np.str_]
    X: NDArray[np.float32]
    y: NDArray[np.int64]
    classes: NDArray[np.str_]
    split: NDArray[np.str_]
    quarantined: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        n, width = self.X.shape
        return f"{n} images × {width} features, {len(self.classes)} classes; {len(self.quarantined)} files quarantined"


def extract_features(
    data: str,
    *,
    out: str | None = None,
    backbone: str = "efficientnet_lite0",
    taps: list[int] | None = None,
    image_size: int | None = None,
    weights: str | None = None,
    max_pixels: int = 50_000_000,
    device: str = "auto",
    precision: str = "auto",
    workers: int | None = None,
) -> FeatureTable:
    """Return the pooled features of all images of a folder, and write them to an .npz file.

    A folder without classes gives y = −1. Raises ToolkitError.

    Args:
        data: the photos: DIR/CLASS/…, DIR/train/CLASS/… with val, a CSV, or a folder of images without classes
        out: the .npz file to write: paths, X float32 (N, D), y, classes, split
        backbone: name of the pretrained network; `toolkit backbones` lists them
        taps: stages whose pooled outputs are the features, such as 5,6,7; the last one by default
        image_size: side of the square input in pixels; the weights' own by default
        weights: a checkpoint file (safetensors or state dict) instead of the backbone's own weights
        max_pixels: larger images are left out
        device: auto, cpu, cuda, cuda:1, mps
        precision: auto (bf16-mixed on CUDA, else 32-true), 32-true, bf16-mixed, 16-mixed
        workers: processes that decode; by the number of images and cores by default
    """
    from toolkit.options import Options

    out = None if out is None else os.path.expanduser(out)
    if out is not None and not out.endswith(".npz"):
        raise SettingError(f"out: a file name that ends in .npz expected, got {out!r}")
    options = Options(
        backbone=backbone,
        weights=weights,
        taps=taps,
        image_size=image_size,
        max_pixels=max_pixels,
        device=device,
        precision=precision,
        workers=workers,
    )
    import numpy as np

    from toolkit.data.manifest import SPLIT_NAMES
    from toolkit.features.extract import extract
    from toolkit.hardware import resolve_device, resolve_precision
    from toolkit.tasks.prepare import open_backbone, some_left, worker_count

    where = resolve_device(device)
    how = resolve_precision(precision, where)
    manifest = some_left(_scan_any(data, max_pixels))
    network = open_backbone(options)
    if out is not None:
        _make_folder(out)
    found = extract(
        network,
        manifest,
        taps=taps,
        device=where,
        precision=how,
        workers=worker_count(options, len(manifest)),
        max_pixels=max_pixels,
    )
    usable = some_left(manifest.without(found.failures))
    names = np.array([*SPLIT_NAMES, ""])
    table = FeatureTable(
        np.array(usable.paths, dtype=np.str_),
        found.values,
        usable.labels,
        np.array(usable.classes, dtype=np.str_),
        names[usable.splits],
        tuple((item.path, item.reason) for item in usable.quarantined),
    )
    if out is not None:
        _write(out, table)
    return table


def _scan_any(data: str, max_pixels: int) -> Any:
    """Scan a labelled data set, or else a flat folder."""
    from pathlib import Path

    from toolkit.data.scan import scan, scan_flat
    from toolkit.errors import DataError
    from toolkit.progress import say

    path = Path(data).expanduser()
    if path.is_dir() and not any(entry.is_dir() and not entry.name.startswith(".") for entry in path.iterdir()):
        return scan_flat(path, max_pixels=max_pixels)
    try:
        return scan(path, max_pixels=max_pixels)
    except DataError as error:
        if not path.is_dir():
            raise
        manifest = scan_flat(path, max_pixels=max_pixels)  # folders, but no data set: features need no labels
        say(f"note: the images are taken without labels: {error}")
        return manifest


def _make_folder(out: str) -> None:
    """Make the folder that the table goes to, before the work."""
    from pathlib import Path

    try:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        if Path(out).is_dir():
            raise IsADirectoryError(errno.EISDIR, "Is a directory")
    except OSError as error:
        raise ArtifactError(f"{out}: cannot be written ({error.strerror}); choose another --out") from error


def _write(out: str, table: FeatureTable) -> None:
    import numpy as np

    from toolkit.storage import publishing

    try:
        with publishing(out) as temporary, open(temporary, "wb") as file:
            np.savez(file, paths=table.paths, X=table.X, y=table.y, classes=table.classes, split=table.split)
    except OSError as error:
        raise ArtifactError(f"{out}: cannot be written ({error.strerror}); choose another --out") from error
