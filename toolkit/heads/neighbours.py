"""NeighbourHead: cosine k-nearest-neighbours on pooled features, k chosen out of fold."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from toolkit.heads.blocks import BLOCK_ROWS, Picked, Rows, check_finite, spans, tap_columns, unit_rows
from toolkit.heads.examples import Examples, Trial
from toolkit.heads.temperature import best_temperature, negative_log_likelihoods
from toolkit.heads.threads import few_threads
from toolkit.heads.votes import NeighbourVotes, vote_scores

NEIGHBOURS = (1, 3, 5, 10, 20, 50)  # images; times the views of one


class NeighbourHead:
    """Fits a NeighbourVotes: k is the one whose votes, after temperature scaling, give the best likelihood.

    Every training row votes at prediction, so the head holds all unit features (N × D float32) and its state dict is
    as large; a prediction costs N × D products. An image's own views are no neighbours of it while k is chosen; of
    images with several views the first row, the clean view, is scored.

    `fit` sets `head_` (a NeighbourVotes), `strength_` (k, in rows), `nll_` (by k) and `oof_`: float32 (N, C), the score
    of every row without all views of its image, which costs N² × D products.
    """

    def __init__(self, widths: Sequence[int], *, balanced: bool = False, seed: int = 0) -> None:
        self.widths = tuple(widths)
        self.balanced = balanced
        self.seed = seed

    def fit(
        self, features: Rows, labels: NDArray[np.int64], n_classes: int, images: NDArray[np.int64] | None = None
    ) -> NeighbourHead:
        """Fit on pooled features float32 (N, D), labels int64 (N,); equal numbers in `images` are views of one."""
        examples = Examples(
            features, labels, n_classes, self.widths, images=images, balanced=self.balanced, seed=self.seed
        )
        with few_threads(*features.shape):
            search = NeighbourSearch(examples, tuple(range(len(self.widths))))
            self.nll_ = search.likelihoods()
            k = min(self.nll_, key=lambda one: (self.nll_[one], one))
            self.strength_ = float(k)
            self.oof_ = search.left_out(k, np.arange(len(labels)))
            self.head_ = search.head(k)
        return self


def neighbour_trial(examples: Examples, taps: Sequence[int], rows: NDArray[np.int64]) -> Trial:
    """Return k-nearest-neighbours on some taps, its scores for `rows`."""
    search = NeighbourSearch(examples, taps)
    losses = search.likelihoods()
    k = min(losses, key=lambda one: (losses[one], one))
    return Trial(float(k), search.left_out(k, rows), partial(search.head, k))


class NeighbourSearch:
    """The neighbours of training rows among the rows of other images."""

    def __init__(self, examples: Examples, taps: Sequence[int]) -> None:
        self.examples = examples
        self.features = Picked(examples.features, columns=tap_columns(examples.widths, taps))
        self.widths = tuple(examples.widths[tap] for tap in taps)
        self.floor = torch.from_numpy(examples.seen / examples.seen.sum()).float()
        views = int(examples.views.counts.max())
        self.ks = tuple(sorted({min(k * views, len(examples.labels)) for k in NEIGHBOURS}))
        self._found: tuple[NDArray[np.int64], torch.Tensor, torch.Tensor] | None = None

    def likelihoods(self) -> dict[int, float]:
        """Return by k the weighted mean negative log-likelihood of the scored rows, after temperature scaling."""
        examples = self.examples
        rows = examples.scored[examples.learnable[examples.scored]]
        classes = np.flatnonzero(examples.seen)
        positions, weights = np.searchsorted(classes, examples.labels[rows]), examples.image_weights(rows)
        losses = {}
        for k in self.ks:
            scores = self.left_out(k, rows)[:, classes]
            temperature = best_temperature(scores, positions)
            losses[k] = float(weights @ negative_log_likelihoods(scores, positions, temperature)) / max(1, len(rows))
        return losses

    def left_out(self, k: int, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return scores float32 (n, C) of some rows by their k nearest rows of other images."""
        if self._found is None or not np.array_equal(self._found[0], rows):
            self._found = (rows, *self._nearest(rows, self.ks[-1]))
        _, similarity, others = self._found
        labels = torch.from_numpy(self.examples.labels)[others[:, :k]]
        weights = torch.from_numpy(self.examples.weights).float()[others[:, :k]]
        return vote_scores(similarity[:, :k], labels, weights, self.floor).numpy()

    def head(self, k: int) -> NeighbourVotes:
        """Return the head in which all rows vote."""
        examples = self.examples
        head = NeighbourVotes(self.widths, examples.n_classes, len(examples.labels))
        for span in spans(len(examples.labels)):
            head.references[span] = torch.from_numpy(self._unit(span))
        head.labels.copy_(torch.from_numpy(examples.labels))
        head.weights.copy_(torch.from_numpy(examples.weights))
        head.floor.copy_(self.floor)
        head.k.fill_(k)
        return head

    def _unit(self, rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """Return some rows, (n, D), of unit length; DataError for what is not finite, which is near to nothing."""
        unit = unit_rows(self.features[rows], self.widths)
        check_finite(unit)
        return unit

    def _nearest(self, rows: NDArray[np.int64], k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return similarities, nearest first and −∞ where there are fewer than k, and row numbers: (n, k) each."""
        image = self.examples.views.image
        similarities, numbers = [], []
        for some in (rows[span] for span in spans(len(rows), BLOCK_ROWS // 2)):
            queries = self._unit(some) / np.float32(len(self.widths))
            best = torch.full((len(some), k), -torch.inf)
            others = torch.zeros((len(some), k), dtype=torch.int64)
            for span in spans(len(image)):
                found = torch.from_numpy(queries @ self._unit(span).T)
                found[torch.from_numpy(image[some, None] == image[None, span])] = -torch.inf
                candidates = torch.arange(span.start, span.stop).expand(len(some), -1)
                best, order = torch.cat([best, found], dim=1).topk(k, dim=1)
                others = torch.cat([others, candidates], dim=1).gather(1, order)
            similarities.append(best)
            numbers.append(others)
        if not similarities:
            return torch.zeros(0, k), torch.zeros(0, k, dtype=torch.int64)
        return torch.cat(similarities), torch.cat(numbers)
