"""Multinomial logistic regression by preconditioned full-batch L-BFGS, over features in memory or in blocks."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray

from toolkit.heads.blocks import Picked, inverse_lengths, spans, tap_columns
from toolkit.heads.examples import Examples
from toolkit.heads.threads import one_thread

Floats = NDArray[np.float64]
MAX_ITERATIONS = 300
FLOOR = 1e-9  # of the squared length of all features: less is rounding, in which no direction is to be trusted
COARSE, FINE = 1e-4, 3e-7  # relative decrease of the loss that ends a solution: one to compare, one to keep


class Inputs:
    """Centred unit-length features of some taps, the columns in which the solver works.

    With fewer rows than columns: their coordinates on the principal directions, (N, R) in memory. The penalty does
    not change under a rotation, and no solution leaves the directions that the rows span, so it is the same solution
    by less work. Otherwise the features themselves, in blocks; the lengths are divided out of products, not features.
    """

    def __init__(self, examples: Examples, taps: tuple[int, ...]) -> None:
        columns = tap_columns(examples.widths, taps)
        self.features = Picked(examples.features, columns=columns)
        self.widths = tuple(examples.widths[tap] for tap in taps)
        moments = examples.moments
        self.n_rows = len(examples.labels)
        self.mean = moments.mean[columns]
        self.coordinates: NDArray[np.float32] | None = None
        self._reading = Lock()
        if moments.rows is None:
            self.width = len(self.mean)
            self._inverse = np.concatenate(
                [inverse_lengths(self.features[span], self.widths) for span in spans(self.n_rows)]
            )
            ends = np.cumsum(self.widths)
            self._parts = [slice(int(end - width), int(end)) for end, width in zip(ends, self.widths, strict=True)]
            assert moments.gram is not None
            self._gram: Floats = moments.gram[columns][:, columns]
            self._total = moments.total
        else:
            spectrum = moments.spectrum(columns)
            assert spectrum.coordinates is not None
            self._vectors = spectrum.vectors
            self.coordinates = (spectrum.coordinates / np.sqrt(examples.weights)[:, None]).astype(np.float32)
            self.width = self.coordinates.shape[1]

    def block(self, span: slice) -> NDArray[np.float32]:
        """Return the features of a span of rows; one thread reads at a time."""
        with self._reading:
            return (self.features if self.coordinates is None else self.coordinates)[span]

    def times(self, span: slice, block: NDArray[np.float32], weights: Floats) -> Floats:
        """Return the centred features' product with weights (R, K): float64 (n, K)."""
        single = weights.astype(np.float32)
        if self.coordinates is not None:
            return product(block, single).astype(np.float64)
        scores = np.zeros((len(block), weights.shape[1])) - self.mean @ weights
        for tap, part in enumerate(self._parts):
            scores += self._inverse[span, tap, None] * product(block[:, part], single[part])
        return scores

    def transposed_times(self, span: slice, block: NDArray[np.float32], values: Floats) -> Floats:
        """Return the product of the features, transposed and centred, with values (n, K): float64 (R, K)."""
        single = values.astype(np.float32)
        if self.coordinates is not None:
            return product(single.T, block).T.astype(np.float64)
        parts = [
            product((self._inverse[span, tap, None] * single).T, block[:, part]) for tap, part in enumerate(self._parts)
        ]
        result = np.concatenate(parts, axis=1).T.astype(np.float64)
        result -= np.outer(self.mean, values.sum(axis=0))
        return result

    def scores(self, solution: Floats, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return float32 (n, K), the scores of some rows for a solution (R + 1, K)."""
        result = np.empty((len(rows), solution.shape[1]), dtype=np.float32)
        order = np.argsort(rows)
        for span in spans(self.n_rows):
            here = order[slice(*np.searchsorted(rows, (span.start, span.stop), sorter=order))]
            if len(here):
                scores = self.times(span, self.block(span), solution[:-1]) + solution[-1]
                result[here] = scores[rows[here] - span.start]
        return result

    def preconditioner(self, curvature: float, strength: float) -> Preconditioner:
        """Return the change of variables after which a loss of this curvature in the scores bends alike everywhere.

        curvature: mean second derivative of an image's loss by a class's score; p (1 − p) at the probability p. The
        Gram matrix is that of all rows, of which folds leave parts out. With fewer rows than columns nothing is
        changed: there classes can be told apart without error, p (1 − p) vanishes, and no curvature is the right one.
        """
        if self.coordinates is not None:
            return Preconditioner(None, 1.0)
        from scipy.linalg import solve_triangular

        hessian = curvature * self._gram
        hessian[np.diag_indices_from(hessian)] += 1 / strength + FLOOR * curvature * self._total
        lower = np.linalg.cholesky(hessian)
        inverse = solve_triangular(lower, np.eye(len(lower)), lower=True)
        return Preconditioner(inverse.T.astype(np.float32), float((curvature * self._total) ** -0.5))

    def in_features(self, solution: Floats) -> tuple[Floats, Floats]:
        """Return weights (D, K) and bias (K,) for unit-length features that are not centred."""
        weights = solution[:-1] if self.coordinates is None else self._vectors @ solution[:-1]
        return weights, solution[-1] - self.mean @ weights


def product(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return left @ right by torch's BLAS, which multiplies matrices this thin twice as fast as NumPy's."""
    if not all(array.flags.writeable and min(array.strides) >= 0 for array in (left, right)):
        return left @ right  # torch takes neither a file mapped to be read nor rows in reverse
    found: NDArray[np.float32] = (torch.from_numpy(left) @ torch.from_numpy(right)).numpy()
    return found


@dataclass(frozen=True, eq=False)
class Preconditioner:
    """Weights W (R, K) = P · V and biases b = β · c: the solver works on V and c. matrix: P (R, R), None for 1."""

    matrix: NDArray[np.float32] | None
    bias: float

    def solution(self, variables: Floats) -> Floats:
        """Return W above b, float64 (R + 1, K), of V above c."""
        weights = variables[:-1]
        if self.matrix is not None:
            weights = product(self.matrix, weights.astype(np.float32)).astype(np.float64)
        return np.concatenate([weights, self.bias * variables[-1:]])

    def gradient(self, gradient: Floats) -> Floats:
        """Return the gradient by V above that by c of what has this gradient by W above that by b."""
        by_weights = gradient[:-1]
        if self.matrix is not None:
            by_weights = product(by_weights.astype(np.float32).T, self.matrix).T.astype(np.float64)
        return np.concatenate([by_weights, self.bias * gradient[-1:]])


def _stay_one_thread() -> None:
    """Keep the linear algebra of this thread on it: OpenMP's number is that of a thread, not of the process."""
    torch.get_num_threads()  # torch sets it where it is first asked in a thread
    one_thread()


def solve(
    inputs: Inputs,
    labels: NDArray[np.int64],
    weights: Floats,
    strength: float,
    start: Floats,
    preconditioner: Preconditioner,
    *,
    tolerance: float,
) -> Floats:
    """Return the (R + 1, K) that minimises Σ w · cross-entropy + ‖W‖² / (2 · strength); the last row is the bias, free.

    labels: int64 (N,), 0 to K − 1. weights: float64 (N,), 0 for rows that are left out. start: (R + 1, K), from which
    the solution is looked for in the preconditioner's variables. Products are float32, sums over blocks float64.
    (notes: 2nd order methods; Liu and Nocedal 1989.)
    """
    from scipy.optimize import minimize

    blocks = list(spans(inputs.n_rows))
    n_workers = min(torch.get_num_threads(), len(blocks))

    def solution_of(flat: Floats) -> Floats:
        solution: Floats = start + preconditioner.solution(flat.reshape(start.shape))
        return solution

    def loss_and_gradient(flat: Floats) -> tuple[float, Floats]:
        solution = solution_of(flat)
        loss = float((solution[:-1] ** 2).sum()) / (2 * strength)
        gradient = np.concatenate([solution[:-1] / strength, np.zeros_like(solution[-1:])])

        def share(worker: int) -> tuple[float, Floats]:
            return cross_entropy(inputs, labels, weights, solution, blocks[worker::n_workers])

        for part_loss, part_gradient in (map if n_workers == 1 else pool.map)(share, range(n_workers)):
            loss += part_loss
            gradient += part_gradient
        return loss, preconditioner.gradient(gradient).ravel()

    options = {"maxiter": MAX_ITERATIONS, "ftol": tolerance, "gtol": 1e-8}
    # Products this thin gain little from a BLAS's own threads, and where cores are shared those wait for each other.
    with one_thread(), ThreadPoolExecutor(n_workers, initializer=_stay_one_thread) as pool:
        found = minimize(loss_and_gradient, np.zeros(start.size), jac=True, method="L-BFGS-B", options=options)
    return solution_of(found.x)


def cross_entropy(
    inputs: Inputs, labels: NDArray[np.int64], weights: Floats, solution: Floats, blocks: Sequence[slice]
) -> tuple[float, Floats]:
    """Return Σ w · cross-entropy over some blocks of rows and its gradient (R + 1, K)."""
    loss, gradient = 0.0, np.zeros_like(solution)
    for span in blocks:
        block, weight = inputs.block(span), weights[span]
        scores = inputs.times(span, block, solution[:-1]) + solution[-1]
        scores -= scores.max(axis=1, keepdims=True)
        own = (np.arange(len(scores)), labels[span])
        own_scores = scores[own]
        np.exp(scores, out=scores)
        normaliser = scores.sum(axis=1)
        loss += float(weight @ (np.log(normaliser) - own_scores))
        scores /= normaliser[:, None]
        scores[own] -= 1.0
        scores *= weight[:, None]
        gradient[:-1] += inputs.transposed_times(span, block, scores)
        gradient[-1] += scores.sum(axis=0)
    return loss, gradient
