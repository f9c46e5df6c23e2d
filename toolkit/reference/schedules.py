"""Learning-rate decay: the factor on the first learning rate, in closed form from the number of the step.

`step` counts from 0, steps or epochs as the caller likes. Nothing but that number is remembered, so a resumed run goes
on at the right place: `LambdaLR(optimizer, functools.partial(one_over_t, rate=0.1))` keeps it in its state dict. A
negative step and a setting out of its range raise ValueError.
"""

from __future__ import annotations

import math


def constant(step: int) -> float:
    """Return 1.

    >>> constant(1000)
    1.0
    """
    _check_step(step)
    return 1.0


def step_decay(step: int, every: int = 10, factor: float = 0.5) -> float:
    """Return factor^⌊step / every⌋: after every so many steps the rate falls at once; every ≥ 1, 0 < factor ≤ 1.

    Source: notes: Parameter update, Step Decay.

    >>> [step_decay(step, every=2) for step in range(5)]
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """
    _check_step(step)
    if every < 1:
        raise ValueError(f"expected every ≥ 1, got {every}")
    if not 0 < factor <= 1:
        raise ValueError(f"expected 0 < factor ≤ 1, got {factor}")
    return float(factor ** (step // every))


def exponential_decay(step: int, rate: float = 0.1) -> float:
    """Return exp(−rate · step), rate ≥ 0.

    Source: notes: Parameter update, Exponential Decay.

    >>> round(exponential_decay(10, rate=0.1), 4)
    0.3679
    """
    _check_step(step)
    _check_rate(rate)
    return math.exp(-rate * step)


def one_over_t(step: int, rate: float = 0.1) -> float:
    """Return 1 / (1 + rate · step), rate ≥ 0.

    Source: notes: Parameter update, 1/t Decay.

    >>> [one_over_t(step, rate=1.0) for step in (0, 1, 3)]
    [1.0, 0.5, 0.25]
    """
    _check_step(step)
    _check_rate(rate)
    return 1 / (1 + rate * step)


def cosine(step: int, n_steps: int) -> float:
    """Return (1 + cos(π step / n_steps)) / 2, and 0 from n_steps ≥ 1 on.

    Source: Loshchilov & Hutter 2017 (one period); it is not in the notes.

    >>> [round(cosine(step, 4), 4) for step in (0, 2, 4, 9)]
    [1.0, 0.5, 0.0, 0.0]
    """
    _check_step(step)
    if n_steps < 1:
        raise ValueError(f"expected n_steps ≥ 1, got {n_steps}")
    return (1 + math.cos(math.pi * min(step / n_steps, 1))) / 2


def _check_step(step: int) -> None:
    if step < 0:
        raise ValueError(f"expected step ≥ 0, got {step}")


def _check_rate(rate: float) -> None:
    if not 0 <= rate < math.inf:
        raise ValueError(f"expected a finite rate ≥ 0, got {rate}")
