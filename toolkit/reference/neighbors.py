"""Nearest neighbours: every query is compared with every training row, exactly, block by block."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

QUERY_ROWS = 64  # a block of distances is QUERY_ROWS × TRAIN_ROWS, small enough for a core's cache
TRAIN_ROWS = 4096
INT16_TERMS = 128  # so many numbers of at most 255 fit into int16

METRICS = ("l1", "l2", "cosine")


class NearestNeighbors:
    """k-nearest-neighbour classifier; k = 1 with metric "l1" is the notes' nearest neighbour.

    metric: "l1" Σ |a − b|; "l2" √Σ (a − b)²; "cosine" 1 − a·b / (‖a‖ ‖b‖), 1 where a row is all 0.
    Inputs (N, …), uint8 or floating, are flattened to (N, D); queries have the dtype and sizes of the training rows.

    The label with the most votes among the k nearest wins; of equals the one whose nearest vote is nearer, then the
    lower label. Of rows at the same distance the earlier ones are neighbours. Distances of uint8 are exact; floating
    rows are compared in their own dtype (float32 at least) for "l1" and in float64 else, equal up to its rounding.

    `fit` only remembers (`x_`, `labels_`); `predict` takes N × D operations a query. Memory beside inputs and result:
    12 · 64 · 4096 bytes of distances a thread, 4,096 rows at up to 16 bytes a number, and 16 · k bytes a query.
    60,000 × 10,000 × 784 uint8 with k = 1 and "l1" took 19 s on two cores.

    Raises ValueError for k < 1 or more than N, an unknown metric, and inputs that do not fit or are not finite.
    Source: notes: Nearest Neighbor Classifier, K-Nearest Neighbor Classifier.

    >>> x = torch.tensor([[0, 0], [10, 10], [12, 12]], dtype=torch.uint8)
    >>> model = NearestNeighbors(k=1).fit(x, torch.tensor([0, 1, 1]))
    >>> model.predict(torch.tensor([[3, 3], [11, 11]], dtype=torch.uint8)).tolist()
    [0, 1]
    """

    def __init__(self, k: int = 1, metric: str = "l1") -> None:
        if k < 1:
            raise ValueError(f"expected k ≥ 1, got {k}")
        if metric not in METRICS:
            raise ValueError(f"expected metric to be one of {', '.join(METRICS)}, got {metric!r}")
        self.k = k
        self.metric = metric

    def fit(self, x: Tensor, labels: Tensor) -> NearestNeighbors:
        """Remember the training rows (N, …) and their labels, integers (N,)."""
        if x.ndim < 2 or not (x.dtype == torch.uint8 or x.is_floating_point()):
            raise ValueError(f"expected uint8 or floating rows (N, ...), got {x.dtype} of shape {tuple(x.shape)}")
        if labels.shape != x.shape[:1] or labels.is_floating_point():
            raise ValueError(f"expected {len(x)} whole-number labels, got {labels.dtype} {tuple(labels.shape)}")
        if len(x) < self.k:
            raise ValueError(f"expected at least k = {self.k} rows, got {len(x)}")
        _check_finite(x)
        self.x_, self.labels_ = x, labels.long()
        return self

    def predict(self, queries: Tensor) -> Tensor:
        """Return the labels, int64 (Q,), of queries (Q, …)."""
        distances, rows = self.neighbors(queries)
        return majority(self.labels_[rows], distances)

    @torch.no_grad()
    def neighbors(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return distances, float64, and row numbers, int64, of the k nearest of queries (Q, …): (Q, k), nearest first.

        Raises ValueError for queries of another dtype or size than the training rows, and before `fit`.
        """
        if not hasattr(self, "x_"):
            raise ValueError("expected fit before predict, got no training rows")
        if queries.dtype != self.x_.dtype or queries.shape[1:] != self.x_.shape[1:]:
            wanted, got = tuple(self.x_.shape[1:]), tuple(queries.shape)
            raise ValueError(f"expected {self.x_.dtype} (Q, *{wanted}), got {queries.dtype} {got}")
        _check_finite(queries)
        x, q = self.x_.flatten(1), queries.flatten(1)
        prepare, compare = _SCHEMES[self.metric if self.metric != "l1" or x.dtype != torch.uint8 else "l1 uint8"]
        centre = x.mean(0, dtype=torch.float64) if self.metric == "l2" and x.is_floating_point() else None
        parts = torch.split(q, QUERY_ROWS)
        best = [torch.empty(len(part), 0, dtype=torch.float64) for part in parts]
        rows = [torch.empty(len(part), 0, dtype=torch.int64) for part in parts]

        @torch.no_grad()
        def update(i: int, block: _Rows, start: int) -> None:
            found = compare(prepare(parts[i], centre), block)
            nearest, columns = _smallest(found, min(self.k, found.shape[1]))
            # Older rows stand first, so that a stable sort keeps them before newer ones at the same distance.
            both = torch.cat([best[i], nearest.double()], 1)
            best[i], order = (one[:, : self.k] for one in both.sort(dim=1, stable=True))
            rows[i] = torch.cat([rows[i], columns + start], 1).gather(1, order)

        with _workers(self.metric == "l1") as run:
            for start in range(0, len(x), TRAIN_ROWS):
                block = prepare(x[start : start + TRAIN_ROWS], centre)
                run(partial(update, block=block, start=start), range(len(parts)))
        distances = torch.cat(best)
        return (distances.sqrt() if self.metric == "l2" else distances), torch.cat(rows)


