"""LinearHead: pooled features of one or more taps → class scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.errors import SettingError


class LinearHead(nn.Module):
    """A Linear on taps that are each scaled to unit length, so that no tap outweighs the others.

    widths: features of each tap; their sum is D. Starts from zeros: the first loss is ln C exactly, and nothing is
    drawn at random.
    """

    def __init__(self, widths: Sequence[int], n_classes: int) -> None:
        super().__init__()
        if n_classes < 1 or not widths:
            raise SettingError(f"head: at least one tap and one class expected, got {list(widths)} and {n_classes}")
        self.widths = tuple(widths)
        with torch.random.fork_rng(devices=[]):
            self.linear = nn.Linear(sum(widths), n_classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return scores (N, C) for pooled features (N, D)."""
        scores: Tensor = self.linear(unit_taps(features, self.widths))
        return scores


def unit_taps(features: Tensor, widths: Sequence[int]) -> Tensor:
    """Return (N, D) with every tap's part divided by its Euclidean length."""
    return torch.cat([F.normalize(part, dim=1) for part in torch.split(features, list(widths), dim=1)], dim=1)
