"""StoredViews: stored activations in the place of decoded pixels, for the same loader in the same order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from toolkit.data.loading import Batch
from toolkit.data.manifest import Manifest
from toolkit.features.stored import Stored
from toolkit.storage import digest

Key = tuple[int, int]


class StoredViews(Dataset[Key]):
    """Maps (row, view number) to what is stored of that view; whole batches are read at once, by `collate`.

    parts: Stored of disjoint rows of the Manifest (training images with all their views, the others with view 0).
    """

    def __init__(self, manifest: Manifest, parts: Sequence[Stored]) -> None:
        self.labels = manifest.labels
        self.costly = any(part.request.source for part in parts)  # views are cut from sources
        self.parts = tuple(parts)
        self._failures = dict(failure for part in self.parts for failure in part.failures)
        self._part = np.full(len(manifest), -1, np.int64)
        self._position = np.zeros(len(manifest), np.int64)
        for number, part in enumerate(self.parts):
            self._part[part.rows] = number
            self._position[part.rows] = np.arange(len(part))

    def contents(self) -> str:
        """Return a digest of what is in the images, row by row of the Manifest."""
        rows = np.concatenate([part.rows for part in self.parts])
        digests = np.concatenate([part.digests for part in self.parts])
        order = np.argsort(rows)
        return digest(rows[order].astype("<i8").tobytes() + digests[order].tobytes()).hex()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: Key) -> Key:
        return key

    def collate(self, keys: Sequence[Key]) -> Batch:
        """Return the Batch of rows of one part and of one view; those that could not be read are left out."""
        asked = np.array([row for row, _ in keys], np.int64)
        known = self._part[asked] >= 0
        failures = tuple((row, self._failures.get(row, "not stored")) for row in asked[~known].tolist())
        rows = asked[known]
        part = self.parts[self._part[rows[0]] if len(rows) else 0]
        inputs = part.inputs(self._position[rows], keys[0][1])
        return Batch(inputs, torch.from_numpy(self.labels[rows]), torch.from_numpy(rows), failures)
