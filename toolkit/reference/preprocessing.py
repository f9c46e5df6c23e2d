"""Preprocessing: inputs moved to mean 0, and where their scales differ, to standard deviation 1.

Inputs are (N, …) with N ≥ 1, uint8 or any other number, images (N, C, H, W) among them. Statistics are taken along N
for every feature (every pixel of every channel), or with per="channel" along all but the second dimension, in float64;
they come from the training split alone, or the model has seen what it is scored on. A transformed input is float32, or
the input's own dtype if that is a floating one. What does not fit raises ValueError.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK_ROWS = 4096  # rows that are float64 at one time


def mean_image(images: Tensor) -> Tensor:
    """Return the mean of (N, …) along N, float64 (…).

    Source: notes: Data Preprocessing, Zero-centered.

    >>> mean_image(torch.tensor([[0, 10], [2, 20]], dtype=torch.uint8)).tolist()
    [1.0, 15.0]
    """
    return _mean(images, "feature")


def channel_mean(images: Tensor) -> Tensor:
    """Return the mean of each channel of (N, C, …), float64 (C,).

    Source: notes: Data Preprocessing, Zero-centered (a colour is no place: one number a channel serves as well).

    >>> channel_mean(torch.tensor([[[0, 10], [4, 4]]], dtype=torch.uint8)).tolist()
    [5.0, 4.0]
    """
    return _mean(images, "channel")


class ZeroCenter:
    """x − mean of the training inputs; `fit` sets `mean_`.

    per: "feature" or "channel". Raises ValueError for another one, inputs of another shape than those of `fit`, and a
    transform before `fit`. Source: notes: Data Preprocessing, Zero-centered.

    >>> train = torch.tensor([[0.0, 10.0], [2.0, 20.0]])
    >>> ZeroCenter().fit(train).transform(train).tolist()
    [[-1.0, -5.0], [1.0, 5.0]]
    """

    def __init__(self, per: str = "feature") -> None:
        _check_per(per)
        self.per = per

    def fit(self, x: Tensor) -> ZeroCenter:
        """Take the mean of the training inputs (N, …)."""
        self.mean_ = _mean(x, self.per)
        return self

    def transform(self, x: Tensor) -> Tensor:
        """Return (N, …), of a floating dtype."""
        if not hasattr(self, "mean_"):
            raise ValueError("expected fit before transform, got no statistics")
        return (x - _broadcast(self.mean_, x, self.per)).to(_floating(x))


class Standardize:
    """(x − mean) / standard deviation of the training inputs; `fit` sets `mean_` and `std_`.

    The standard deviation divides by N, as numpy.std does; that of a feature which never changes counts as 1, so that
    it becomes 0 and not NaN. per and errors are those of `ZeroCenter`. Source: notes: Data Preprocessing, Normalized.

    >>> train = torch.tensor([[0.0, 7.0], [4.0, 7.0]])
    >>> Standardize().fit(train).transform(train).tolist()
    [[-1.0, 0.0], [1.0, 0.0]]
    """

    def __init__(self, per: str = "feature") -> None:
        _check_per(per)
        self.per = per

    def fit(self, x: Tensor) -> Standardize:
        """Take the mean and the standard deviation of the training inputs (N, …)."""
        self.mean_ = _mean(x, self.per)
        mean = _broadcast(self.mean_, x, self.per)
        axes = _axes(x, self.per)
        squares = torch.zeros_like(self.mean_)
        for block in torch.split(x, BLOCK_ROWS):
            squares += ((block - mean) ** 2).sum(axes)
        std = (squares / (x.numel() / self.mean_.numel())).sqrt()
        never_changes = x.amax(axes) == x.amin(axes)
        self.std_ = torch.where(never_changes, 1.0, std)
        return self

    def transform(self, x: Tensor) -> Tensor:
        """Return (N, …), of a floating dtype."""
        if not hasattr(self, "std_"):
            raise ValueError("expected fit before transform, got no statistics")
        centred = x - _broadcast(self.mean_, x, self.per)
        return (centred / _broadcast(self.std_, x, self.per)).to(_floating(x))


def _mean(x: Tensor, per: str) -> Tensor:
    if x.ndim < (1 if per == "feature" else 2) or x.numel() == 0:
        wanted = "(N, ...)" if per == "feature" else "(N, C, ...)"
        raise ValueError(f"expected inputs {wanted} that are not empty, got shape {tuple(x.shape)}")
    return x.mean(_axes(x, per), dtype=torch.float64)


def _axes(x: Tensor, per: str) -> list[int]:
    return [0] if per == "feature" else [0, *range(2, x.ndim)]


def _broadcast(statistic: Tensor, x: Tensor, per: str) -> Tensor:
    """Return a statistic in the shape that broadcasts over x; ValueError if x is none of its kind."""
    if per == "feature":
        if x.shape[1:] != statistic.shape:
            raise ValueError(f"expected inputs (N, *{tuple(statistic.shape)}), got shape {tuple(x.shape)}")
        return statistic
    if x.ndim < 2 or x.shape[1] != len(statistic):
        raise ValueError(f"expected inputs (N, {len(statistic)}, ...), got shape {tuple(x.shape)}")
    return statistic.reshape(-1, *[1] * (x.ndim - 2))


def _floating(x: Tensor) -> torch.dtype:
    return x.dtype if x.is_floating_point() else torch.float32


def _check_per(per: str) -> None:
    if per not in ("feature", "channel"):
        raise ValueError(f"expected per to be 'feature' or 'channel', got {per!r}")
