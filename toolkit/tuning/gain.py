"""What the best settings win over the defaults, image by image, on folds that chose neither."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from toolkit.tuning.outcomes import Judged

SURE = 2.0  # standard errors that a gain must have, as a fine-tuning must


@dataclass(frozen=True)
class Gain:
    """Accuracies of the best settings and the defaults on the same images, and their mean difference with its standard
    error, image by image.

    The best of many trials looks better than it is, for it was picked by the luck of its folds as well. Here both are
    trained and judged again on other folds. The images are the same ones, so a little of the luck may be left.
    """

    best: float
    default: float
    gain: float
    se: float
    n: int

    @staticmethod
    def of(best: Judged, default: Judged) -> Gain:
        """Return the gain on the images that both were judged by."""
        images = np.intersect1d(best.images, default.images)
        ours, theirs = (one.right[np.isin(one.images, images)].astype(float) for one in (best, default))
        difference = ours - theirs
        se = float(difference.std(ddof=1) / len(images) ** 0.5) if len(images) > 1 else 0.0
        return Gain(float(ours.mean()), float(theirs.mean()), float(difference.mean()), se, len(images))

    @property
    def is_sure(self) -> bool:
        """Whether it is more than two standard errors above nothing."""
        return self.gain > SURE * self.se

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "beyond_chance": self.is_sure}

    def __str__(self) -> str:
        if self.gain <= 0:
            said = "no gain: the default settings stay"
        else:
            said = "beyond chance" if self.is_sure else "that could be chance"
        return (
            f"judged on folds that chose neither: best {self.best:.3f}, default {self.default:.3f}, a gain of "
            f"{100 * self.gain:+.1f} ± {100 * self.se:.1f} points ({self.n} images): {said}"
        )
