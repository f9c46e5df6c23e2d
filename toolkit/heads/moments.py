"""First and second moments of unit-length features, and the eigendecomposition that ridge regression needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.heads.blocks import Rows, check_finite, spans, unit_rows

NEGLIGIBLE = 1e-12  # of the largest eigenvalue: rounding, in a direction that no feature takes


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The principal directions of centred, weighted features.

    values: float64 (R,), eigenvalues of Σ w (x − mean)(x − mean)ᵀ. vectors: float64 (D, R), orthonormal.
    mean: float64 (D,), weighted. total: the sum of the weights. coordinates: float64 (N, R), √w (x − mean) on the
    directions, where there are fewer rows than columns in all; else None.
    """

    values: NDArray[np.float64]
    vectors: NDArray[np.float64]
    mean: NDArray[np.float64]
    total: float
    coordinates: NDArray[np.float64] | None = None

    @property
    def scale(self) -> float:
        """Mean squared distance of a feature vector from the mean; 1 where all are equal."""
        return float(self.values.sum()) / self.total or 1.0


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over all rows, float64, from which the spectrum of any choice of columns follows.

    mean (D,), target_mean (C,): weighted means of features x and targets t, ±1. cross (D, C): Σ w (x − mean) tᵀ.
    Of the two Gram matrices the smaller is kept: `gram` (D, D), or, where there are fewer rows than columns, the rows
    √w (x − mean) themselves as `rows` (N, D).
    """

    total: float
    mean: NDArray[np.float64]
    target_mean: NDArray[np.float64]
    cross: NDArray[np.float64]
    gram: NDArray[np.float64] | None
    rows: NDArray[np.float64] | None

    def spectrum(self, columns: slice | NDArray[np.int64] | None = None) -> Spectrum:
        """Return the spectrum of some columns (default all): one eigendecomposition of their smaller Gram matrix."""
        chosen = slice(None) if columns is None else columns
        mean = self.mean[chosen]
        if self.gram is not None:
            return Spectrum(*_leading(self.gram[chosen][:, chosen]), mean, self.total)
        assert self.rows is not None
        rows = self.rows[:, chosen]
        if rows.shape[1] <= rows.shape[0]:
            values, vectors = _leading(rows.T @ rows)
            return Spectrum(values, vectors, mean, self.total, rows @ vectors)
        values, left = _leading(rows @ rows.T)
        roots = np.sqrt(values)
        return Spectrum(values, (rows.T @ left) / roots, mean, self.total, left * roots)


def moments_of(
    features: Rows, widths: Sequence[int], labels: NDArray[np.int64], n_classes: int, weights: NDArray[np.float64]
) -> Moments:
    """Return the moments of features float32 (N, D) with labels int64 (N,) and row weights float64 (N,).

    Raises DataError for features that are not finite.
    """
    n_rows, width = features.shape
    rows = np.empty((n_rows, width)) if n_rows < width else None
    gram = np.zeros((width, width)) if rows is None else None
    mean, cross, target_mean = np.zeros(width), np.zeros((width, n_classes)), np.zeros(n_classes)
    for span in spans(n_rows):
        inputs = unit_rows(features[span], widths).astype(np.float64)
        weight = weights[span, None]
        targets = targets_of(labels[span], n_classes)
        mean += weight[:, 0] @ inputs
        target_mean += weight[:, 0] @ targets
        cross += inputs.T @ (weight * targets)
        if rows is not None:
            rows[span] = inputs
        if gram is not None:
            inputs *= np.sqrt(weight)
            gram += inputs.T @ inputs
    check_finite(mean)
    total = float(weights.sum())
    mean, target_mean = mean / total, target_mean / total
    cross -= total * np.outer(mean, target_mean)
    if gram is not None:
        gram -= total * np.outer(mean, mean)
    if rows is not None:
        rows -= mean
        rows *= np.sqrt(weights)[:, None]
    return Moments(total, mean, target_mean, cross, gram, rows)


def targets_of(labels: NDArray[np.int64], n_classes: int) -> NDArray[np.float64]:
    """Return float64 (N, C): 1 at the label, −1 elsewhere."""
    targets = np.full((len(labels), n_classes), -1.0)
    targets[np.arange(len(labels)), labels] = 1.0
    return targets


def _leading(gram: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return eigenvalues and eigenvectors without those that are rounding."""
    values, vectors = np.linalg.eigh(gram)
    kept = values > NEGLIGIBLE * max(float(values[-1]), 0.0)
    return values[kept], vectors[:, kept]
