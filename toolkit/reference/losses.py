"""Loss functions: how wrong the scores of a batch are, as one number, and its gradient.

Scores are float (N, C), a row for each image; labels int64 (N,), 0 to C − 1. Losses are means over the batch, scalars
of the scores' dtype, in nats where there is a logarithm. Their backward functions take the upstream gradient as a
scalar (tensor or number; 1 for the loss itself).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def softmax(scores: Tensor) -> Tensor:
    """Return p = exp(s) / Σ exp(s) along the last dimension: positive, with the sum 1; float (…, C) as the scores.

    Raises ValueError for no class. Source: notes: Loss Function, Softmax.

    >>> (100 * softmax(torch.tensor([3.2, 5.1, -1.7]))).round().tolist()
    [13.0, 87.0, 0.0]
    """
    exponentials = torch.exp(_shifted(scores))
    return exponentials / exponentials.sum(-1, keepdim=True)


def softmax_backward(upstream: Tensor, scores: Tensor) -> Tensor:
    """Return ∂L/∂s = p (g − Σ g p), all float (…, C): raising every upstream gradient alike changes nothing.

    From ∂p_i/∂s_j = p_i (δ_ij − p_j). Raises ValueError for no class. Source: notes: Loss Function; Backpropagation.

    >>> softmax_backward(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0])).tolist()
    [0.25, -0.25]
    """
    p = softmax(scores)
    return p * (upstream - (upstream * p).sum(-1, keepdim=True))


def log_softmax(scores: Tensor) -> Tensor:
    """Return log p = s − log Σ exp(s) along the last dimension; float (…, C); finite where softmax rounds p to 0.

    Raises ValueError for no class. Source: notes: Loss Function, Softmax.

    >>> log_softmax(torch.tensor([1e4, 0.0])).tolist()
    [0.0, -10000.0]
    """
    shifted = _shifted(scores)
    return shifted - torch.log(torch.exp(shifted).sum(-1, keepdim=True))


def log_softmax_backward(upstream: Tensor, scores: Tensor) -> Tensor:
    """Return ∂L/∂s = g − p Σ g, all float (…, C), from ∂(log p_i)/∂s_j = δ_ij − p_j.

    Raises ValueError for no class. Source: notes: Loss Function; Backpropagation.

    >>> log_softmax_backward(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0])).tolist()
    [0.5, -0.5]
    """
    return upstream - softmax(scores) * upstream.sum(-1, keepdim=True)


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Return mean(−log p_y), the natural logarithm of the right class's softmax: 0 at best, without upper bound.

    About log C for scores that say nothing. Raises ValueError for shapes, dtypes and labels that do not fit, and an
    empty batch. Source: notes: Loss Function, Softmax Cross entropy loss (which prints log10, and 1 as the minimum).

    >>> round(cross_entropy(torch.tensor([[3.2, 5.1, -1.7]]), torch.tensor([0])).item(), 4)
    2.0404
    """
    _check_labels(scores, labels)
    return -log_softmax(scores).gather(1, labels[:, None]).mean()


def cross_entropy_backward(upstream: Tensor | float, scores: Tensor, labels: Tensor) -> Tensor:
    """Return ∂L/∂s (N, C) = upstream · (p − 1 at the label, p elsewhere) / N.

    Raises ValueError as `cross_entropy` does. Source: notes: Loss Function; Backpropagation.

    >>> cross_entropy_backward(1.0, torch.tensor([[0.0, 0.0]]), torch.tensor([0])).tolist()
    [[-0.5, 0.5]]
    """
    _check_labels(scores, labels)
    return upstream * (softmax(scores) - _one_hot(scores, labels)) / len(scores)


def hinge(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the multiclass SVM loss mean(Σ max(0, s_j − s_y + 1)), the sum over the wrong classes j ≠ y.

    0 once every wrong score is at least 1 below the right one, without upper bound; about C − 1 for equal scores.
    It is C times torch.nn.MultiMarginLoss. Raises ValueError for shapes, dtypes and labels that do not fit, and an
    empty batch. Source: notes: Loss Function, SVM Hinge loss; Weston & Watkins 1999.

    >>> round(hinge(torch.tensor([[3.2, 5.1, -1.7]]), torch.tensor([0])).item(), 4)
    2.9
    """
    margins = _margins(scores, labels)
    return torch.where(margins <= 0, 0.0, margins).sum(1).mean()  # not `margins > 0`: NaN must stay NaN


def hinge_backward(upstream: Tensor | float, scores: Tensor, labels: Tensor) -> Tensor:
    """Return ∂L/∂s (N, C): upstream / N for each wrong class within the margin, minus their number at the label.

    Raises ValueError as `hinge` does. Source: notes: Loss Function, SVM Hinge loss; Backpropagation.

    >>> hinge_backward(1.0, torch.tensor([[3.2, 5.1, -1.7]]), torch.tensor([0])).tolist()
    [[-1.0, 1.0, 0.0]]
    """
    within = (_margins(scores, labels) > 0).to(scores.dtype)
    return upstream * (within - _one_hot(scores, labels) * within.sum(1, keepdim=True)) / len(scores)


def _shifted(scores: Tensor) -> Tensor:
    """Return scores − their maximum: the softmax is the same and no exponent is positive, so none overflows."""
    if scores.ndim < 1 or scores.shape[-1] < 1:
        raise ValueError(f"expected scores of shape (..., C) with C ≥ 1, got {tuple(scores.shape)}")
    # Neither softmax nor its logarithm changes with what is subtracted, so no gradient need flow through it.
    return scores - scores.amax(-1, keepdim=True).detach()


def _margins(scores: Tensor, labels: Tensor) -> Tensor:
    """Return s_j − s_y + 1 (N, C), with 0 at the label."""
    _check_labels(scores, labels)
    margins = scores - scores.gather(1, labels[:, None]) + 1
    return margins.scatter(1, labels[:, None], 0.0)


def _one_hot(scores: Tensor, labels: Tensor) -> Tensor:
    return torch.zeros_like(scores).scatter(1, labels[:, None], 1.0)


def _check_labels(scores: Tensor, labels: Tensor) -> None:
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(f"expected scores of shape (N, C) with N, C ≥ 1, got {tuple(scores.shape)}")
    if not scores.is_floating_point():
        raise ValueError(f"expected scores of a floating-point dtype, got {scores.dtype}")
    if labels.dtype != torch.int64:
        raise ValueError(f"expected labels of dtype torch.int64, got {labels.dtype}")
    if labels.shape != scores.shape[:1]:
        raise ValueError(f"expected labels of shape ({len(scores)},), got {tuple(labels.shape)}")
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        found = f"{int(labels.min())} to {int(labels.max())}"
        raise ValueError(f"expected labels from 0 to {scores.shape[1] - 1}, got {found}")


class CrossEntropyLoss(nn.Module):
    """The module of `cross_entropy`: `CrossEntropyLoss()(scores, labels)`, the notes' softmax classifier."""

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return mean(−log p_y) of scores (N, C) and labels int64 (N,)."""
        return cross_entropy(scores, labels)


class HingeLoss(nn.Module):
    """The module of `hinge`: `HingeLoss()(scores, labels)`, the notes' multiclass SVM."""

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return mean(Σ max(0, s_j − s_y + 1)) of scores (N, C) and labels int64 (N,)."""
        return hinge(scores, labels)
