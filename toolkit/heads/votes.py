"""NeighbourVotes: the module of a k-nearest-neighbour head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from toolkit.errors import SettingError
from toolkit.heads.examples import UNSEEN_BIAS
from toolkit.heads.linear import unit_taps

VOTE_TEMPERATURE = 0.07  # of a vote exp(similarity / 0.07); Wu et al. 2018, "Unsupervised Feature Learning …"


class NeighbourVotes(nn.Module):
    """Scores classes by the weighted votes of the k training rows with the largest cosine similarity.

    The similarity is the mean of the taps' cosines. A neighbour votes with exp((similarity − the nearest one's) /
    0.07) times its row's weight; one more vote is spread evenly over the classes, so every score is finite. Scores are
    log votes / temperature.

    Everything that was learnt is in buffers, so a state dict of equal shapes restores it: references float32 (M, D) of
    unit taps, labels int64 (M,), weights float32 (M,), floor float32 (C,) (a class's part of the spread vote, 0 for
    one that was never seen), k int64 () and temperature float32 ().
    """

    references: Tensor
    labels: Tensor
    weights: Tensor
    floor: Tensor
    k: Tensor
    temperature: Tensor

    def __init__(self, widths: Sequence[int], n_classes: int, n_references: int) -> None:
        super().__init__()
        if n_classes < 1 or n_references < 1 or not widths:
            raise SettingError(
                f"head: taps, classes and neighbours expected, got {list(widths)}, {n_classes}, {n_references}"
            )
        self.widths = tuple(widths)
        self.register_buffer("references", torch.zeros(n_references, sum(widths)))
        self.register_buffer("labels", torch.zeros(n_references, dtype=torch.int64))
        self.register_buffer("weights", torch.ones(n_references))
        self.register_buffer("floor", torch.full((n_classes,), 1.0 / n_classes))
        self.register_buffer("k", torch.tensor(1))
        self.register_buffer("temperature", torch.tensor(1.0))

    def forward(self, features: Tensor) -> Tensor:
        """Return float32 scores (N, C) for pooled features (N, D)."""
        with torch.autocast(features.device.type, enabled=False):
            similarity = unit_taps(features.float(), self.widths) @ self.references.T / len(self.widths)
            nearest, rows = similarity.topk(min(int(self.k), len(self.references)), dim=1)
            scores = vote_scores(nearest, self.labels[rows], self.weights[rows], self.floor)
        return torch.where(self.floor > 0, scores / self.temperature, UNSEEN_BIAS)


def vote_scores(similarity: Tensor, labels: Tensor, weights: Tensor, floor: Tensor) -> Tensor:
    """Return the log votes (N, C) of neighbours, nearest first: similarity (−∞ for none), labels, weights (N, k)."""
    nearest = similarity[:, :1].nan_to_num(neginf=0.0)
    votes = torch.exp((similarity - nearest) / VOTE_TEMPERATURE) * weights
    totals = floor.expand(len(labels), -1).scatter_add(1, labels, votes)
    return torch.where(floor > 0, totals.log(), UNSEEN_BIAS)
