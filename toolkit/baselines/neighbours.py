"""Nearest neighbours among the training images: exact, by blocks, with stated ties; or by an approximate index."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.errors import SettingError, unknown_name

METRICS = ("l1", "l2", "cosine")
SEARCHES = ("exact", "approximate")

BLOCK_DISTANCES = 1 << 24  # at a time: that many images asked about times training images
PAIR_NUMBERS = 1 << 24  # numbers of pairs of images that are compared one by one, at a time
PATCH_PX = 4  # side of the patches whose sums give a lower bound of an L1 distance
LEAST_POOLED = 128  # with fewer numbers than this, a bound costs more than it spares
TIE_SHARE = 0.01  # of a vote; goes to the class that wins


class Neighbours(nn.Module):
    """Rows (N, D) → scores (N, C): the votes of the k nearest of M training rows.

    Ties: of training images equally far away the one that comes first in the data set is nearer; of classes with
    equally many votes the one with the nearest voter wins, and of those the first one. Scores are log(votes + 1/C), so
    that their softmax is the share of the votes, one more vote being spread evenly; the winner has a hundredth more.

    references: (M, D), uint8 for pixels, float32 for features, as they are: nothing is centred. L1 distances of pixels
    are whole numbers below 2^24, exact in single precision; all others are computed in double precision.
    """

    references: Tensor
    labels: Tensor

    def __init__(
        self, references: Tensor, labels: Tensor, n_classes: int, *, k: int, metric: str = "l1", search: str = "exact"
    ) -> None:
        super().__init__()
        for kind, name, known in (("metric", metric, METRICS), ("search", search, SEARCHES)):
            if name not in known:
                raise unknown_name(kind, name, known)
        if not 1 <= k <= len(references):
            raise SettingError(f"k: 1 to {len(references)} expected, as many as there are training images, got {k}")
        self.register_buffer("references", references.flatten(1))
        self.register_buffer("labels", labels)
        self.n_classes = n_classes
        self.k = k
        self.metric = metric
        self.search = search
        self._prepared: Any = None  # what a search makes of the references first

    def to_dict(self) -> dict[str, Any]:
        """Return what rebuilds it before its tensors are loaded."""
        return {
            "k": self.k,
            "metric": self.metric,
            "search": self.search,
            "references": list(self.references.shape),
            "dtype": "uint8" if self.references.dtype == torch.uint8 else "float32",
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any], n_classes: int) -> Neighbours:
        """Rebuild from `to_dict`'s values, its tensors zero."""
        dtype = {"uint8": torch.uint8, "float32": torch.float32}[values["dtype"]]
        references = torch.zeros([int(n) for n in values["references"]], dtype=dtype)
        labels = torch.zeros(len(references), dtype=torch.int64)
        settings = {key: values[key] for key in ("metric", "search")}
        return cls(references, labels, n_classes, k=int(values["k"]), **settings)

    def forward(self, rows: Tensor) -> Tensor:
        """Return float32 (N, C)."""
        return self.votes(*self.nearest(rows))

    def votes(self, distances: Tensor, numbers: Tensor) -> Tensor:
        """Return the scores (N, C) for the k nearest, their distances and row numbers (N, k) both."""
        labels = self.labels[numbers]
        votes = torch.zeros(len(labels), self.n_classes, dtype=torch.float64, device=labels.device)
        votes.scatter_add_(1, labels, torch.ones_like(labels, dtype=torch.float64))
        most = votes.gather(1, labels) == votes.amax(1, keepdim=True)  # (N, k): whether its class has the most votes
        distances = torch.where(most, distances.to(labels.device), torch.inf)
        nearest = most & (distances == distances.amin(1, keepdim=True))
        winner = torch.where(nearest, labels, self.n_classes).amin(1, keepdim=True)
        votes.scatter_add_(1, winner, torch.full_like(winner, TIE_SHARE, dtype=torch.float64))
        return (votes + 1 / self.n_classes).log().float()

    def nearest(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return distances float64 and row numbers int64 of the k nearest, (N, k) both, nearest first."""
        rows = rows.flatten(1).to(self.references.device)
        if rows.shape[1] != self.references.shape[1]:
            raise SettingError(f"rows of {self.references.shape[1]} numbers expected, got {rows.shape[1]}")
        if self.search == "approximate":
            return self._approximate(rows)
        size = max(1, BLOCK_DISTANCES // len(self.references))
        find = self._pruned if self._prunes() else self._whole
        found = [find(rows[start : start + size]) for start in range(0, len(rows), size)]
        nothing = torch.empty(0, self.k, dtype=torch.float64), torch.empty(0, self.k, dtype=torch.int64)
        parts = list(zip(*found, strict=True)) if found else [[part] for part in nothing]
        return torch.cat(list(parts[0])), torch.cat(list(parts[1]))

    def _prunes(self) -> bool:
        pixels = self.references.dtype == torch.uint8
        return pixels and self.metric == "l1" and self.references.shape[1] >= LEAST_POOLED

    def _whole(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Compute all distances, and sort those that are no larger than the k-th smallest."""
        distances = self._distances(rows)
        limit = distances.kthvalue(self.k, dim=1).values
        query, number = (distances <= limit[:, None]).nonzero(as_tuple=True)
        return _first_k(query, number, distances[query, number], len(rows), self.k)

    def _distances(self, rows: Tensor) -> Tensor:
        """Return float64 (n, M)."""
        ours = self._once("whole", lambda: self._in_space(self.references))
        theirs = self._in_space(rows)
        if self.metric == "l1":
            found: Tensor = torch.cdist(theirs, ours, p=1.0).double()
            return found
        if self.metric == "cosine":
            similarity: Tensor = theirs @ ours.T
            return 1 - similarity
        squares: Tensor = theirs.square().sum(1)[:, None] + ours.square().sum(1) - 2 * (theirs @ ours.T)
        return squares.clamp_min(0).sqrt()

    def _in_space(self, rows: Tensor) -> Tensor:
        """Return rows as the distances want them; for cosine of length 1, a row of zeros staying zero."""
        if self.metric == "l1" and rows.dtype == torch.uint8:
            return rows.float()
        rows = rows.double()
        if self.metric == "cosine":
            rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        return rows

    def _pruned(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Find the nearest by L1 with few whole distances.

        |Σ a − Σ b| ≤ Σ |a − b|: the distance of the sums of patches is a lower bound, at a sixteenth of the work. The
        k-th smallest distance among those with the smallest bounds is an upper limit of the true k-th distance, and
        whatever has a larger bound than that cannot be among the nearest.
        """
        pooled = self._once("sums", lambda: _sums(self.references))
        bounds = torch.cdist(_sums(rows), pooled, p=1.0)
        n_guesses = min(len(self.references), 4 * self.k + 16)
        guesses = bounds.topk(n_guesses, dim=1, largest=False).indices
        asked = torch.arange(len(rows), device=rows.device)
        found = self._between(rows, asked.repeat_interleave(n_guesses), guesses.flatten()).reshape(len(rows), -1)
        limit = found.kthvalue(self.k, dim=1).values
        query, number = (bounds <= limit[:, None]).nonzero(as_tuple=True)
        distances = self._between(rows, query, number)
        kept = distances <= limit[query]
        return _first_k(query[kept], number[kept], distances[kept].double(), len(rows), self.k)

    def _between(self, rows: Tensor, query: Tensor, number: Tensor) -> Tensor:
        """Return the L1 distances float32 (P,) of pairs of uint8 rows."""
        size = max(1, PAIR_NUMBERS // rows.shape[1])
        parts = [torch.empty(0, device=rows.device)]
        for start in range(0, len(query), size):
            ours = self.references[number[start : start + size]]
            theirs = rows[query[start : start + size]]
            apart = torch.maximum(ours, theirs) - torch.minimum(ours, theirs)
            parts.append(apart.sum(1, dtype=torch.int32).float())
        return torch.cat(parts)

    def _approximate(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        from toolkit.baselines.approximate import build_index

        index = self._once("index", lambda: build_index(self.references, self.metric))
        found: tuple[Tensor, Tensor] = index.nearest(rows, self.k)
        return found

    def _once(self, what: str, make: Callable[[], Any]) -> Any:
        """Return what `make` gives of the references, made again where they have changed or moved."""
        ours = self.references
        state = (what, ours.data_ptr(), ours.device, 0 if ours.is_inference() else ours._version)
        if self._prepared is None or self._prepared[0] != state:
            self._prepared = (state, make())
        return self._prepared[1]


def _sums(rows: Tensor) -> Tensor:
    """Return float32 sums of some numbers each: of patches of square images, where bounds are tightest."""
    n_numbers = rows.shape[1]
    channels = next((c for c in (1, 3) if math.isqrt(n_numbers // c) ** 2 * c == n_numbers), None)
    if channels is None:
        padded = nn.functional.pad(rows, (0, -n_numbers % PATCH_PX**2))
        return padded.reshape(len(rows), -1, PATCH_PX**2).sum(2, dtype=torch.int32).float()
    side = math.isqrt(n_numbers // channels)
    short = -side % PATCH_PX
    images = nn.functional.pad(rows.reshape(-1, channels, side, side), (0, short, 0, short))
    n_patches = (side + short) // PATCH_PX
    patches = images.reshape(len(rows), channels, n_patches, PATCH_PX, n_patches, PATCH_PX)
    return patches.sum((3, 5), dtype=torch.int32).flatten(1).float()


def _first_k(query: Tensor, number: Tensor, distance: Tensor, n: int, k: int) -> tuple[Tensor, Tensor]:
    """Return the k nearest of candidates, at least k for each of n queries, sorted by query and row number.

    Stable sorts, by distance and then by query, leave equals in the order of their row numbers.
    """
    order = distance.sort(stable=True).indices
    order = order[query[order].sort(stable=True).indices]
    counts = torch.bincount(query, minlength=n)
    starts = counts.cumsum(0) - counts
    places = order[starts[:, None] + torch.arange(k, device=order.device)]
    return distance[places], number[places]
