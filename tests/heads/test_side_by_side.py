"""minimise_side_by_side: SciPy's own minima, all functions asked at once, and an error ends everything."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from scipy.optimize import minimize, rosen, rosen_der

from toolkit.heads.side_by_side import minimise_side_by_side

OPTIONS = {"maxiter": 200, "ftol": 1e-12, "gtol": 1e-9}


def parabolas(bends: np.ndarray, calls: list[list[int]]):
    """Return what evaluates Σ bend · (x − number)² for functions of these numbers."""

    def evaluate(numbers: list[int], at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        calls.append(list(numbers))
        off = at - np.array(numbers)[:, None]
        some = bends[numbers]
        return (some * off**2).sum(axis=1), 2 * some * off

    return evaluate


def test_each_function_ends_at_its_own_minimum_and_all_are_asked_at_once():
    bends = np.array([[1.0, 1.0], [1.0, 100.0], [1.0, 1e4]])
    calls: list[list[int]] = []
    found = minimise_side_by_side(parabolas(bends, calls), 3, 2, **OPTIONS)
    assert found == pytest.approx(np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]), abs=1e-4)
    assert calls[0] == [0, 1, 2] and calls[-1] == [2], "those that are at their end are asked no more"
    again: list[list[int]] = []
    assert np.array_equal(minimise_side_by_side(parabolas(bends, again), 3, 2, **OPTIONS), found)
    assert again == calls


def test_it_takes_scipys_own_steps():
    seen: list[np.ndarray] = []

    def evaluate(numbers: list[int], at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if 1 in numbers:
            seen.append(at[numbers.index(1)].copy())
        return np.array([rosen(x) for x in at]) * np.array(numbers), np.array(
            [rosen_der(x) * number for number, x in zip(numbers, at, strict=True)]
        )

    found = minimise_side_by_side(evaluate, 3, 4, **OPTIONS)
    expected: list[np.ndarray] = []
    best = minimize(
        lambda x: expected.append(x.copy()) or rosen(x), np.zeros(4), jac=rosen_der, method="L-BFGS-B", options=OPTIONS
    )
    assert np.array_equal(found[1], best.x)
    assert len(seen) == len(expected) and all(map(np.array_equal, seen, expected))


@pytest.mark.parametrize("n_functions", [1, 5])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_the_evaluation_raises_ends_all_threads(n_functions, error):
    calls = []

    def evaluate(numbers: list[int], at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        calls.append(1)
        if len(calls) == 3:
            raise error("enough")
        return np.cosh(at - 3).sum(axis=1), np.sinh(at - 3)

    before = threading.active_count()
    with pytest.raises(error, match="enough"):
        minimise_side_by_side(evaluate, n_functions, 2, **OPTIONS)
    assert threading.active_count() == before


@pytest.mark.parametrize("n_functions", [1, 3])
def test_what_scipy_raises_is_the_callers(n_functions):
    before = threading.active_count()
    with pytest.raises(ValueError, match="could not convert"):
        minimise_side_by_side(lambda numbers, at: (at[:, 0], np.full(at.shape, "no")), n_functions, 2, **OPTIONS)
    assert threading.active_count() == before


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), KeyboardInterrupt()])
def test_threads_that_cannot_all_start_leave_none_behind(error, monkeypatch):
    own, started = threading.Thread.start, []

    def start(thread):
        if len(started) == 2:
            raise error
        started.append(own(thread))

    before = threading.active_count()
    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(type(error)):
        minimise_side_by_side(parabolas(np.ones((4, 2)), []), 4, 2, **OPTIONS)
    assert threading.active_count() == before
