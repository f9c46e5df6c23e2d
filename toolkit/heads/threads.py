"""One thread where the matrices are small."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

ALONE_UP_TO = 10_000_000  # numbers in the features


@contextmanager
def few_threads(n_rows: int, n_columns: int) -> Iterator[None]:
    """Keep linear algebra on one thread for features of up to 10 million numbers.

    There a second thread gains little where it has a core of its own, and where it must share one the first waits for
    it: a hundred times slower has been seen, on two busy cores.
    """

    with threadpool_limits(1 if n_rows * n_columns <= ALONE_UP_TO else None):
        yield
