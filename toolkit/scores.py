"""Predictions → numbers.

Counts and ratios of them, in integers and float64. torchmetrics has the same, in float32, and is what the tests hold
these against; its import brings torchvision and torch's compiler along, 2.9 s that a head on frozen features need
not wait for.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toolkit.errors import ToolkitError

Z95 = 1.959964  # standard deviations that hold 95 % of a normal distribution
ECE_BINS = 15
SUM_TOLERANCE = 1e-2  # of a row of probabilities; a softmax in bfloat16 is off by some 1e-3


@dataclass(frozen=True)
class Scores:
    """How well a model did on one split; None where a number is undefined, never NaN or Infinity.

    n: number of labelled images. accuracy: share of them that is right, with its 95 % interval (low, high).
    balanced_accuracy: mean recall of the classes that occur. macro_f1: mean F1 of the classes that occur or were
    predicted. nll: mean negative log-likelihood in nats. ece: expected calibration error, 0 to 1.
    """

    n: int
    accuracy: float | None = None
    accuracy_ci95: tuple[float, float] | None = None
    balanced_accuracy: float | None = None
    macro_f1: float | None = None
    nll: float | None = None
    ece: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the object that `metrics.json` holds for a split."""
        interval = None if self.accuracy_ci95 is None else list(self.accuracy_ci95)
        return {
            "n": self.n,
            "accuracy": self.accuracy,
            "accuracy_ci95": interval,
            "balanced_accuracy": self.balanced_accuracy,
            "macro_f1": self.macro_f1,
            "nll": self.nll,
            "ece": self.ece,
        }

    def __str__(self) -> str:
        if self.accuracy is None or self.accuracy_ci95 is None:
            return "no labelled images"
        low, high = self.accuracy_ci95
        return (
            f"accuracy {self.accuracy:.3f} (95 % interval {low:.3f} to {high:.3f}, {self.n} images), "
            f"balanced {self.balanced_accuracy:.3f}, macro F1 {self.macro_f1:.3f}, "
            f"NLL {self.nll:.3f}, ECE {self.ece:.3f}"
        )


def score(probabilities: Tensor, labels: Tensor, *, seed: int = 0, resamples: int = 1000) -> Scores:
    """Score class probabilities against the truth.

    probabilities: float (N, C), C ≥ 2, rows that sum to 1; the prediction is the first maximum. labels: int64 (N,),
    0 to C − 1. seed and resamples: of the bootstrap. Everything is computed on the CPU; N = 0 gives None throughout.

    Balanced accuracy and macro F1 follow scikit-learn: the first averages over classes that occur in `labels`, the
    second over those that occur in `labels` or among the predictions. The calibration error is that of Guo et al.
    2017, "On Calibration of Modern Neural Networks", with 15 bins of equal width. A label whose probability is 0
    counts as the smallest normal float32 in the likelihood, 87.3 nats.

    Raises ValueError for shapes, types or values other than these, ToolkitError for predictions that are not finite.
    """
    _validate(probabilities, labels)
    n, n_classes = probabilities.shape
    if n == 0:
        return Scores(n=0)

    chances, truth = probabilities.detach().cpu().float(), labels.detach().cpu()
    predicted = chances.argmax(dim=1)
    hits = int((predicted == truth).sum())
    table = per_class_table(predicted, truth, tuple(map(str, range(n_classes))))
    own = chances.gather(1, truth[:, None]).double().clamp(torch.finfo(torch.float32).tiny, 1.0)
    return Scores(
        n=n,
        accuracy=hits / n,
        accuracy_ci95=accuracy_interval(hits, n, seed=seed, resamples=resamples),
        balanced_accuracy=fmean(row["recall"] for row in table if row["recall"] is not None),
        macro_f1=fmean(row["f1"] for row in table if row["f1"] is not None),
        nll=float(-own.log().mean()) + 0.0,  # a perfect score is 0, not −0
        ece=_calibration_error(chances.max(dim=1).values, predicted == truth),
    )


