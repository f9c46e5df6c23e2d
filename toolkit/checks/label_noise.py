"""LabelNoise: how many labels of a set are drawn at random, told from how sure a model is where it is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RATES = (0.0, 0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3)
EVIDENCE = 6.0  # of twice the log-likelihood ratio; chance gives more in 1 of 140 sets (half a χ² of one degree)
FITTED_TO = 5_000  # images at most; more of them say the same
LEAST_FACTOR, MOST_FACTOR = 1e-1, 1e3  # on scores whose mean range is 1


@dataclass(frozen=True)
class LabelNoise:
    """The model P(label | image) = (1 − rate) · softmax(scores / temperature) + rate / C, as it fits best.

    Without the second term a few labels that the scores rule out would pull the temperature up until it calls every
    doubt a great one; with it the temperature is that of the other images. evidence: twice the log-likelihood ratio
    against a rate of 0. Source: the uniform noise of Sukhbaatar et al. 2014, "Training Convolutional Networks with
    Noisy Labels", here fitted to scores of images that the model had not seen.
    """

    rate: float
    temperature: float
    evidence: float

    @property
    def is_there(self) -> bool:
        """Whether chance alone would hardly look like that."""
        return self.evidence > EVIDENCE


def label_noise(scores: NDArray[Any], labels: NDArray[np.int64]) -> LabelNoise:
    """Fit the noise to scores float (N, C) of unseen images, and their labels int64 (N,); all equal scores: none."""
    values = np.asarray(scores, np.float64)[:: max(1, -(-len(labels) // FITTED_TO))]
    given = labels[:: max(1, -(-len(labels) // FITTED_TO))]
    spread = float(np.ptp(values, axis=1).mean()) if values.size else 0.0
    if spread == 0.0:
        return LabelNoise(0.0, 1.0, 0.0)
    values = (values - values.max(axis=1, keepdims=True)) / spread
    fits = [_best_factor(values, given, rate) for rate in RATES]
    place = int(np.argmin([loss for _, loss in fits]))
    factor, loss = fits[place]
    return LabelNoise(RATES[place], spread / factor, 2 * (fits[0][1] - loss))


def probabilities(scores: NDArray[Any], temperature: float) -> NDArray[np.float64]:
    """Return softmax(scores / temperature), float64 (N, C)."""
    values = np.asarray(scores, np.float64) / temperature
    values = np.exp(values - values.max(axis=1, keepdims=True))
    found: NDArray[np.float64] = values / values.sum(axis=1, keepdims=True)
    return found


def _best_factor(values: NDArray[np.float64], labels: NDArray[np.int64], rate: float) -> tuple[float, float]:
    """Return the factor on scores that fits best at a rate of noise, and the negative log-likelihood, in nats.

    One more image that has a bit of every class keeps the factor from growing for ever where all others are right.
    """
    from scipy.optimize import minimize_scalar

    n_classes = values.shape[1]

    def loss(log_factor: float) -> float:
        found = probabilities(np.exp(log_factor) * values, 1.0)
        own = (1 - rate) * found[np.arange(len(labels)), labels] + rate / n_classes
        average = probabilities(np.exp(log_factor) * values.mean(axis=0, keepdims=True), 1.0)
        return float(-np.log(np.maximum(own, 1e-300)).sum() - np.log(np.maximum(average, 1e-300)).mean())

    bounds = (np.log(LEAST_FACTOR), np.log(MOST_FACTOR))
    best = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-3})
    return float(np.exp(best.x)), float(best.fun)
