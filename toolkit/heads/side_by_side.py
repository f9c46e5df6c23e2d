"""minimise_side_by_side: several functions minimised in lockstep, so that all of them can be evaluated at once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Evaluate = Callable[[list[int], Floats], tuple[Floats, Floats]]


def minimise_side_by_side(evaluate: Evaluate, n_functions: int, n_variables: int, **options: Any) -> Floats:
    """Return float64 (B, n): where SciPy's L-BFGS-B, from zeros, finds the minimum of each of B functions.

    evaluate: (numbers of b of the functions, ascending, and float64 (b, n), where each is asked for) → losses (b,) and
    gradients (b, n). It is called with all functions that are not at their end yet, by the calling thread alone: a
    product with the columns of several costs hardly more than one with those of a single function. Each minimisation
    is SciPy's own, in a thread that waits for the others' questions; which function is asked together with which
    depends on how many steps each takes, not on the clock. options: those of SciPy's method.

    What `evaluate` raises, or an interrupt, ends all of them and is raised.
    """
    if n_functions == 1:
        return _minimum(lambda at: _only(*evaluate([0], at[None])), n_variables, options)[None]
    questions: SimpleQueue[tuple[int, Floats | BaseException | None]] = SimpleQueue()
    answers: list[SimpleQueue[tuple[float, Floats] | None]] = [SimpleQueue() for _ in range(n_functions)]
    found = np.zeros((n_functions, n_variables))

    def work(number: int) -> None:
        def ask(at: Floats) -> tuple[float, Floats]:
            questions.put((number, at.copy()))
            answer = answers[number].get()
            if answer is None:
                raise _Stopped
            return answer

        try:
            found[number] = _minimum(ask, n_variables, options)
        except _Stopped:
            return
        except BaseException as error:  # it is the caller's to know of it
            questions.put((number, error))
        else:
            questions.put((number, None))

    threads = [Thread(target=work, args=(number,), daemon=True) for number in range(n_functions)]
    running = set(range(n_functions))
    try:
        for thread in threads:
            thread.start()
        while running:
            asked = {}
            for _ in range(len(running)):
                number, at = questions.get()
                if isinstance(at, BaseException):
                    raise at
                if at is None:
                    running.remove(number)
                else:
                    asked[number] = at
            if asked:
                numbers = sorted(asked)
                losses, gradients = evaluate(numbers, np.stack([asked[number] for number in numbers]))
                for number, loss, gradient in zip(numbers, losses, gradients, strict=True):
                    answers[number].put((float(loss), gradient))
    finally:
        for answer in answers:
            answer.put(None)
        for thread in threads:
            with suppress(RuntimeError):  # it was interrupted before it could start, or while it did
                thread.join()
    return found


class _Stopped(Exception):
    """The other minimisations have ended with an error; this one has nobody left to answer it."""


def _minimum(function: Callable[[Floats], tuple[float, Floats]], n_variables: int, options: dict[str, Any]) -> Floats:
    from scipy.optimize import minimize

    found: Floats = minimize(function, np.zeros(n_variables), jac=True, method="L-BFGS-B", options=options).x
    return found


def _only(losses: Floats, gradients: Floats) -> tuple[float, Floats]:
    return float(losses[0]), gradients[0]
