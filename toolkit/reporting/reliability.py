"""Whether probabilities mean what they say: how often the model is right where it is so sure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from toolkit.reporting.figure import TRAINING, VALIDATION, blank
from toolkit.scores import ECE_BINS, calibration_bins

PANEL_IN = 4.4


@dataclass(frozen=True, eq=False)
class Surety:
    """The images of one split: the probability of what was predicted, float64 (N,), and whether that was right."""

    split: str
    confidence: NDArray[np.float64]
    right: NDArray[np.bool_]


def draw_reliability(splits: Sequence[Surety]) -> Figure:
    """Return a reliability diagram a split: accuracy against probability, in the bins of the calibration error.

    Below it, how many images each bin has. Guo et al. 2017, "On Calibration of Modern Neural Networks", figure 1.
    """
    figure = blank(0.35 + PANEL_IN * len(splits), 5.6)
    width = figure.get_figwidth()
    grid = {"left": 0.7 / width, "right": 1 - 0.15 / width, "bottom": 0.1, "top": 0.93}
    axes = figure.subplots(
        2, len(splits), squeeze=False, sharex=True, gridspec_kw={**grid, "height_ratios": [3, 1], "hspace": 0.07}
    )
    edges = np.arange(ECE_BINS) / ECE_BINS
    for column, split in enumerate(splits):
        above, below = axes[:, column]
        found = calibration_bins(split.confidence, split.right)
        there = found.counts > 0
        bar = {"width": 1 / ECE_BINS, "align": "edge", "edgecolor": "white", "linewidth": 0.8}
        above.bar(edges[there], found.accuracy[there], color=TRAINING, label="right", **bar)
        above.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1, label="as sure as right")
        above.plot(
            found.confidence[there], found.accuracy[there], "o", color=VALIDATION, markersize=4, label="mean of the bin"
        )
        above.set(title=f"{split.split}: calibration error {found.error:.3f}", ylim=(0, 1.03), xlim=(0, 1))
        below.bar(edges[there], found.counts[there], color="grey", **bar)
        below.set(xlabel="probability of the predicted class", ylim=(0, max(1, found.counts.max()) * 1.35))
        for left, count in zip(edges[there], found.counts[there], strict=True):
            below.text(left + 0.5 / ECE_BINS, count, _short(int(count)), ha="center", va="bottom", fontsize=7)
        above.grid(alpha=0.3)
        above.legend(fontsize=8, loc="best")
    axes[0, 0].set_ylabel("share that is right")
    axes[1, 0].set_ylabel("images")
    return figure


def _short(count: int) -> str:
    """Return a count in at most four letters, up to a million."""
    return str(count) if count < 10_000 else f"{count / 1000:.0f}k"
