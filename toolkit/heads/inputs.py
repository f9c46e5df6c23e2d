"""Inputs: the features as the softmax solver multiplies them, and the change of variables that suits them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from toolkit.errors import ArtifactError
from toolkit.features.mapped import mapped
from toolkit.heads.blocks import Picked, scratch_of, spans, tap_columns, unit_rows
from toolkit.heads.examples import Examples

Floats = NDArray[np.float64]
IN_MEMORY = 16_000_000  # numbers, 64 MB
FLOOR = 1e-9  # of the squared length of all features: less is rounding, in which no direction is to be trusted


class Inputs:
    """Centred unit-length features of some taps, the columns in which the solver works.

    Up to IN_MEMORY numbers, or with fewer rows than columns: their coordinates on the principal directions, (N, R) in
    memory. The penalty does not change under a rotation, so the solution is the same, by less work: nothing has to be
    divided by lengths any more, and the loss bends by the eigenvalues, which ridge regression has found before.
    More of them are copied, centred and of unit length, to a file in the store's folder: the solver goes through them
    hundreds of times, and to gather them out of the shards takes longer than to multiply them. Where they come from no
    store, or its disk has no room, every block is made anew; the numbers are the same to the bit.
    """

    def __init__(self, examples: Examples, taps: tuple[int, ...]) -> None:
        columns = tap_columns(examples.widths, taps)
        self.features = Picked(examples.features, columns=columns)
        self.widths = tuple(examples.widths[tap] for tap in taps)
        moments = examples.moments
        self.n_rows, self.n_threads = len(examples.labels), examples.n_threads
        self.mean = moments.mean[columns]
        self.coordinates: NDArray[np.float32] | None = None
        self._reading = examples.reading
        self._bends = moments.rows is None
        self._total = moments.total
        if self._bends and self.n_rows * len(self.mean) > IN_MEMORY:
            self.width = len(self.mean)
            assert moments.gram is not None
            self._gram: Floats = moments.gram[columns][:, columns]
            self._vectors: Floats | None = None
            folder = scratch_of(examples.features)
            if folder is not None:
                with suppress(ArtifactError):  # no room
                    self.coordinates = self._copied(folder)
        else:
            spectrum = examples.spectrum(taps)
            self._vectors, self._values = spectrum.vectors, spectrum.values
            self.width = len(self._values)
            if spectrum.coordinates is not None:
                self.coordinates = (spectrum.coordinates / np.sqrt(examples.weights)[:, None]).astype(np.float32)
            else:
                directions = self._vectors.astype(np.float32)
                self.coordinates = np.concatenate(
                    [product(self._centred(span), directions) for span in spans(self.n_rows)]
                )

    def _copied(self, folder: Path) -> NDArray[np.float32]:
        """Return the centred unit-length features, (N, D), in a file without a name."""
        copy: NDArray[np.float32] = mapped((self.n_rows, self.width), torch.float32, folder).numpy()
        for span in spans(self.n_rows):
            copy[span] = self._centred(span)
        return copy

    def _centred(self, span: slice) -> NDArray[np.float32]:
        """Return some rows, (n, D), of unit length and centred; one thread reads at a time."""
        with self._reading:
            block = self.features[span]
        rows = unit_rows(block, self.widths)
        rows -= self.mean.astype(np.float32)
        return rows

    def block(self, span: slice) -> NDArray[np.float32]:
        """Return the columns of a span of rows, float32 (n, R)."""
        return self._centred(span) if self.coordinates is None else self.coordinates[span]

    def times(self, block: NDArray[np.float32], weights: Floats) -> Floats:
        """Return a block's product with weights (R, K): float64 (n, K)."""
        return product(block, weights.astype(np.float32)).astype(np.float64)

    def transposed_times(self, block: NDArray[np.float32], values: Floats) -> Floats:
        """Return the product of a block, transposed, with values (n, K): float64 (R, K)."""
        return product(values.astype(np.float32).T, block).T.astype(np.float64)

    def scores(self, solution: Floats, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return float32 (n, K), the scores of some rows for a solution (R + 1, K)."""
        result = np.empty((len(rows), solution.shape[1]), dtype=np.float32)
        order = np.argsort(rows)
        for span in spans(self.n_rows):
            here = order[slice(*np.searchsorted(rows, (span.start, span.stop), sorter=order))]
            if len(here):
                scores = self.times(self.block(span), solution[:-1]) + solution[-1]
                result[here] = scores[rows[here] - span.start]
        return result

    def preconditioner(self, curvature: float, strength: float, sharpness: float = 1.0) -> Preconditioner:
        """Return the change of variables after which a loss of this curvature in the scores bends alike everywhere.

        curvature: mean second derivative of an image's loss by a class's score; p (1 − p) at the probability p.
        sharpness: the share of it that is left where a weak penalty lets the weights tell classes apart; the bias alone
        cannot. The Gram matrix is that of all rows, of which folds leave parts out. With fewer rows than columns
        nothing is changed: there classes can be told apart without error, p (1 − p) vanishes, and no curvature is the
        right one.
        """
        if not self._bends:
            return Preconditioner(None, 1.0)
        bias = float((curvature * self._total) ** -0.5)
        curvature *= sharpness
        least = 1 / strength + FLOOR * curvature * self._total
        if self._vectors is not None:
            return Preconditioner(None, bias, (curvature * self._values + least) ** -0.5)
        from scipy.linalg import cholesky
        from scipy.linalg.lapack import dtrtri

        hessian = (curvature * self._gram).T  # one matrix in LAPACK's order, in whose place the others come
        hessian[np.diag_indices_from(hessian)] += least
        inverse, _ = dtrtri(cholesky(hessian, overwrite_a=True, check_finite=False), overwrite_c=True)
        return Preconditioner(inverse.astype(np.float32), bias)

    def in_features(self, solution: Floats) -> tuple[Floats, Floats]:
        """Return weights (D, K) and bias (K,) for unit-length features that are not centred."""
        weights = solution[:-1] if self._vectors is None else self._vectors @ solution[:-1]
        return weights, solution[-1] - self.mean @ weights


def product(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return left @ right by torch's BLAS, which multiplies matrices this thin twice as fast as NumPy's."""
    if not all(array.flags.writeable and min(array.strides) >= 0 for array in (left, right)):
        return left @ right  # torch takes neither a file mapped to be read nor rows in reverse
    found: NDArray[np.float32] = (torch.from_numpy(left) @ torch.from_numpy(right)).numpy()
    return found


@dataclass(frozen=True, eq=False)
class Preconditioner:
    """Weights W (R, K) = P · V and biases b = β · c: the solver works on V and c.

    matrix: P, float32 (R, R). diagonal: float64 (R,), what P has on its diagonal where there is no matrix; 1 for 1s.
    """

    matrix: NDArray[np.float32] | None
    bias: float
    diagonal: Floats | float = 1.0

    def solutions(self, variables: Floats) -> Floats:
        """Return W above b, float64 (B, R + 1, K), of V above c."""
        return self._changed(variables, self.matrix)

    def gradients(self, gradients: Floats) -> Floats:
        """Return the gradients (B, R + 1, K) by V above those by c of what has these by W above those by b."""
        return self._changed(gradients, None if self.matrix is None else self.matrix.T)

    def _changed(self, variables: Floats, matrix: NDArray[np.float32] | None) -> Floats:
        changed = variables.copy()
        changed[:, -1] *= self.bias
        if matrix is None:
            changed[:, :-1] *= np.reshape(self.diagonal, (-1, 1))
        else:
            weights = product(matrix, side_by_side(variables)[:-1].astype(np.float32))
            changed[:, :-1] = one_by_one(weights, len(variables))
        return changed


def side_by_side(solutions: Floats) -> Floats:
    """Return (R + 1, B · K): the columns of B solutions (B, R + 1, K)."""
    return np.concatenate(list(solutions), axis=1)


def one_by_one(columns: NDArray[Any], n_solutions: int) -> NDArray[Any]:
    """Return (B, R + 1, K) of (R + 1, B · K)."""
    return np.stack(np.split(columns, n_solutions, axis=1))
