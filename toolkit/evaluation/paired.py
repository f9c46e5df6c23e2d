"""Two models on the same images: the difference of their accuracies, how sure it is, and whether chance would do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000


@dataclass(frozen=True)
class Paired:
    """How a first model does beside a second one on N images.

    wins: images that the first alone has right; losses: that the second alone has. difference: first less second, in
    accuracy, with its 95 % interval of the paired bootstrap. p: of McNemar's exact test, two-sided.
    """

    n: int
    accuracy: float
    other_accuracy: float
    difference: float
    interval: tuple[float, float]
    wins: int
    losses: int
    p: float

    @property
    def ties(self) -> int:
        """Images that both have right, or both wrong."""
        return self.n - self.wins - self.losses

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "interval": list(self.interval), "ties": self.ties}


def paired(right: NDArray[np.bool_], other_right: NDArray[np.bool_], *, seed: int = 0) -> Paired:
    """Return the comparison of two models by which of N ≥ 1 images, the same ones, each has right: bool (N,).

    A resample of the images with replacement, both models' answers to an image together, has multinomially
    distributed wins, losses and ties: they are drawn directly, which is the paired bootstrap itself (Efron & Tibshirani
    1993) and needs no memory. Half an image is added to wins and to losses before, where there are any: else the
    interval of a model that is never wrong alone could not reach 0, however few images it is ahead by. Raises
    ValueError for other shapes.
    """
    if right.shape != other_right.shape or right.ndim != 1 or not len(right):
        raise ValueError(f"expected two bool (N,), N >= 1, got {right.shape} and {other_right.shape}")
    n, wins, losses = len(right), int((right & ~other_right).sum()), int((~right & other_right).sum())
    drawn = np.random.default_rng(seed).multinomial(n, _shares(n, wins, losses), RESAMPLES)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / n, (0.025, 0.975)).tolist()
    return Paired(
        n,
        accuracy=float(right.mean()),
        other_accuracy=float(other_right.mean()),
        difference=(wins - losses) / n,
        interval=(low, high),
        wins=wins,
        losses=losses,
        p=mcnemar(wins, losses),
    )


def mcnemar(wins: int, losses: int) -> float:
    """Return the two-sided exact p of McNemar's test: how often a fair coin, thrown for each image that one of two
    models alone has right, falls at least as unevenly; 1 without such images (McNemar 1947)."""
    n, fewer = wins + losses, min(wins, losses)
    ways = total = 1
    for k in range(1, fewer + 1):
        ways = ways * (n - k + 1) // k
        total += ways
    return min(1.0, 2 * total / (1 << n))  # whole numbers of any size, divided once


def _shares(n: int, wins: int, losses: int) -> list[float]:
    """Return the chances of a win, a loss and a tie that resamples are drawn with."""
    if not wins and not losses:
        return [0.0, 0.0, 1.0]
    win, loss = (wins + 0.5) / (n + 1), (losses + 0.5) / (n + 1)
    return [win, loss, max(0.0, 1 - win - loss)]
