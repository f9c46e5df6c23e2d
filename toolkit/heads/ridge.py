"""RidgeHead: least squares on ±1 targets, its λ chosen by exact leave-one-image-out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from toolkit.heads.blocks import BLOCK_ROWS, Picked, Rows, spans, tap_columns, unit_rows
from toolkit.heads.examples import UNSEEN_BIAS, Examples, Trial
from toolkit.heads.leave_out import leave_images_out
from toolkit.heads.linear import LinearHead
from toolkit.heads.moments import targets_of
from toolkit.heads.threads import few_threads, is_for_one_thread

# λ in units of the features' mean squared distance from their mean, so it means the same whatever the taps' number
RELATIVE_STRENGTHS = tuple(np.logspace(-4, 4, 25).tolist())
IN_MEMORY = 16_000_000  # coordinates, 128 MB
AT_ONCE_BYTES = 400_000_000  # of tap sets that are tried side by side


class RidgeHead:
    """Fits a LinearHead by ridge regression on ±1 targets (one against the rest), the intercept free.

    One eigendecomposition of the smaller Gram matrix gives the solution, and every image's score from the model
    without it, for all 25 λ. The λ with the smallest squared leave-one-image-out error (PRESS; Allen 1974) wins; of
    images with several views all leave together and the first row, the clean view, is scored. With more than 5,000
    images a part of them chooses (see Examples).

    `fit` sets `head_` (a LinearHead), `strength_` (λ), `press_` (error by λ) and `oof_`: float32 (N, C), for every row
    the score from the model that is refitted, at λ and with the same row weights, without its image. A single image
    leaves nothing to fit: its scores are zeros.

    Memory beside the features: 3 to 4 matrices float64 of min(N, D) × D or less, up to 128 MB for the rows'
    coordinates, and blocks of 1,024 rows. Tap sets that are tried side by side (`choose_head`, probes) take it several
    times, up to 400 MB in all, and 64 MB of their directions are remembered.
    """

    def __init__(self, widths: Sequence[int], *, balanced: bool = False, seed: int = 0) -> None:
        self.widths = tuple(widths)
        self.balanced = balanced
        self.seed = seed

    def fit(
        self, features: Rows, labels: NDArray[np.int64], n_classes: int, images: NDArray[np.int64] | None = None
    ) -> RidgeHead:
        """Fit on pooled features float32 (N, D), labels int64 (N,); equal numbers in `images` are views of one."""
        examples = Examples(
            features, labels, n_classes, self.widths, images=images, balanced=self.balanced, seed=self.seed
        )
        with few_threads(*features.shape):
            path = RidgePath(examples, tuple(range(len(self.widths))))
            self.press_ = path.press()
            self.strength_ = smallest(self.press_)
            self.oof_ = path.left_out(self.strength_, np.arange(len(labels)))
            self.head_ = path.head(self.strength_)
        return self


def ridge_trial(examples: Examples, taps: Sequence[int], rows: NDArray[np.int64]) -> Trial:
    """Return ridge regression on some taps, its scores for `rows`."""
    path = RidgePath(examples, taps)
    strength = smallest(path.press())
    head = path.head(strength)  # now, for the path is larger
    return Trial(strength, path.left_out(strength, rows), lambda: head)


def ridges_at_once(examples: Examples) -> int:
    """Return how many tap sets may be tried at once: where their matrices are small, each by a thread of its own."""
    if not is_for_one_thread(*examples.features.shape):
        return 1
    _ = examples.moments  # of which all of them begin
    n_rows, width = examples.features.shape
    numbers = 4 * min(n_rows, width) * width + n_rows * width  # of one: its matrices, and the rows' coordinates
    return max(1, min(examples.n_threads, AT_ONCE_BYTES // (8 * numbers)))


def smallest(errors: dict[float, float]) -> float:
    """Return the λ with the smallest error, the larger one of equals."""
    return min(errors, key=lambda strength: (errors[strength], -strength))


class RidgePath:
    """Ridge regression on some taps of the examples, for any λ."""

    def __init__(self, examples: Examples, taps: Sequence[int]) -> None:
        columns = tap_columns(examples.widths, taps)
        moments = examples.moments
        self.examples = examples
        self.features = Picked(examples.features, columns=columns)
        self.widths = tuple(examples.widths[tap] for tap in taps)
        self.spectrum = examples.spectrum(taps)
        self.target_mean = moments.target_mean
        self.loadings = self.spectrum.vectors.T @ moments.cross[columns]
        self.strengths = tuple(relative * self.spectrum.scale for relative in RELATIVE_STRENGTHS)
        self._coordinates = self.spectrum.coordinates
        n_rows, rank = len(examples.labels), len(self.spectrum.values)
        everyone_judges = len(examples.scored) == len(examples.views.first) > 1
        if self._coordinates is None and everyone_judges and n_rows * rank <= IN_MEMORY:  # they are asked for twice
            self._coordinates = np.empty((n_rows, rank))
            for span in spans(n_rows):
                self._coordinates[span] = self._project(span)

    def head(self, strength: float) -> LinearHead:
        """Return the head that is fitted to all rows."""
        weights = self.spectrum.vectors @ (self.loadings / (self.spectrum.values + strength)[:, None])
        bias = self.target_mean - self.spectrum.mean @ weights
        head = LinearHead(self.widths, self.examples.n_classes)
        seen = torch.from_numpy(self.examples.seen)
        with torch.no_grad():
            head.linear.weight.copy_(torch.from_numpy(weights.T) * seen[:, None])
            head.linear.bias.copy_(torch.where(seen, torch.from_numpy(bias), UNSEEN_BIAS))
        return head

    def press(self) -> dict[float, float]:
        """Return by λ the weighted squared error of the scored rows, each without its image."""
        errors = dict.fromkeys(self.strengths, 0.0)
        examples = self.examples
        for rows, scores in self._blocks(examples.scored, self.strengths):
            targets = targets_of(examples.labels[rows], examples.n_classes)
            weights = examples.image_weights(rows)
            for strength, some in zip(self.strengths, scores, strict=True):
                errors[strength] += float(weights @ ((some - targets) ** 2).sum(axis=1))
        return errors

    def left_out(self, strength: float, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return scores float32 (n, C) of some rows, each without its image."""
        place = np.full(len(self.examples.labels), -1)
        place[rows] = np.arange(len(rows))
        result = np.zeros((len(rows), self.examples.n_classes), dtype=np.float32)
        for some, (scores,) in self._blocks(rows, (strength,)):
            result[place[some]] = scores
        result[:, ~self.examples.seen] = UNSEEN_BIAS
        return result

    def _blocks(
        self, rows: NDArray[np.int64], strengths: Sequence[float]
    ) -> Iterator[tuple[NDArray[np.int64], Iterator[NDArray[np.float64]]]]:
        """Yield, image by image, those of `rows` and their scores for every strength."""
        examples, views = self.examples, self.examples.views
        if len(views.first) < 2:
            yield rows, (np.zeros((len(rows), examples.n_classes)) for _ in strengths)
            return
        wanted = np.zeros(len(examples.labels), dtype=bool)
        wanted[rows] = True
        images = np.unique(views.image[rows])
        size = max(1, BLOCK_ROWS // int(views.counts.max()))
        for start in range(0, len(images), size):
            block = views.rows_of(images[start : start + size])
            roots = np.sqrt(examples.weights[block])
            scores = leave_images_out(
                self._projected(block),
                roots,
                targets_of(examples.labels[block], examples.n_classes),
                views.image[block],
                shrinkage=1.0 / (self.spectrum.values[:, None] + np.array(strengths)),
                loadings=self.loadings,
                target_mean=self.target_mean,
                total=self.spectrum.total,
            )
            kept = wanted[block]
            yield block[kept], (some[kept] for some in scores)

    def _projected(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return float64 (n, R): √w (x − mean) of some rows on the principal directions."""
        if self._coordinates is not None:
            return self._coordinates[rows]
        return self._project(rows)

    def _project(self, rows: slice | NDArray[np.int64]) -> NDArray[np.float64]:
        with self.examples.reading:
            block = self.features[rows]
        centred = unit_rows(block, self.widths) - self.spectrum.mean
        centred *= np.sqrt(self.examples.weights[rows])[:, None]
        projected: NDArray[np.float64] = centred @ self.spectrum.vectors
        return projected
