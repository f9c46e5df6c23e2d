"""Rows of features, in memory or on disk, gone through in blocks: a store is never read whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import DataError

BLOCK_ROWS = 1024  # 2,000 features of so many rows are 8 MB, 16 in float64; twice as many are no faster
SHORTEST = 1e-12  # below, a tap has no direction and stays as it is; torch's normalize has the same limit


class Rows(Protocol):
    """Features float32 (N, D): an array, a mapped file, or rows that a store reads when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: Any, /) -> Any: ...


def scratch_of(rows: Rows) -> Path | None:
    """Return the folder in which rows may be copied to a file without a name, of those that come from a store."""
    found: Path | None = getattr(rows, "scratch", None)
    return found


@dataclass(frozen=True, eq=False)
class Picked:
    """Some rows and columns of other Rows; nothing is read before it is asked for.

    rows: int64 row numbers, None for all of them. columns: a slice or int64 column numbers.
    """

    source: Rows
    rows: NDArray[np.int64] | None = None
    columns: slice | NDArray[np.int64] = field(default_factory=lambda: slice(None))

    @property
    def scratch(self) -> Path | None:
        """Where the source's rows may be copied to."""
        return scratch_of(self.source)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D) of what is picked."""
        width = len(np.arange(self.source.shape[1])[self.columns])
        return (self.source.shape[0] if self.rows is None else len(self.rows), width)

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        block = self.source[rows if self.rows is None else self.rows[rows]]
        picked: NDArray[np.float32] = np.asarray(block, dtype=np.float32)[:, self.columns]
        return picked


def spans(n_rows: int, size: int = BLOCK_ROWS) -> Iterator[slice]:
    """Yield slices of at most `size` rows that cover `n_rows`."""
    for start in range(0, n_rows, size):
        yield slice(start, min(start + size, n_rows))


def tap_columns(widths: Sequence[int], taps: Sequence[int]) -> slice | NDArray[np.int64]:
    """Return the columns of some taps, as a slice where they stand side by side: it reads without a copy."""
    ends = np.cumsum(widths)
    columns = np.concatenate([np.arange(ends[tap] - widths[tap], ends[tap]) for tap in taps])
    if (np.diff(columns) == 1).all():
        return slice(int(columns[0]), int(columns[-1]) + 1)
    return columns


def unit_rows(block: NDArray[np.float32], widths: Sequence[int]) -> NDArray[np.float32]:
    """Return float32 (n, D) with every tap's part divided by its length, as LinearHead sees it."""
    parts = np.split(np.asarray(block, dtype=np.float32), np.cumsum(widths)[:-1], axis=1)
    squares = np.stack([np.einsum("nd,nd->n", part, part) for part in parts], axis=1)
    inverse = np.float32(1.0) / np.maximum(np.sqrt(squares), np.float32(SHORTEST))
    unit: NDArray[np.float32] = np.asarray(block, dtype=np.float32) * np.repeat(inverse, widths, axis=1)
    return unit


def check_finite(numbers: NDArray[Any]) -> None:
    """Raise DataError where features, or what was made of them, are not finite."""
    if not np.isfinite(numbers).all():
        raise DataError("some features are not finite numbers: the backbone's weights or its input are broken")
