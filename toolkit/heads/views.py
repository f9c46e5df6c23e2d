"""Which rows are views of one image, what each counts, and folds that keep an image's views together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Views:
    """The images behind N rows.

    image: int64 (N,), 0 to I − 1, of every row. first: int64 (I,), an image's first row, which is its clean view.
    """

    image: NDArray[np.int64]
    first: NDArray[np.int64]

    @staticmethod
    def of(images: NDArray[np.int64] | None, n_rows: int) -> Views:
        """Return the Views of rows with these image numbers; without numbers every row is an image."""
        if images is None:
            return Views(np.arange(n_rows), np.arange(n_rows))
        _, first, image = np.unique(images, return_index=True, return_inverse=True)
        return Views(image.astype(np.int64), first.astype(np.int64))

    @property
    def counts(self) -> NDArray[np.int64]:
        """int64 (I,): rows of every image."""
        return np.bincount(self.image, minlength=len(self.first))

    def rows_of(self, images: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return all rows of some images (ascending numbers), image by image."""
        wanted = np.zeros(len(self.first), dtype=bool)
        wanted[images] = True
        rows = np.flatnonzero(wanted[self.image])
        return rows[np.argsort(self.image[rows], kind="stable")]


def row_weights(labels: NDArray[np.int64], views: Views, *, balanced: bool) -> NDArray[np.float64]:
    """Return what each row counts, float64 (N,): an image counts 1 however many views it has.

    balanced: every class that occurs counts the same in sum, and all images together still I.
    """
    weights = 1.0 / views.counts[views.image]
    if balanced:
        share = np.bincount(labels, weights=weights)
        weights *= share.sum() / (np.count_nonzero(share) * share[labels])
    return weights


def fold_splits(
    labels: NDArray[np.int64], images: NDArray[np.int64] | None, n_folds: int, seed: int
) -> NDArray[np.int64]:
    """Return the fold of every row, int64 (N,) in 0..n_folds − 1, stratified; an image's views share a fold.

    Images are shuffled, lined up by class and dealt like cards: sizes of folds, and a class's images in them, differ
    by one at most, also where classes are smaller than `n_folds` (scikit-learn's StratifiedKFold refuses those). With
    fewer images than folds, some folds stay empty.
    """
    views = Views.of(images, len(labels))
    order = np.random.default_rng(seed).permutation(len(views.first))
    order = order[np.argsort(labels[views.first[order]], kind="stable")]
    folds = np.empty(len(order), dtype=np.int64)
    folds[order] = np.arange(len(order)) % n_folds
    return folds[views.image]
