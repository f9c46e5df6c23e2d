"""What a data set is, in numbers that decide a plan."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from toolkit.data.manifest import TEST, TRAIN, VAL, Manifest

TINY_PX = 64  # of the shorter side: pretrained networks have seen few photographs that small


@dataclass(frozen=True)
class Facts:
    """Counts of a split Manifest: images by split, classes, and training images of the least, the median and the
    largest class.

    median_side_px: of the shorter sides of the training images; None where nobody looked at them. tiny_share: of the
    training images, those whose shorter side is below 64 px; None likewise. grey_share: of a sample of them, those
    without colour, whatever their files' mode; None where none was decoded.
    """

    n_train: int
    n_val: int
    n_test: int
    n_classes: int
    min_per_class: int
    median_per_class: float
    median_side_px: float | None = None
    max_per_class: int = 0
    tiny_share: float | None = None
    grey_share: float | None = None

    @property
    def imbalance(self) -> float:
        """How many times as many images the largest class has as the least."""
        return self.max_per_class / max(1, self.min_per_class)

    def in_words(self) -> str:
        """Return one line for a person."""
        told = f"{self.n_train} to train on, {self.n_classes} classes, {self.median_per_class:g} in the median class"
        if self.imbalance >= 2:
            told += f" (from {self.min_per_class} to {self.max_per_class})"
        if self.median_side_px is not None:
            told += f"; shorter side {self.median_side_px:g} px (median)"
        told += f", {self.tiny_share:.0%} below {TINY_PX} px" if self.tiny_share else ""
        return told + (f"; {self.grey_share:.0%} without colour" if self.grey_share else "")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def facts_of(manifest: Manifest, grey_share: float | None = None) -> Facts:
    """Count a Manifest whose splits are assigned."""
    counts = manifest.class_counts(TRAIN)
    n_train, n_val, n_test = (int((manifest.splits == split).sum()) for split in (TRAIN, VAL, TEST))
    known = manifest.sizes[manifest.splits == TRAIN] if len(manifest.sizes) else manifest.sizes
    sides = known.min(axis=1)
    sides = sides[sides > 0]
    return Facts(
        n_train,
        n_val,
        n_test,
        len(manifest.classes),
        int(counts.min()),
        float(np.median(counts)),
        median_side_px=float(np.median(sides)) if len(sides) else None,
        max_per_class=int(counts.max()),
        tiny_share=float((sides < TINY_PX).mean()) if len(sides) else None,
        grey_share=grey_share,
    )
