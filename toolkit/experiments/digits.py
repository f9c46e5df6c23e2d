"""The data of most experiments: scikit-learn's 1,797 handwritten digits, 8 × 8 pixels, and a plain training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from toolkit.reference.losses import cross_entropy
from toolkit.reference.preprocessing import Standardize


@dataclass(frozen=True)
class Digits:
    """Standardised pixels float32 (N, 64) and labels int64 (N,), of a training and a test split."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor


def digits(seed: int, n_train: int = 1200) -> Digits:
    """Return the digits, shuffled by the seed; the statistics are those of the training split."""
    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    x, y = torch.from_numpy(pixels).float()[order], torch.from_numpy(labels)[order]
    scaler = Standardize().fit(x[:n_train])
    x = scaler.transform(x)
    return Digits(x[:n_train], y[:n_train], x[n_train:], y[n_train:])


def batches(n: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the row numbers of one epoch, shuffled; the last batch may be smaller."""
    yield from torch.split(torch.randperm(n, generator=generator), size)


def train(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Digits,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    penalty: Callable[[], Tensor] | None = None,
    enough: float = 0.0,
) -> list[float]:
    """Train by cross-entropy, and a penalty; return the mean loss of each epoch, the penalty left out.

    Stops where the loss is no longer finite, and after an epoch with a loss below `enough`.
    """
    generator = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    for _ in range(epochs):
        net.train()
        total = 0.0
        for rows in batches(len(data.x), batch_size, generator):
            optimizer.zero_grad()
            loss = cross_entropy(net(data.x[rows]), data.y[rows])
            (loss if penalty is None else loss + penalty()).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += float(loss.detach()) * len(rows)
        losses.append(total / len(data.x))
        if not math.isfinite(losses[-1]) or losses[-1] < enough:
            break
    return losses


@torch.no_grad()
def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of rows whose highest score is at the label, the net in eval mode."""
    net.eval()
    return float((net(x).argmax(1) == y).double().mean())


@torch.no_grad()
def mean_loss(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the cross-entropy, the net in eval mode."""
    net.eval()
    return float(cross_entropy(net(x), y))
