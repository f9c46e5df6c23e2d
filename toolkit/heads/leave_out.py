"""Scores of images from the ridge regression without them, from one fit to all: blocks of the hat matrix."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
COLUMNS = 500  # of the products that are made at once


def leave_images_out(
    projected: Floats,
    roots: Floats,
    targets: Floats,
    image: NDArray[np.int64],
    *,
    shrinkage: Floats,
    loadings: Floats,
    target_mean: Floats,
    total: float,
) -> Iterator[Floats]:
    """Yield for every shrinkage the scores float64 (n, C) of n rows, each from the fit without its whole image.

    projected: (n, R), √w (x − mean) on the principal directions. roots: (n,), √w. targets: (n, C). image: (n,), rows
    of an image side by side, and all of them. shrinkage: (R, S), 1 / (eigenvalues + λ) for S values of λ. loadings:
    (R, C), the directions' products with the targets. target_mean: (C,). total: the sum of all weights.

    With H = P diag(shrinkage) Pᵀ + r rᵀ / total, the second term being that of the free intercept, the residuals e of
    an image's rows become (I − H)⁻¹ e when the image leaves (Cook and Weisberg 1982, section 2.2, for one row or
    several). Exact for fixed λ and weights; needs a second image.
    """
    weighted = targets * roots[:, None]
    starts = np.flatnonzero(np.diff(image, prepend=image[0] - 1))
    sizes = np.diff(starts, append=len(image))
    by_size = [(int(size), starts[sizes == size][:, None] + np.arange(size)) for size in np.unique(sizes)]
    diagonals = projected**2 @ shrinkage + (roots**2 / total)[:, None] if sizes.max() == 1 else None
    together = max(1, COLUMNS // loadings.shape[1])
    for first in range(0, shrinkage.shape[1], together):
        some_shrinkage = shrinkage[:, first : first + together]
        shrunk = np.concatenate([column[:, None] * loadings for column in some_shrinkage.T], axis=1)
        for place, fitted in enumerate(np.split(projected @ shrunk, some_shrinkage.shape[1], axis=1)):
            residuals = weighted - (fitted + roots[:, None] * target_mean)
            if diagonals is not None:
                residuals /= 1.0 - diagonals[:, first + place, None]
            else:
                for size, rows in by_size:
                    part, root = projected[rows], roots[rows]
                    hat = (part * some_shrinkage[:, place]) @ part.transpose(0, 2, 1)
                    hat += root[:, :, None] * root[:, None, :] / total
                    residuals[rows] = np.linalg.solve(np.eye(size) - hat, residuals[rows])
            yield targets - residuals / roots[:, None]
