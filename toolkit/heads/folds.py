"""repeated_folds: what to expect of a head on new images, the whole choice repeated inside every training part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, variance

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from toolkit.errors import SettingError
from toolkit.heads.blocks import Picked, Rows, spans, tap_columns
from toolkit.heads.choose import choose_head
from toolkit.heads.views import Views, fold_splits

REPEATS_OF_MANY = ((5_000, 1), (1_000, 2))  # above so many rows, at most so many repeats


@dataclass(frozen=True)
class FoldScores:
    """Accuracies of repeated stratified k-fold cross-validation.

    accuracies: of the held-out images, repeats × k of them. interval: 95 % (low, high) for the accuracy of a head
    trained on as many images, by the corrected resampled t-test, and no narrower than n images allow. n: number of
    images.
    """

    accuracies: tuple[float, ...]
    interval: tuple[float, float]
    k: int
    repeats: int
    n: int

    @property
    def mean(self) -> float:
        """The mean accuracy."""
        return fmean(self.accuracies)

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"accuracy {self.mean:.3f} (95 % interval {low:.3f} to {high:.3f}; {self.repeats} × {self.k} folds of "
            f"{self.n} images)"
        )


def repeated_folds(
    X: Rows,
    y: NDArray[np.int64],
    n_classes: int,
    widths: Sequence[int],
    *,
    k: int = 5,
    repeats: int = 5,
    kind: str = "auto",
    tap_sets: Sequence[Sequence[int]] | None = None,
    images: NDArray[np.int64] | None = None,
    balanced: bool = False,
    seed: int = 0,
) -> FoldScores:
    """Return the accuracy of `choose_head` in repeated stratified k-fold cross-validation; arguments as there.

    Taps, kind, strength and temperature are chosen inside every training part, so the number is honest. All views of
    an image share a fold, and held-out images are scored on their first row, the clean view. With no more
    images than folds every image is a fold, and one repeat says all. Above 1,000 rows at most 2 repeats are made, above
    5,000 one; the result says how many. Raises SettingError for less than 2 folds, 1 repeat or 2 images.
    """
    views = Views.of(images, len(y))
    n_images = len(views.first)
    if k < 2 or repeats < 1 or n_images < 2:
        raise SettingError(
            f"folds: at least 2 folds, 1 repeat and 2 images expected, got {k}, {repeats} and {n_images}"
        )
    k = min(k, n_images)
    repeats = min([repeats, *(most for limit, most in REPEATS_OF_MANY if len(y) > limit)])
    if k == n_images:  # every repeat would leave out the same images
        repeats = 1
    is_first = np.zeros(len(y), dtype=bool)
    is_first[views.first] = True
    accuracies = []
    for repeat in range(repeats):
        folds = fold_splits(y, images, k, seed + repeat)
        for fold in range(k):
            rows, held = np.flatnonzero(folds != fold), np.flatnonzero((folds == fold) & is_first)
            chosen = choose_head(
                Picked(X, rows),
                y[rows],
                n_classes,
                widths,
                kind=kind,
                tap_sets=tap_sets,
                images=None if images is None else images[rows],
                balanced=balanced,
                seed=seed,
            )
            predicted = predict(chosen.head, Picked(X, held, tap_columns(widths, chosen.taps)))
            accuracies.append(float((predicted == y[held]).mean()))
    by_folds, by_count = corrected_interval(accuracies, k), wilson_interval(fmean(accuracies), n_images)
    interval = min(by_folds[0], by_count[0]), max(by_folds[1], by_count[1])  # folds without an error are few images too
    return FoldScores(tuple(accuracies), interval, k, repeats, n_images)


def predict(head: nn.Module, features: Rows) -> NDArray[np.int64]:
    """Return int64 (N,): the class with the largest score of each row."""
    with torch.inference_mode():
        blocks = [head(torch.from_numpy(np.array(features[span]))).argmax(1) for span in spans(features.shape[0])]
    return torch.cat(blocks).numpy()


def corrected_interval(accuracies: Sequence[float], k: int) -> tuple[float, float]:
    """Return the 95 % interval of the mean of repeated k-fold accuracies.

    Training parts overlap, so the folds' variance is too small for the mean's; it is enlarged by the share of test to
    training images, 1 / (k − 1) (Nadeau and Bengio 2003, "Inference for the Generalization Error").
    """
    from scipy.stats import t

    n, mean = len(accuracies), fmean(accuracies)
    error = math.sqrt((1 / n + 1 / (k - 1)) * variance(accuracies))
    margin = float(t.ppf(0.975, n - 1)) * error
    return max(0.0, mean - margin), min(1.0, mean + margin)


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share that was seen in n independent trials (Wilson 1927)."""
    z = NormalDist().inv_cdf(0.975)
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    margin = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - margin), min(1.0, middle + margin)
