"""Temperature scaling: one number that makes scores into honest probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from toolkit.heads.examples import UNSEEN_BIAS
from toolkit.heads.linear import LinearHead

WIDEST_LOGITS = 1e3  # the mean distance between a row's best and worst logit stays between these
NARROWEST_LOGITS = 1e-2


def best_temperature(scores: NDArray[Any], labels: NDArray[np.int64]) -> float:
    """Return the T for which softmax(scores / T) has the smallest negative log-likelihood (Guo et al. 2017).

    scores: float (n, C), finite, of images that the model has not seen. labels: int64 (n,), 0 to C − 1. One more image
    with a bit of every class and the average scores keeps T from 0 where all are right (so C are to be classes that
    were learned: see `among_seen`); T is bounded besides, and 1 where scores say nothing: no image, a single class, or
    all scores equal.
    """
    from scipy.optimize import minimize_scalar

    values = np.asarray(scores, dtype=np.float64)
    spread = float(np.ptp(values, axis=1).mean()) if values.size else 0.0
    if spread == 0.0:
        return 1.0
    values = (values - values.max(axis=1, keepdims=True)) / spread
    own = values[np.arange(len(labels)), labels].sum() + values.mean()

    def loss(log_factor: float) -> float:
        factor = float(np.exp(log_factor))
        normaliser = np.log(np.exp(factor * values).sum(axis=1))
        return float(normaliser.sum() + normaliser.mean() - factor * own)

    bounds = (np.log(NARROWEST_LOGITS), np.log(WIDEST_LOGITS))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4})
    return spread / float(np.exp(found.x))


def among_seen(
    scores: NDArray[Any], labels: NDArray[np.int64], seen: NDArray[np.bool_]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the scores of the classes that were seen, and the labels, all of such classes, as positions among them.

    A class without training images is never predicted, but its score, far below all others, would pull the average
    scores down that `best_temperature` asks about, and so make every model look much too sure.
    """
    classes = np.flatnonzero(seen)
    return scores[:, classes], np.searchsorted(classes, labels)


def negative_log_likelihoods(
    scores: NDArray[Any], labels: NDArray[np.int64], temperature: float = 1.0
) -> NDArray[np.float64]:
    """Return float64 (n,): −log softmax(scores / temperature) at the labels, in nats."""
    values = np.asarray(scores, dtype=np.float64) / temperature
    values -= values.max(axis=1, keepdims=True)
    losses: NDArray[np.float64] = np.log(np.exp(values).sum(axis=1)) - values[np.arange(len(labels)), labels]
    return losses


def fold_temperature(head: LinearHead, temperature: float, seen: NDArray[np.bool_]) -> LinearHead:
    """Divide a head's scores by the temperature, in place; a class that was never seen stays where it is."""
    with torch.no_grad():
        head.linear.weight.div_(temperature)
        head.linear.bias.div_(temperature)
        head.linear.bias[torch.from_numpy(~seen)] = UNSEEN_BIAS
    return head
