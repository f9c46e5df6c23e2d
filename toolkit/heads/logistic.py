"""LogisticHead: multinomial logistic regression on pooled features, its regularisation cross-validated."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from toolkit.heads.linear import LinearHead, unit_taps

# C = 1/λ of scikit-learn's summed loss, on unit-length taps. Frozen EfficientNet-Lite0 features of photographs and
# drawings (500 and 238 training images) were best between 30 and 300 and flat around; the ends are for larger sets.
STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
MAX_ITERATIONS = 300
FOLDS = 3
UNSEEN_BIAS = -100.0  # the score of a class without training images: never predicted, yet finite
FOLDED_UP_TO = 5_000  # images; above, one held-out fifth chooses as well and costs a third


class LogisticHead:
    """Fits a LinearHead by full-batch L-BFGS (notes: 2nd order methods) for a path of strengths.

    `fit` sets `head_` (a LinearHead), `strength_` (the chosen C) and `nll_` (the held-out loss by C, within the
    training images alone).
    """

    def __init__(
        self, widths: Sequence[int], *, strengths: Sequence[float] = STRENGTHS, balanced: bool = False, seed: int = 0
    ) -> None:
        self.widths = tuple(widths)
        self.strengths = tuple(strengths)
        self.balanced = balanced
        self.seed = seed

    def fit(self, features: NDArray[np.float32], labels: NDArray[np.int64], n_classes: int) -> LogisticHead:
        """Fit on pooled features float32 (N, D) and labels int64 (N,) in 0..n_classes − 1."""
        inputs = unit_taps(torch.from_numpy(features), self.widths).numpy()
        self.nll_ = {strength: 0.0 for strength in self.strengths}
        if len(self.strengths) > 1 and len(labels) > 1:
            for fit_rows, held_rows in self._folds(labels):
                for strength, nll in self._path(inputs, labels, fit_rows, held_rows):
                    self.nll_[strength] += nll
        self.strength_ = min(self.strengths, key=lambda strength: (self.nll_[strength], strength))
        weights, bias, classes = self._solve(inputs, labels, self.strength_, None)
        self.head_ = LinearHead(self.widths, n_classes)
        with torch.no_grad():
            self.head_.linear.bias.fill_(UNSEEN_BIAS)
            self.head_.linear.weight[classes] = torch.from_numpy(weights).float()
            self.head_.linear.bias[classes] = torch.from_numpy(bias).float()
        return self

    def _folds(self, labels: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        from sklearn.model_selection import KFold, StratifiedKFold

        with warnings.catch_warnings():  # a class with fewer images than folds is no news: it misses some folds
            warnings.simplefilter("ignore", UserWarning)
            large = len(labels) > FOLDED_UP_TO
            n_folds = 5 if large else FOLDS
            if np.bincount(labels).max() < n_folds:
                folds = KFold(min(FOLDS, len(labels)), shuffle=True, random_state=self.seed)
                return list(folds.split(labels))
            stratified = StratifiedKFold(n_folds, shuffle=True, random_state=self.seed)
            return list(stratified.split(labels, labels))[: 1 if large else FOLDS]

    def _path(
        self,
        inputs: NDArray[np.float32],
        labels: NDArray[np.int64],
        fit_rows: NDArray[np.int64],
        held_rows: NDArray[np.int64],
    ) -> list[tuple[float, float]]:
        """Return (strength, summed held-out loss), each solution starting from the one before."""
        results = []
        start = None
        for strength in self.strengths:
            weights, bias, classes = start = self._solve(inputs[fit_rows], labels[fit_rows], strength, start)
            known = held_rows[np.isin(labels[held_rows], classes)]
            scores = inputs[known] @ weights.T + bias
            log_p = torch.log_softmax(torch.from_numpy(scores).double(), dim=1).numpy()
            positions = np.searchsorted(classes, labels[known])
            results.append((strength, float(-log_p[np.arange(len(known)), positions].sum())))
        return results

    def _solve(
        self,
        inputs: NDArray[np.float32],
        labels: NDArray[np.int64],
        strength: float,
        start: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]] | None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
        """Return weights (K, D), bias (K,) and the K classes that occur, in label order."""
        from sklearn.linear_model import LogisticRegression

        classes = np.unique(labels)
        if len(classes) == 1:
            return np.zeros((1, inputs.shape[1]), np.float32), np.zeros(1, np.float32), classes
        weight = "balanced" if self.balanced else None
        model = LogisticRegression(C=strength, max_iter=MAX_ITERATIONS, class_weight=weight, warm_start=True)
        if start is not None and len(classes) > 2:  # scikit-learn keeps one row for two classes
            model.coef_, model.intercept_ = start[0].copy(), start[1].copy()
        with warnings.catch_warnings():  # an unconverged end of the path loses by its held-out loss
            warnings.simplefilter("ignore")
            model.fit(inputs, labels)
        weights, bias = model.coef_, model.intercept_
        if len(classes) == 2:  # a sigmoid of z equals a softmax of (−z/2, z/2)
            weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
        return weights, bias, classes