@contextmanager
def _workers(own_threads: bool) -> Iterator[Callable[[Callable[[int], None], range], None]]:
    """Yield what calls a function for each number of a range.

    With own_threads in as many threads as torch has, a query block in each: passes over a block are so short that
    torch's own threads would wait for each other most of the time. A matrix product is better left to them.
    """
    n_threads = torch.get_num_threads()
    if not own_threads or n_threads == 1:
        yield lambda function, numbers: deque(map(function, numbers), 0).clear()
        return
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(n_threads) as pool:
            yield lambda function, numbers: deque(pool.map(function, numbers), 0).clear()
    finally:
        torch.set_num_threads(n_threads)


def majority(labels: Tensor, distances: Tensor) -> Tensor:
    """Return the most frequent label of each row, int64 (Q,), of labels int64 and distances (Q, k).

    Of equals the one with the smallest distance wins, then the lowest one.

    >>> majority(torch.tensor([[3, 1, 1], [3, 1, 2]]), torch.tensor([[0.0, 1.0, 1.0], [1.0, 1.0, 2.0]])).tolist()
    [1, 1]
    """
    classes, place = torch.unique(labels, return_inverse=True)
    votes = torch.zeros(len(labels), len(classes), dtype=torch.int64).scatter_add_(1, place, torch.ones_like(place))
    mine = votes.gather(1, place)
    most = mine == mine.amax(1, keepdim=True)
    distances = torch.where(most, distances, torch.inf)
    # A distance may be inf itself, so `most` is asked again.
    tied = most & (distances == distances.amin(1, keepdim=True))
    lowest = torch.where(tied, place, len(classes)).amin(1)
    return torch.index_select(classes, 0, lowest)


def _check_finite(x: Tensor) -> None:
    if x.is_floating_point() and not x.isfinite().all():
        raise ValueError(f"expected finite numbers, got {int((~x.isfinite()).sum())} that are not")


def _smallest(found: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k smallest of each row (n, k), ascending, and their columns, the lowest ones of equals."""
    if k == 1:
        columns = found.argmin(1, keepdim=True)  # the first of equals
        return found.gather(1, columns), columns
    values, columns = found.topk(k, dim=1, largest=False)
    many = ((found <= values[:, -1:]).sum(1) > k).nonzero().squeeze(1)  # which of the equals topk took is not said
    if len(many):
        values[many], columns[many] = (part[:, :k] for part in found[many].sort(dim=1, stable=True))
    columns, by_column = columns.sort(dim=1)
    values, by_value = values.gather(1, by_column).sort(dim=1, stable=True)
    return values, columns.gather(1, by_value)


_Rows = tuple[Tensor, Tensor]


def _prepare_bytes(x: Tensor, centre: Tensor | None) -> _Rows:
    """Return rows uint8 (n, D) as int16 (D, n), and their sums int32 (n,)."""
    return x.T.to(torch.int16, memory_format=torch.contiguous_format), x.sum(1, dtype=torch.int32)


def _l1_bytes(q: _Rows, x: _Rows) -> Tensor:
    """Return Σ |a − b| = Σ a + Σ b − 2 Σ min(a, b), int32: two passes over the block a number instead of three."""
    columns, rows = q[0].unsqueeze(2), x[0]
    smaller = torch.empty(columns.shape[1], rows.shape[1], dtype=torch.int16)
    partial, total = torch.empty_like(smaller), torch.zeros_like(smaller, dtype=torch.int32)
    for start in range(0, len(rows), INT16_TERMS):
        partial.zero_()
        for d in range(start, min(start + INT16_TERMS, len(rows))):
            torch.minimum(columns[d], rows[d], out=smaller)
            partial.add_(smaller)
        total.add_(partial)
    return q[1][:, None] + x[1] - 2 * total


def _prepare_floats(x: Tensor, centre: Tensor | None) -> _Rows:
    """Return floating rows (n, D) as (D, n), float32 at least."""
    x = x.float() if x.dtype.itemsize < 4 else x
    return x.T.contiguous(), x[:, :0]


def _l1_floats(q: _Rows, x: _Rows) -> Tensor:
    columns, rows = q[0].unsqueeze(2), x[0]
    total = torch.zeros(columns.shape[1], rows.shape[1], dtype=rows.dtype)
    apart = torch.empty_like(total)
    for d in range(len(rows)):
        torch.sub(columns[d], rows[d], out=apart)
        total.add_(apart.abs_())
    return total


def _prepare_squares(x: Tensor, centre: Tensor | None) -> _Rows:
    """Return rows in float64 and their squared lengths; around the centre, where rounding is smallest, if floating."""
    x = x.double() if centre is None else x.double() - centre
    return x, (x**2).sum(1)


def _l2_squared(q: _Rows, x: _Rows) -> Tensor:
    """Return ‖a − b‖² = ‖a‖² + ‖b‖² − 2 a·b, which is one matrix product; of uint8 without rounding."""
    return torch.addmm(q[1][:, None] + x[1], q[0], x[0].T, alpha=-2).clamp_(min=0)


def _prepare_units(x: Tensor, centre: Tensor | None) -> _Rows:
    x = x.double()
    length = (x**2).sum(1, keepdim=True).sqrt()
    return x / torch.where(length > 0, length, 1.0), length


def _cosine(q: _Rows, x: _Rows) -> Tensor:
    return 1 - q[0] @ x[0].T


_SCHEMES: dict[str, tuple[Callable[[Tensor, Tensor | None], _Rows], Callable[[_Rows, _Rows], Tensor]]] = {
    "l1 uint8": (_prepare_bytes, _l1_bytes),
    "l1": (_prepare_floats, _l1_floats),
    "l2": (_prepare_squares, _l2_squared),
    "cosine": (_prepare_units, _cosine),
}
