"""Multinomial logistic regression by preconditioned full-batch L-BFGS, several weightings of the rows at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from toolkit.heads.blocks import BLOCK_ROWS, spans
from toolkit.heads.inputs import Floats, Inputs, Preconditioner, one_by_one, side_by_side
from toolkit.heads.side_by_side import minimise_side_by_side
from toolkit.heads.threads import lonely_threads, one_thread

MAX_ITERATIONS = 300
# Relative decrease of the loss that ends a solution: one to compare, one to keep, one to keep of more rows than that.
# Of 48,000 garments the last took half of the time, changed 4 labels of 10,000 others, and their NLL by 0.0001; of
# 12,000 noisy rows in 40 classes it is 18 labels from the exact solution, and the finer one 4.
COARSE, FINE, COARSER, COARSER_ABOVE = 1e-4, 3e-7, 3e-6, 10_000
# What is less likely than e to this counts as that: as a denormal float32 it would make the products ten times as slow.
LEAST = -60.0
FEWEST_ROWS = 512  # of a block: handing over less costs more than it saves


def solve(
    inputs: Inputs,
    labels: NDArray[np.int64],
    weights: Floats,
    strength: float,
    starts: Floats,
    preconditioner: Preconditioner,
    *,
    tolerance: float,
) -> Floats:
    """Return (B, R + 1, K): for each of B weightings w of the rows the solution that minimises
    Σ w · cross-entropy + ‖W‖² / (2 · strength); its last row is the bias, free.

    labels: int64 (N,), 0 to K − 1. weights: float64 (B, N), 0 for rows that are left out. starts: (B, R + 1, K), from
    which the solutions are looked for in the preconditioner's variables. Products are float32, sums over blocks
    float64. The B problems share their products with the features: such a product is bound by reading them, and 5
    folds of 5 classes cost what one does. (notes: 2nd order methods; Liu and Nocedal 1989.)
    """
    blocks = _blocks(inputs.n_rows, inputs.n_threads)
    n_workers = min(inputs.n_threads, len(blocks))
    shape = starts.shape[1:]

    def solutions_of(numbers: list[int], at: Floats) -> Floats:
        found: Floats = starts[numbers] + preconditioner.solutions(at.reshape(-1, *shape))
        return found

    def evaluate(numbers: list[int], at: Floats) -> tuple[Floats, Floats]:
        solutions = solutions_of(numbers, at)
        losses: Floats = (solutions[:, :-1] ** 2).sum(axis=(1, 2)) / (2 * strength)
        gradients = solutions / strength
        gradients[:, -1] = 0.0
        some = weights[numbers]

        def share(worker: int) -> tuple[Floats, Floats]:
            return cross_entropy(inputs, labels, some, solutions, blocks[worker::n_workers])

        for part_losses, part_gradients in (map if n_workers == 1 else pool.map)(share, range(n_workers)):
            losses += part_losses
            gradients += part_gradients
        return losses, preconditioner.gradients(gradients).reshape(len(numbers), -1)

    options = {"maxiter": MAX_ITERATIONS, "ftol": tolerance, "gtol": 1e-8}
    # Products this thin gain little from a BLAS's own threads, and where cores are shared those wait for each other.
    with one_thread(), lonely_threads(n_workers) as pool:
        found = minimise_side_by_side(evaluate, len(starts), starts[0].size, **options)
        return solutions_of(list(range(len(starts))), found)


def fine(n_rows: int) -> float:
    """Return the tolerance of a solution that is to be kept."""
    return FINE if n_rows <= COARSER_ABOVE else COARSER


def cross_entropy(
    inputs: Inputs, labels: NDArray[np.int64], weights: Floats, solutions: Floats, blocks: Sequence[slice]
) -> tuple[Floats, Floats]:
    """Return for each weighting (B, N) and its solution (B, R + 1, K) the Σ w · cross-entropy over some blocks of rows,
    (B,), and its gradient, (B, R + 1, K)."""
    side = side_by_side(solutions)
    losses, gradient = np.zeros(len(solutions)), np.zeros_like(side)
    for span in blocks:
        block, weight = inputs.block(span), weights[:, span]
        scores = (inputs.times(block, side[:-1]) + side[-1]).reshape(len(block), len(solutions), -1)
        scores -= scores.max(axis=2, keepdims=True)
        own = (np.arange(len(scores)), slice(None), labels[span])
        own_scores = scores[own]
        np.exp(np.maximum(scores, LEAST, out=scores), out=scores)
        normaliser = scores.sum(axis=2)
        losses += np.einsum("bn,nb->b", weight, np.log(normaliser) - own_scores)
        scores *= (weight.T / normaliser)[:, :, None]
        scores[own] -= weight.T
        columns = scores.reshape(len(block), -1)
        gradient[:-1] += inputs.transposed_times(block, columns)
        gradient[-1] += columns.sum(axis=0)
    return losses, one_by_one(gradient, len(solutions))


def _blocks(n_rows: int, n_threads: int) -> list[slice]:
    """Return blocks of equal size, enough for all threads as long as they are worth it."""
    n_blocks = max(-(-n_rows // BLOCK_ROWS), min(n_threads, n_rows // FEWEST_ROWS), 1)
    return list(spans(n_rows, -(-n_rows // n_blocks)))
