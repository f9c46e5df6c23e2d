"""Pictures: all images of a Manifest at once, squeezed so small that they can be held against each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from toolkit.checks.alignment import SIDE_PX
from toolkit.checks.candidates import HASH_PX
from toolkit.data.decode import UnreadableImage, read_image
from toolkit.data.manifest import Manifest
from toolkit.data.turns import by_turns
from toolkit.features.mapped import mapped
from toolkit.progress import counting
from toolkit.tasks.job import Job, worker_count

READ_AT_ONCE = 32
BLOCK = 1024  # rows at a time


@dataclass(frozen=True, eq=False)
class Pictures:
    """All N images, each squeezed into 64 × 64 px: uint8 (N, 3, 64, 64), mapped from a file."""

    values: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.values)

    def of(self, rows: NDArray[np.int64]) -> Tensor:
        """Return uint8 (n, 3, 64, 64)."""
        return torch.from_numpy(np.asarray(self.values[rows]))

    def blocks(self, rows: NDArray[np.int64] | None = None) -> Iterator[NDArray[np.int64]]:
        """Yield rows, all by default, some at a time."""
        rows = np.arange(len(self)) if rows is None else rows
        for start in range(0, len(rows), BLOCK):
            yield rows[start : start + BLOCK]

    def grey(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return float32 (n, 32, 32) in 0..255."""
        some = np.asarray(self.values[rows], np.float32).mean(axis=1)
        step = SIDE_PX // HASH_PX
        grey: NDArray[np.float32] = some.reshape(len(rows), HASH_PX, step, HASH_PX, step).mean(axis=(2, 4))
        return grey


def squeezed(manifest: Manifest, job: Job) -> Pictures:
    """Return the Pictures of a Manifest, whose file goes with them. What cannot be read any more is left black."""
    n, max_pixels = len(manifest), job.options.max_pixels

    def squeeze(row: int) -> tuple[int, NDArray[np.uint8] | None]:
        try:
            image = read_image(manifest.file(row), max_pixels, SIDE_PX)[1]
        except UnreadableImage:
            return row, None
        small = image.resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX)
        return row, np.asarray(small).transpose(2, 0, 1)

    spans = [range(start, min(start + READ_AT_ONCE, n)) for start in range(0, n, READ_AT_ONCE)]
    values: NDArray[np.uint8] = mapped((n, 3, SIDE_PX, SIDE_PX), torch.uint8, job.store.folder).numpy()
    with counting("looking at pictures", n) as counter:
        for batch in by_turns(squeeze, spans, list, max(1, worker_count(job.options, n))):
            for row, small in batch:
                if small is not None:
                    values[row] = small
            counter.advance(len(batch))
    return Pictures(values)
