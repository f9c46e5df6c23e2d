"""What the images of a Manifest become before a baseline sees them: one row of numbers an image, memory-mapped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from toolkit.backbones.backbone import Backbone
from toolkit.baselines.reading import Reading, to_grey
from toolkit.data.preprocessing import Preprocessing
from toolkit.features.mapped import mapped
from toolkit.features.request import PIXELS, Request
from toolkit.features.stored import PooledRows, Stored

BLOCK = 1024  # images that are worked on at a time
NATIVE_PX = 64  # images that all have one size up to this keep it
REDUCED_PX = 32


@dataclass(frozen=True, eq=False)
class Inputs:
    """The images of a Manifest, row by row.

    values: uint8 (N, C, S, S), C = 1 where all are grey, else 3; or float32 (N, D), features. Pixels lie in a file that
    is mapped into memory, so that a set larger than the memory can be trained on.
    """

    values: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: NDArray[np.int64] | Tensor) -> Tensor:
        """Return the given rows: one gather."""
        return self.values.index_select(0, torch.as_tensor(rows))

    def __str__(self) -> str:
        shape = tuple(self.values.shape[1:])
        return f"{len(self)} × {' × '.join(map(str, shape))} {'pixels' if len(shape) == 3 else 'features'}"


def side_of(size: tuple[int, int] | None, image_size: int | None) -> int:
    """Return the side of the square that images become: as set, their own up to 64 if it is one and square, else 32."""
    if image_size is not None:
        return image_size
    native = size is not None and size[0] == size[1] <= NATIVE_PX
    return size[0] if native and size is not None else REDUCED_PX


def pixel_preprocessing(side_px: int) -> Preprocessing:
    """Return how a file becomes pixels: the shorter side to S, the middle cut out; values stay as they are."""
    return Preprocessing(side_px, side_px, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def pixel_request(side_px: int) -> Request:
    """Return what is asked of a FeatureStore: the decoded pixels, which have met no network."""
    return Request(Backbone("pixels", (nn.Identity(),), pixel_preprocessing(side_px)), cut=0)


def stored_pixels(stored: Stored, train: NDArray[np.int64], folder: Path) -> Inputs:
    """Return the pixels of a FeatureStore, one channel if all training images (positions) are grey."""
    column = stored.columns[PIXELS]
    side = column.shape[-1]
    blocks = (column.take(train[start : start + BLOCK]) for start in range(0, len(train), BLOCK))
    grey = all(bool((block == block[:, :1]).all()) for block in blocks)
    values = mapped((len(stored), 1 if grey else 3, side, side), torch.uint8, folder)
    for start in range(0, len(stored), BLOCK):
        block = column.take(np.arange(start, min(start + BLOCK, len(stored))))
        values[start : start + len(block)] = to_grey(block) if grey else block
    return Inputs(values)


def idx_pixels(images: NDArray[np.uint8]) -> Inputs:
    """Return the pixels (N, S, S) of IDX files."""
    return Inputs(torch.from_numpy(images)[:, None])


def hand_made(pixels: Inputs, reading: Reading, folder: Path) -> Inputs:
    """Return the hand-made features of all images."""
    return _computed(lambda rows: reading(pixels.take(rows)), len(pixels), folder)


def pooled_features(rows: PooledRows, folder: Path) -> Inputs:
    """Return stored pretrained features."""
    return _computed(lambda some: torch.from_numpy(rows[some]), len(rows), folder)


def _computed(block_of: Callable[[NDArray[np.int64]], Tensor], n: int, folder: Path) -> Inputs:
    values = torch.empty(0, 0)
    for start in range(0, n, BLOCK):
        block = block_of(np.arange(start, min(start + BLOCK, n)))
        if start == 0:
            values = mapped((n, block.shape[1]), torch.float32, folder)
        values[start : start + len(block)] = block
    return Inputs(values)


def statistics(inputs: Inputs, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of every number over the given rows, float64 (D,) both, in two passes."""
    n = max(1, len(rows))

    def total(of: Callable[[Tensor], Tensor]) -> Tensor:
        parts = (inputs.take(rows[start : start + BLOCK]).flatten(1).double() for start in range(0, len(rows), BLOCK))
        start = torch.zeros(int(np.prod(inputs.values.shape[1:])), dtype=torch.float64)
        return sum((of(part).sum(0) for part in parts), start)

    mean = total(lambda part: part) / n
    if inputs.values.dtype == torch.uint8:  # pixels are centred only
        return mean, torch.full_like(mean, 255.0)
    return mean, (total(lambda part: (part - mean) ** 2) / n).sqrt()
