"""Threads for linear algebra: one for what is too small, or too thin, for several; several such side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, TypeVar

import torch
from threadpoolctl import ThreadpoolController

Item = TypeVar("Item")
Result = TypeVar("Result")
ALONE_UP_TO = 10_000_000  # numbers in the features


def few_threads(n_rows: int, n_columns: int) -> AbstractContextManager[Any]:
    """Keep linear algebra on one thread for features of up to 10 million numbers.

    There a second thread gains little where it has a core of its own, and where it must share one the first waits for
    it: a hundred times slower has been seen, on two busy cores.
    """
    return one_thread() if is_for_one_thread(n_rows, n_columns) else nullcontext()


def is_for_one_thread(n_rows: int, n_columns: int) -> bool:
    """Say whether features are too small for linear algebra by several threads."""
    return n_rows * n_columns <= ALONE_UP_TO


def one_thread() -> AbstractContextManager[Any]:
    """Keep the linear algebra of NumPy, SciPy and torch on one thread."""
    limit: AbstractContextManager[Any] = _controller().limit(limits=1)
    return limit


@cache
def _controller() -> ThreadpoolController:
    """Find the libraries once, which takes some milliseconds; SciPy's must be loaded by then."""
    import scipy.optimize  # noqa: F401

    return ThreadpoolController()


def at_once(function: Callable[[Item], Result], items: Iterable[Item], n_threads: int) -> list[Result]:
    """Return [function(item) …], computed by up to so many threads, each of whose linear algebra stays on it.

    Unlike a BLAS's own threads these wait for each other only once, so that a busy core costs no more than its share.
    """
    given = list(items)
    if min(n_threads, len(given)) < 2:
        return [function(item) for item in given]
    with one_thread(), lonely_threads(min(n_threads, len(given))) as pool:
        return list(pool.map(function, given))


def lonely_threads(n_threads: int) -> ThreadPoolExecutor:
    """Return a pool whose threads keep their linear algebra to themselves, as long as `one_thread` holds."""
    return ThreadPoolExecutor(n_threads, initializer=_stay_one_thread)


def _stay_one_thread() -> None:
    """Keep the linear algebra of this thread on it: OpenMP's number is that of a thread, not of the process."""
    torch.get_num_threads()  # torch sets it where it is first asked in a thread
    one_thread()
