"""LogisticHead: multinomial logistic regression on pooled features, its regularisation cross-validated."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from toolkit.heads.blocks import Rows
from toolkit.heads.examples import UNSEEN_BIAS, Examples, Trial
from toolkit.heads.inputs import Floats, Inputs, Preconditioner
from toolkit.heads.linear import LinearHead
from toolkit.heads.softmax_solver import COARSE, fine, solve
from toolkit.heads.temperature import negative_log_likelihoods
from toolkit.heads.threads import few_threads

# C = 1/λ for the summed loss, on unit-length taps. Frozen EfficientNet-Lite0 features of photographs and drawings
# (500 and 238 training images) were best between 30 and 300 and flat around; the ends are for other sets.
STRENGTHS = (0.1, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
STRENGTHS_OF_MANY = (0.3, 3.0, 30.0, 300.0)  # the loss is flat enough for a coarser path where each step is dear
MANY = 1_000  # rows
# Of the folds that are solved together. With more columns nothing is won; L-BFGS keeps about 25 numbers a variable.
COLUMNS, VARIABLES = 500, 500_000
SURER_FROM = 3.0  # the strength from which on probabilities are surer than the classes' shares
ALL = -1  # the fold that leaves nothing out


class LogisticHead:
    """Fits a LinearHead by preconditioned full-batch L-BFGS for a path of strengths C = 1/λ.

    strengths: ascending; by default half a decade apart, with more than 1,000 rows a whole one; each is warm-started by
    the one before. The path ends at the first strength that is no better than the one before by the held-out loss. All
    views of an image are held out together, in 10 folds up to 300 images, in 5 above; with more than 5,000 images one
    held-out part chooses (see Examples). Of images with several views the first row, the clean view, is scored. The
    last solution ends where a step takes less than 3e-7 of the loss away, of more than 10,000 rows 3e-6.

    `fit` sets `head_` (a LinearHead), `strength_` (the chosen C), `nll_` (the summed held-out loss by C, of images
    whose class has another one) and `oof_`: float32 (N, C), for every row the score from a model that has seen no view
    of its image. A single image leaves nothing to compare: the first strength is taken, and its scores are zeros.

    Memory beside the features: their float32 coordinates where N < D or there are up to 16 million of them; otherwise
    blocks of 1,024 rows, and for the preconditioner a few D × D matrices, one of which stays. Of so many features that
    come from a store, a copy, 4 · N · D bytes, lies in a file without a name in its folder meanwhile, if its disk has
    room; it is mapped, which takes no memory that others need. The solver keeps about 25 numbers float64 a weight of
    the folds that it solves together: 100 MB, or D × C of them where those are more.
    """

    def __init__(
        self, widths: Sequence[int], *, strengths: Sequence[float] | None = None, balanced: bool = False, seed: int = 0
    ) -> None:
        self.widths = tuple(widths)
        self.strengths = None if strengths is None else tuple(strengths)
        self.balanced = balanced
        self.seed = seed

    def fit(
        self, features: Rows, labels: NDArray[np.int64], n_classes: int, images: NDArray[np.int64] | None = None
    ) -> LogisticHead:
        """Fit on pooled features float32 (N, D), labels int64 (N,); equal numbers in `images` are views of one."""
        examples = Examples(
            features, labels, n_classes, self.widths, images=images, balanced=self.balanced, seed=self.seed
        )
        with few_threads(*features.shape):
            path = LogisticPath(examples, tuple(range(len(self.widths))))
            self.nll_ = path.cross_validate(self.strengths or default_strengths(len(labels)))
            self.strength_ = best(self.nll_)
            self.oof_ = path.held_out(self.strength_, np.arange(len(labels)))
            self.head_ = path.head(self.strength_)
        return self


def logistic_trial(examples: Examples, taps: Sequence[int], rows: NDArray[np.int64]) -> Trial:
    """Return logistic regression on some taps, its scores for `rows`."""
    path = LogisticPath(examples, taps)
    strength = best(path.cross_validate(default_strengths(len(examples.labels))))
    return Trial(strength, path.held_out(strength, rows), partial(path.head, strength))


def default_strengths(n_rows: int) -> tuple[float, ...]:
    """Return the path for so many rows."""
    return STRENGTHS if n_rows <= MANY else STRENGTHS_OF_MANY


def best(losses: dict[float, float]) -> float:
    """Return the strength with the smallest loss, the smaller one of equals."""
    return min(losses, key=lambda strength: (losses[strength], strength))


class LogisticPath:
    """Logistic regression on some taps of the examples; remembers the solutions of its folds."""

    def __init__(self, examples: Examples, taps: Sequence[int]) -> None:
        self.examples = examples
        self.inputs = Inputs(examples, tuple(taps))
        self.classes = np.flatnonzero(examples.seen)
        self.positions = np.searchsorted(self.classes, examples.labels)
        self._solutions: dict[int, dict[float, NDArray[np.float64]]] = {}
        self._preconditioner: tuple[float, Preconditioner] | None = None
        self._trivial = len(self.classes) == 1 or len(examples.views.first) == 1

    def cross_validate(self, strengths: Sequence[float]) -> dict[float, float]:
        """Return by strength the scored rows' weighted sum of negative log-likelihoods, as far as the path goes."""
        examples = self.examples
        rows = examples.scored[examples.learnable[examples.scored]]
        weights = examples.image_weights(rows)
        losses: dict[float, float] = {}
        for strength in strengths:
            previous = list(losses.values())[-1:]
            scores = self.held_out(strength, rows)[:, self.classes]
            losses[strength] = float(weights @ negative_log_likelihoods(scores, self.positions[rows]))
            if previous and losses[strength] >= previous[0]:
                break
        return losses

    def held_out(self, strength: float, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return scores float32 (n, C) of some rows, each from a model that has seen no view of its image."""
        examples = self.examples
        result = np.full((len(rows), examples.n_classes), UNSEEN_BIAS, dtype=np.float32)
        result[:, self.classes] = 0.0
        if self._trivial:
            return result
        of_rows = examples.folds[rows]
        folds = np.unique(of_rows).tolist()
        n_classes = len(self.classes)
        together = max(1, min(COLUMNS // n_classes, VARIABLES // ((self.inputs.width + 1) * n_classes)))
        for start in range(0, len(folds), together):
            some_folds = folds[start : start + together]
            for fold, solution in zip(some_folds, self._solve(some_folds, strength, COARSE), strict=True):
                some = np.flatnonzero(of_rows == fold)
                result[some[:, None], self.classes] = self.inputs.scores(solution, rows[some])
        return result

    def head(self, strength: float) -> LinearHead:
        """Return the head that is fitted to all rows."""
        examples = self.examples
        head = LinearHead(self.inputs.widths, examples.n_classes)
        with torch.no_grad():
            head.linear.bias[torch.from_numpy(~examples.seen)] = UNSEEN_BIAS
            if not self._trivial:
                (solution,) = self._solve([ALL], strength, fine(len(examples.labels)))
                weights, bias = self.inputs.in_features(solution)
                head.linear.weight[self.classes] = torch.from_numpy(weights.T).float()
                head.linear.bias[self.classes] = torch.from_numpy(bias).float()
        return head

    def _solve(self, folds: Sequence[int], strength: float, tolerance: float) -> list[Floats]:
        """Return the solutions of some folds, each from its own last one or that of another fold at this strength; the
        last two are remembered."""
        examples = self.examples
        others = [known[strength] for known in self._solutions.values() if strength in known]
        known = [self._solutions.setdefault(fold, {}) for fold in folds]
        missing = [number for number, solutions in enumerate(known) if strength not in solutions]
        if missing:
            zeros = np.zeros((self.inputs.width + 1, len(self.classes)))
            found = solve(
                self.inputs,
                self.positions,
                np.stack([np.where(examples.folds == folds[number], 0.0, examples.weights) for number in missing]),
                strength,
                np.stack([[zeros, *others[-1:], *known[number].values()][-1] for number in missing]),
                self._preconditioner_for(strength),
                tolerance=tolerance,
            )
            for number, solution in zip(missing, found, strict=True):
                for old in list(known[number])[:-1]:
                    del known[number][old]
                known[number][strength] = solution
        return [solutions[strength] for solutions in known]

    def _preconditioner_for(self, strength: float) -> Preconditioner:
        """Return the preconditioner of a strength; the last one is remembered, for folds differ little.

        A loss bends by p (1 − p): where the penalty says most, every class is as probable as it is frequent; the less
        it says, the surer are the probabilities. (3 / C saves a third of the steps for flowers and garments.)
        """
        if self._preconditioner is None or self._preconditioner[0] != strength:
            shares = np.bincount(self.positions, self.examples.weights) / self.examples.weights.sum()
            curvature = float((shares * (1 - shares)).mean())
            sharpness = min(1.0, SURER_FROM / strength)
            self._preconditioner = strength, self.inputs.preconditioner(curvature, strength, sharpness)
        return self._preconditioner[1]
