"""LinearHead: pooled features of one or more taps → class scores."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.errors import SettingError


class LinearHead(nn.Module):
    """A Linear on taps that are each scaled to unit length, so that no tap outweighs the others.

    widths: features of each tap; their sum is D. Starts from zeros: the first loss is ln C exactly, and nothing is
    drawn at random. scale: what the features are multiplied by before the Linear. Of 1 they are so small that steps of
    a usual size leave a head of zeros behind the stages below it; `unit_rms` gives them the size that layers have.
    """

    def __init__(self, widths: Sequence[int], n_classes: int, scale: float = 1.0) -> None:
        super().__init__()
        if n_classes < 1 or not widths:
            raise SettingError(f"head: at least one tap and one class expected, got {list(widths)} and {n_classes}")
        self.widths = tuple(widths)
        self.scale = scale
        self.linear = _LinearOfZeros(sum(widths), n_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Return scores (N, C) for pooled features (N, D)."""
        scores: Tensor = self.linear(unit_taps(features, self.widths) * self.scale)
        return scores

    def fold_scale(self) -> None:
        """Put the scale into the weights: the same scores, and a scale of 1."""
        with torch.no_grad():
            self.linear.weight.mul_(self.scale)
        self.scale = 1.0


class _LinearOfZeros(nn.Linear):
    """A Linear that draws nothing: heads are made in threads, which share the random state."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


def unit_rms(widths: Sequence[int]) -> float:
    """Return the scale with which the features have a root mean square of 1."""
    return math.sqrt(sum(widths) / len(widths))


def unit_taps(features: Tensor, widths: Sequence[int]) -> Tensor:
    """Return (N, D) with every tap's part divided by its Euclidean length."""
    return torch.cat([F.normalize(part, dim=1) for part in torch.split(features, list(widths), dim=1)], dim=1)
