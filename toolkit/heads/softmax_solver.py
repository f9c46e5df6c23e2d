"""Multinomial logistic regression by full-batch L-BFGS, over features in memory or in blocks."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray

from toolkit.heads.blocks import Picked, inverse_lengths, spans, tap_columns
from toolkit.heads.examples import Examples
from toolkit.heads.threads import one_thread

Floats = NDArray[np.float64]
MAX_ITERATIONS = 300
COARSE, FINE = 1e-4, 1e-6  # relative decrease of the loss that ends a solution: one to compare, one to keep


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
            return (block @ single).astype(np.float64)
        scores = np.zeros((len(block), weights.shape[1])) - self.mean @ weights
        for tap, part in enumerate(self._parts):
            scores += self._inverse[span, tap, None] * (block[:, part] @ single[part])
        return scores

    def transposed_times(self, span: slice, block: NDArray[np.float32], values: Floats) -> Floats:
        """Return the product of the features, transposed and centred, with values (n, K): float64 (R, K)."""
        single = values.astype(np.float32)
        if self.coordinates is not None:
            return (block.T @ single).astype(np.float64)
        product = np.concatenate(
            [block[:, part].T @ (self._inverse[span, tap, None] * single) for tap, part in enumerate(self._parts)]
        ).astype(np.float64)
        product -= np.outer(self.mean, values.sum(axis=0))
        return product

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

    def in_features(self, solution: Floats) -> tuple[Floats, Floats]:
        """Return weights (D, K) and bias (K,) for unit-length features that are not centred."""
        weights = solution[:-1] if self.coordinates is None else self._vectors @ solution[:-1]
        return weights, solution[-1] - self.mean @ weights


def solve(
    inputs: Inputs, labels: NDArray[np.int64], weights: Floats, strength: float, start: Floats, *, tolerance: float
) -> Floats:
    """Return the (R + 1, K) that minimises Σ w · cross-entropy + ‖W‖² / (2 · strength); the last row is the bias, free.

    labels: int64 (N,), 0 to K − 1. weights: float64 (N,), 0 for rows that are left out. start: (R + 1, K). Products
    are float32, sums over blocks float64. (notes: 2nd order methods; Liu and Nocedal 1989.)
    """
    from scipy.optimize import minimize

    blocks = list(spans(inputs.n_rows))
    n_workers = min(torch.get_num_threads(), len(blocks))

    def loss_and_gradient(flat: Floats) -> tuple[float, Floats]:
        solution = flat.reshape(start.shape)
        loss = float((solution[:-1] ** 2).sum()) / (2 * strength)
        gradient = np.concatenate([solution[:-1] / strength, np.zeros_like(solution[-1:])])

        def share(worker: int) -> tuple[float, Floats]:
            return cross_entropy(inputs, labels, weights, solution, blocks[worker::n_workers])

        for part_loss, part_gradient in (map if n_workers == 1 else pool.map)(share, range(n_workers)):
            loss += part_loss
            gradient += part_gradient
        return loss, gradient.ravel()

    options = {"maxiter": MAX_ITERATIONS, "ftol": tolerance, "gtol": 1e-8}
    # Products this thin gain little from a BLAS's own threads, and where cores are shared those wait for each other.
    with one_thread(), ThreadPoolExecutor(n_workers) as pool:
        found = minimize(loss_and_gradient, start.ravel(), jac=True, method="L-BFGS-B", options=options)
    solution: Floats = found.x.reshape(start.shape)
    return solution


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