def accuracy_interval(hits: int, n: int, *, seed: int = 0, resamples: int = 1000) -> tuple[float, float]:
    """Return the bootstrap percentile 95 % interval (low, high) of the accuracy `hits` / `n`, n ≥ 1.

    A resample of n images with replacement has Binomial(n, hits / n) hits: they are drawn directly, which is the
    bootstrap itself and needs no memory. Where all or no images are hits, of which every resample says the same, it is
    Wilson's interval (1927, "Probable inference, the law of succession, and statistical inference").
    """
    if hits in (0, n):
        beyond = Z95**2 / (n + Z95**2)
        return (1 - beyond, 1.0) if hits else (0.0, beyond)
    generator = torch.Generator().manual_seed(seed)
    share = torch.full((resamples,), hits / n, dtype=torch.float64)
    draws = torch.binomial(torch.full_like(share, n), share, generator=generator) / n
    low, high = torch.quantile(draws, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def _calibration_error(confidence: Tensor, right: Tensor) -> float:
    """Return the gaps between confidence and accuracy of the bins (k / 15, (k + 1) / 15], weighted by their images."""
    sure = confidence.double().clamp(max=1.0)
    gaps = torch.bincount(_bins_of(sure), weights=sure - right.double(), minlength=ECE_BINS)
    return float(gaps.abs().sum()) / len(sure)


@dataclass(frozen=True, eq=False)
class CalibrationBins:
    """What the calibration error adds up, bin by bin: images, their mean confidence, the share that is right; NaN in
    an empty bin."""

    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def error(self) -> float:
        """The expected calibration error; 0 of no images."""
        there = self.counts > 0
        gaps = np.abs(self.confidence[there] - self.accuracy[there])
        return float((self.counts[there] * gaps).sum() / max(1, self.counts.sum()))


def calibration_bins(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> CalibrationBins:
    """Return the bins of N predictions: their probabilities, float64 (N,), and whether they are right, bool (N,)."""
    sure = torch.from_numpy(confidence).double().clamp(max=1.0)
    bins = _bins_of(sure)
    counts = torch.bincount(bins, minlength=ECE_BINS)
    sums = [torch.bincount(bins, weights=w, minlength=ECE_BINS) for w in (sure, torch.from_numpy(right).double())]
    mean_confidence, accuracy = ((one / counts).numpy() for one in sums)
    return CalibrationBins(counts.numpy(), mean_confidence, accuracy)


def _bins_of(confidence: Tensor) -> Tensor:
    return (confidence * ECE_BINS).ceil().long().sub(1).clamp(min=0)


def confusion_matrix(predictions: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """Return int64 (C, C) counts; rows are true classes, columns predicted ones.

    predictions, labels: int64 (N,), 0 to C − 1.
    """
    return torch.bincount(labels * n_classes + predictions, minlength=n_classes**2).view(n_classes, n_classes)


def per_class_table(predictions: Tensor, labels: Tensor, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return a row a class: class, n, precision, recall, f1; None where a ratio is 0 / 0.

    predictions, labels: int64 (N,), 0 to C − 1, indices into `classes`.
    """
    counts = confusion_matrix(predictions, labels, len(classes))
    hits, occurring, predicted = counts.diagonal().tolist(), counts.sum(1).tolist(), counts.sum(0).tolist()
    return [
        {
            "class": name,
            "n": occurring[k],
            "precision": _ratio(hits[k], predicted[k]),
            "recall": _ratio(hits[k], occurring[k]),
            "f1": _ratio(2 * hits[k], occurring[k] + predicted[k]),
        }
        for k, name in enumerate(classes)
    ]


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _validate(probabilities: Tensor, labels: Tensor) -> None:
    """Raise for what `score` does not take."""
    if probabilities.ndim != 2 or probabilities.shape[1] < 2 or not probabilities.is_floating_point():
        raise ValueError(
            f"expected float probabilities (N, C) with C ≥ 2, got {probabilities.dtype} {tuple(probabilities.shape)}"
        )
    n, n_classes = probabilities.shape
    if labels.shape != (n,) or labels.dtype != torch.int64:
        raise ValueError(f"expected int64 labels ({n},), got {labels.dtype} {tuple(labels.shape)}")
    if n == 0:
        return
    if not 0 <= int(labels.min()) <= int(labels.max()) < n_classes:
        raise ValueError(f"expected labels 0 to {n_classes - 1}, got {int(labels.min())} to {int(labels.max())}")
    n_broken = int((~probabilities.isfinite().all(dim=1)).sum())
    if n_broken:
        raise ToolkitError(
            f"{n_broken} of {n} predictions are not finite numbers: the model has diverged; train it with a smaller lr"
        )
    error = float((probabilities.double().sum(dim=1) - 1).abs().max())
    if error > SUM_TOLERANCE or float(probabilities.min()) < 0:
        raise ValueError(f"expected probabilities: none negative, rows that sum to 1; a row is off by {error:.3g}")
