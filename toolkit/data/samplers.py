"""Which images an epoch shows, in which order and view."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DistributedSampler, SequentialSampler


class SeededSampler(DistributedSampler[Any]):
    """Yields (row, view number); the order of epoch e is a pure function of (seed, e).

    Epoch e shows view e mod `views` of every image, so the clean view comes first. A DistributedSampler, because
    Lightning leaves one as it is and tells it the epoch; every rank draws the same permutation and takes its share,
    the last few images repeated so that all ranks take equally many steps.
    """

    def __init__(
        self, rows: NDArray[np.int64], *, views: int, seed: int, shuffle: bool = True, replicas: int = 1, rank: int = 0
    ) -> None:
        super().__init__(rows, num_replicas=replicas, rank=rank, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]
        self.rows = rows
        self.views = views
        self.skip = 0

    def __iter__(self) -> Iterator[Any]:
        order = self.rows
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self._order())
            order = self.rows[torch.randperm(len(self.rows), generator=generator).numpy()]
        shared = np.resize(order, self.total_size)[self.rank :: self.num_replicas]
        number = self.epoch % self.views
        return iter([(int(row), number) for row in shared[self.skip :]])

    def _order(self) -> int:
        """Return the epoch whose order is taken."""
        return self.epoch


class SteadySampler(SeededSampler, SequentialSampler):
    """A SeededSampler that has the order of epoch 0 in every epoch, so that its first batches are always the same.

    A SequentialSampler as well, which is what Lightning takes for steady, and would put in its place for
    `overfit_batches`: in the order of the paths, in which the first batches are all of one class.
    """

    def _order(self) -> int:
        return 0
