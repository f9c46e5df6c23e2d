"""Stored: what a FeatureStore gives for the images of a Manifest; rows are read from the disk when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toolkit.data.loading import Failure
from toolkit.data.views import view_of_source
from toolkit.features.index import Column
from toolkit.features.prefix import Activations
from toolkit.features.request import PIXELS, SIZE, SOURCE, Request, pool_name, stage_name


class PooledRows:
    """Pooled features of K views, float32 (K, D), the taps side by side: an array that stays on the disk.

    `rows[a:b]` and `rows[numbers]` give ndarrays; `np.asarray(rows)` all of it. scratch: a folder for files without
    names, for whoever goes through the rows many times.
    """

    def __init__(
        self,
        columns: Sequence[Column],
        widths: Sequence[int],
        positions: NDArray[np.int64],
        scratch: Path | None = None,
    ) -> None:
        self._columns = columns
        self.scratch = scratch
        self._positions = positions
        self.widths = tuple(widths)
        self.shape = (len(positions), sum(widths))
        self.dtype = np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        positions = self._positions[rows]
        if not len(positions):
            return np.empty((0, self.shape[1]), np.float32)
        taken = torch.empty((len(positions), self.shape[1]), dtype=torch.float32)
        for column, part in zip(self._columns, torch.split(taken, list(self.widths), dim=1), strict=True):
            column.take(positions, part)
        return taken.numpy()

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> NDArray[np.float32]:
        return np.asarray(self[:], dtype=dtype)


@dataclass(frozen=True, eq=False)
class Stored:
    """The numbers that a Request asked for, of the N images that could be read, V views each.

    rows: int64 (N,), rows of the Manifest. digests: uint8 (N, 16), of their contents. failures: (row, reason) of the
    other files. n_computed: views that were computed for this answer; 0 where all were stored. folder: the store's.
    """

    request: Request
    rows: NDArray[np.int64]
    digests: NDArray[np.uint8]
    failures: tuple[Failure, ...]
    columns: dict[str, Column]  # of N × V views, image by image
    n_computed: int
    folder: Path | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def pooled(
        self,
        positions: NDArray[np.int64] | None = None,
        views: NDArray[np.int64] | int = 0,
        taps: Sequence[int] | None = None,
    ) -> PooledRows:
        """Return pooled features of the images at `positions` (all by default), one view each, at `taps` (all)."""
        positions = np.arange(len(self)) if positions is None else positions
        kept = self.request.taps if taps is None else tuple(taps)
        names = [pool_name(tap) for tap in kept]
        widths = [self.request.shapes[name][0] for name in names]
        columns = [self.columns[name] for name in names]
        return PooledRows(columns, widths, positions * self.request.views + views, self.folder)

    def inputs(
        self, positions: NDArray[np.int64], view: int = 0, taps: Sequence[int] | None = None
    ) -> Tensor | Activations:
        """Return, read into memory, what a network that is frozen before the cut takes for one view of some images.

        Activations, with the pooled outputs of `taps` (all that were asked for) before the cut; pixels for cut 0.
        """
        cut = self.request.cut
        if self.request.source:
            return self._cut_views(positions, view)
        places = positions * self.request.views + view
        if cut == 0:
            return self.columns[PIXELS].take(places)
        before = [tap for tap in (self.request.taps if taps is None else taps) if cut is None or tap < cut]
        pooled = tuple(self.columns[pool_name(tap)].take(places) for tap in before)
        return Activations(None if cut is None else self.columns[stage_name(cut)].take(places), pooled)

    def _cut_views(self, positions: NDArray[np.int64], number: int) -> Tensor:
        """Return uint8 (k, 3, S, S): one view of each image, cut from its source."""
        sources, sizes = (self.columns[name].take(positions).numpy() for name in (SOURCE, SIZE))
        views = [
            view_of_source(
                source,
                (int(width), int(height)),
                self.request.backbone.preprocessing,
                self.request.augmentation,
                digest=self.digests[position].tobytes(),
                number=number,
                seed=self.request.seed,
            )
            for source, (width, height), position in zip(sources, sizes, positions, strict=True)
        ]
        side = self.request.backbone.preprocessing.crop_px
        return torch.from_numpy(np.stack(views) if views else np.empty((0, 3, side, side), np.uint8))
