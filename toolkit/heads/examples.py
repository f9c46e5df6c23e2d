"""Examples: the training rows of a head, with everything that all kinds of heads ask of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from toolkit.heads.blocks import Rows, tap_columns
from toolkit.heads.moments import Moments, Spectrum, moments_of
from toolkit.heads.views import Views, fold_splits, row_weights

UNSEEN_BIAS = -100.0  # the score of a class without training images: never predicted, yet finite
FOLDED_UP_TO = 5_000  # images; above, one held-out part chooses as well and costs a fraction
REMEMBERED = 8_000_000  # numbers of principal directions, 64 MB: of two tap sets of the default backbone
FOLDS, FOLDS_OF_FEW, FEW = 5, 10, 300  # a fifth of few images is missed by a model trained without them


class Examples:
    """Features float32 (N, D), labels int64 (N,), and what follows from them.

    views: the images behind the rows. weights: float64 (N,), what a row counts. seen: bool (C,), classes that occur.
    folds: int64 (N,). scored: int64 rows, the clean views of the images that choose between models: all of them up to
    5,000 images, above those of one fold, a fifth of the images or 5,000 if that is fewer. n_threads: how many threads
    may compute, torch's number when the examples are made. reading: held by whichever of them reads features.
    """

    def __init__(
        self,
        features: Rows,
        labels: NDArray[np.int64],
        n_classes: int,
        widths: Sequence[int],
        *,
        images: NDArray[np.int64] | None = None,
        balanced: bool = False,
        seed: int = 0,
    ) -> None:
        _validate(features, labels, n_classes, widths, images)
        self.features, self.widths, self.n_classes = features, tuple(widths), n_classes
        self.labels = np.asarray(labels, dtype=np.int64)
        self.views = Views.of(images, len(labels))
        self.weights = row_weights(self.labels, self.views, balanced=balanced)
        self.seen = np.bincount(self.labels, minlength=n_classes) > 0
        self.n_threads = torch.get_num_threads()
        self.reading, self._remembering = Lock(), Lock()
        self._spectra: dict[tuple[int, ...], Spectrum] = {}
        first = self.views.first
        many = len(first) > FOLDED_UP_TO
        n_folds = max(FOLDS, -(-len(first) // FOLDED_UP_TO)) if many else FOLDS if len(first) > FEW else FOLDS_OF_FEW
        self.folds = fold_splits(self.labels, images, min(n_folds, len(first)), seed)
        self.scored = first[self.folds[first] == 0] if many else first

    @cached_property
    def moments(self) -> Moments:
        """The moments of all columns, for heads that need them: computed once."""
        return moments_of(self.features, self.widths, self.labels, self.n_classes, self.weights)

    def spectrum(self, taps: Sequence[int]) -> Spectrum:
        """Return the spectrum of some taps; the last ones are remembered, up to REMEMBERED numbers."""
        key = tuple(taps)
        found = self._spectra.get(key) or self.moments.spectrum(tap_columns(self.widths, key))
        with self._remembering:
            self._spectra[key] = found
            while len(self._spectra) > 1 and sum(one.vectors.size for one in self._spectra.values()) > REMEMBERED:
                del self._spectra[next(iter(self._spectra))]
        return found

    @cached_property
    def learnable(self) -> NDArray[np.bool_]:
        """bool (N,): rows whose class has another image, without which no model could know the class."""
        per_class = np.bincount(self.labels[self.views.first], minlength=self.n_classes)
        return per_class[self.labels] > 1

    def image_weights(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return float64 (n,): what the images of some rows count, all their views together."""
        weights: NDArray[np.float64] = self.weights[rows] * self.views.counts[self.views.image[rows]]
        return weights


def _validate(
    features: Rows,
    labels: NDArray[np.int64],
    n_classes: int,
    widths: Sequence[int],
    images: NDArray[np.int64] | None,
) -> None:
    """Raise ValueError for shapes or labels that do not fit each other."""
    n_rows = len(labels)
    if n_rows < 1 or tuple(features.shape) != (n_rows, sum(widths)):
        raise ValueError(
            f"expected features ({n_rows}, {sum(widths)}) of at least one row, got {tuple(features.shape)}"
        )
    if not 0 <= int(np.min(labels)) <= int(np.max(labels)) < n_classes:
        raise ValueError(f"expected labels 0 to {n_classes - 1}, got {np.min(labels)} to {np.max(labels)}")
    if images is not None and np.shape(images) != (n_rows,):
        raise ValueError(f"expected {n_rows} image numbers, got {np.shape(images)}")


@dataclass(frozen=True, eq=False)
class Trial:
    """A kind of head on some taps, its strength chosen.

    scores: float32 (n, C) of the rows that were asked for, each from a model that has seen no view of its image.
    build: gives the head that is fitted to all images.
    """

    strength: float
    scores: NDArray[np.float32]
    build: Callable[[], nn.Module]
