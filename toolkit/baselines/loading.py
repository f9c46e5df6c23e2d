"""Rows of Inputs → units of shuffled batches, one gather each, in an order that a resumed run finds again."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toolkit.baselines.inputs import Inputs
from toolkit.data.datamodule import ManifestData
from toolkit.data.manifest import TRAIN, VAL, Manifest

UNIT_STEPS = 32  # optimizer steps that are handed over together, see BaselineModule
UNIT_BYTES = 64 << 20  # or fewer, where their images are large
VAL_ROWS = 4096


class EpochOrder:
    """The rows in the order of an epoch, a pure function of (seed, epoch); Lightning says which epoch it is."""

    def __init__(self, rows: NDArray[np.int64], seed: int) -> None:
        self.rows = torch.from_numpy(rows)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Take the order of this epoch from now on."""
        self.epoch = epoch

    def shuffled(self) -> Tensor:
        """Return int64 (N,)."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return self.rows[torch.randperm(len(self.rows), generator=generator)]


class UnitLoader:
    """Yields units of an epoch, (inputs, labels) of several batches each; can go on where it was.

    `sampler` is where Lightning looks for something that wants to know the epoch.
    """

    def __init__(self, inputs: Inputs, labels: Tensor, rows: NDArray[np.int64], *, seed: int, unit: int) -> None:
        self.inputs = inputs
        self.labels = labels
        self.sampler = EpochOrder(rows, seed)
        self.unit = unit
        self.rows = torch.empty(0, dtype=torch.int64)  # of the unit that was handed out last
        self._done = (-1, 0)
        self._resume = (-1, 0)

    def __len__(self) -> int:
        return -(-len(self.sampler.rows) // self.unit)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch = self.sampler.epoch
        done = self._resume[1] if self._resume[0] == epoch else 0
        self._resume = (-1, 0)
        for rows in torch.split(self.sampler.shuffled(), self.unit)[done:]:
            done += 1
            self._done = (epoch, done)
            self.rows = rows
            yield self.inputs.take(rows), self.labels[rows]

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and how many of its units have been handed out."""
        return {"epoch": self._done[0], "units": self._done[1]}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Skip the units that were handed out when `state` was taken."""
        self._resume = self._done = (state["epoch"], state["units"])


class BaselineData(ManifestData):
    """Inputs and labels of a split Manifest for a BaselineModule of the same `batch_size`."""

    def __init__(self, manifest: Manifest, inputs: Inputs, *, batch_size: int, seed: int) -> None:
        super().__init__(manifest)
        self.inputs = inputs
        self.labels = torch.from_numpy(manifest.labels)
        self.batch_size = batch_size
        self.seed = seed

    def rows_in_work(self) -> Tensor:
        """Return int64 (B,), the rows of the Manifest that the last unit was made of."""
        return self._training.rows if isinstance(self._training, UnitLoader) else super().rows_in_work()

    @property
    def steps_an_epoch(self) -> int:
        """How many optimizer steps an epoch has."""
        return -(-len(self.manifest.rows(TRAIN)) // self.batch_size)

    def train_dataloader(self) -> UnitLoader:
        """Return the loader of the training rows: shuffled, resumable."""
        row_bytes = max(1, self.inputs.values[:1].nbytes)
        steps = max(1, min(UNIT_STEPS, UNIT_BYTES // (row_bytes * self.batch_size)))
        rows = self.manifest.rows(TRAIN)
        unit = steps * self.batch_size
        return self._resumed(UnitLoader(self.inputs, self.labels, rows, seed=self.seed, unit=unit))

    def val_dataloader(self) -> ValLoader:
        """Return the loader of the validation rows, in their order."""
        return ValLoader(self.inputs, self.labels, self.manifest.rows(VAL))


class ValLoader:
    """Yields (inputs, labels) of some rows in their order, block by block."""

    def __init__(self, inputs: Inputs, labels: Tensor, rows: NDArray[np.int64]) -> None:
        self.inputs = inputs
        self.labels = labels
        self.rows = torch.from_numpy(rows)

    def __len__(self) -> int:
        return -(-len(self.rows) // VAL_ROWS)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.split(self.rows, VAL_ROWS):
            yield self.inputs.take(rows), self.labels[rows]
