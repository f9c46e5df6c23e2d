"""One thread for linear algebra that is too small, or too thin, for several."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

from threadpoolctl import ThreadpoolController

ALONE_UP_TO = 10_000_000  # numbers in the features


def few_threads(n_rows: int, n_columns: int) -> AbstractContextManager[Any]:
    """Keep linear algebra on one thread for features of up to 10 million numbers.

    There a second thread gains little where it has a core of its own, and where it must share one the first waits for
    it: a hundred times slower has been seen, on two busy cores.
    """
    return one_thread() if n_rows * n_columns <= ALONE_UP_TO else nullcontext()


def one_thread() -> AbstractContextManager[Any]:
    """Keep the linear algebra of NumPy, SciPy and torch on one thread."""
    limit: AbstractContextManager[Any] = _controller().limit(limits=1)
    return limit


@cache
def _controller() -> ThreadpoolController:
    """Find the libraries once, which takes some milliseconds; SciPy's must be loaded by then."""
    import scipy.optimize  # noqa: F401

    return ThreadpoolController()
