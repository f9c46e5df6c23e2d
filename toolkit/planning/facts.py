"""What a data set is, in numbers that decide a plan."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from toolkit.data.manifest import TEST, TRAIN, VAL, Manifest


@dataclass(frozen=True)
class Facts:
    """Counts of a split Manifest: images by split, classes, and training images of the least and the median class.

    median_side_px: of the shorter sides of the training images; None where nobody looked at them.
    """

    n_train: int
    n_val: int
    n_test: int
    n_classes: int
    min_per_class: int
    median_per_class: float
    median_side_px: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def facts_of(manifest: Manifest) -> Facts:
    """Count a Manifest whose splits are assigned."""
    counts = manifest.class_counts(TRAIN)
    n_train, n_val, n_test = (int((manifest.splits == split).sum()) for split in (TRAIN, VAL, TEST))
    known = manifest.sizes[manifest.splits == TRAIN] if len(manifest.sizes) else manifest.sizes
    sides = known.min(axis=1)
    side = float(np.median(sides[sides > 0])) if (sides > 0).any() else None
    return Facts(n_train, n_val, n_test, len(manifest.classes), int(counts.min()), float(np.median(counts)), side)
