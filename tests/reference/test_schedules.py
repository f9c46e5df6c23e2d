"""Schedules: their closed forms, with torch's LambdaLR, and at the right place after a resume."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from toolkit.reference.optimizers import SGD
from toolkit.reference.schedules import constant, cosine, exponential_decay, one_over_t, step_decay

SCHEDULES = {
    "constant": (constant, [1, 1, 1, 1, 1, 1]),
    "step": (partial(step_decay, every=2, factor=0.1), [1, 1, 0.1, 0.1, 0.01, 0.01]),
    "exponential": (partial(exponential_decay, rate=0.5), [math.exp(-0.5 * t) for t in range(6)]),
    "one over t": (partial(one_over_t, rate=0.5), [1, 2 / 3, 1 / 2, 2 / 5, 1 / 3, 2 / 7]),
    "cosine": (partial(cosine, n_steps=4), [1, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4, 0, 0]),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_closed_forms(name):
    schedule, expected = SCHEDULES[name]
    assert [schedule(step) for step in range(6)] == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert 0 <= schedule(10**9) <= 1


def test_the_default_settings():
    assert [step_decay(step) for step in (0, 9, 10, 19, 20, 30)] == [1.0, 1.0, 0.5, 0.5, 0.25, 0.125]
    assert exponential_decay(10) == pytest.approx(math.exp(-1), rel=1e-12)
    assert [one_over_t(step) for step in (10, 30)] == pytest.approx([1 / 2, 1 / 4], rel=1e-12)


def test_the_ends_of_the_ranges_are_allowed():
    assert [step_decay(step, every=1, factor=1) for step in (0, 7)] == [1.0, 1.0]
    assert [step_decay(step, every=1) for step in (0, 1, 2)] == [1.0, 0.5, 0.25]
    assert exponential_decay(7, rate=0) == one_over_t(7, rate=0) == 1.0
    assert [cosine(step, n_steps=1) for step in (0, 1, 2)] == [1.0, 0.0, 0.0]


def build(schedule):
    x = torch.nn.Parameter(torch.ones(2))
    optimizer = SGD([{"params": [x]}], lr=0.4)
    return optimizer, LambdaLR(optimizer, schedule)


def rates(optimizer, scheduler, n):
    found = []
    for _ in range(n):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_resumed_run_goes_on_at_the_right_place(name):
    schedule, expected = SCHEDULES[name]
    whole = rates(*build(schedule), 6)
    assert whole == pytest.approx([0.4 * factor for factor in expected], abs=1e-15)
    optimizer, scheduler = build(schedule)
    before = rates(optimizer, scheduler, 3)
    states = optimizer.state_dict(), scheduler.state_dict()
    optimizer, scheduler = build(schedule)
    optimizer.load_state_dict(states[0])
    scheduler.load_state_dict(states[1])
    assert before + rates(optimizer, scheduler, 3) == whole


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: constant(-1), "step ≥ 0, got -1"),
        (lambda: step_decay(-1), "step ≥ 0, got -1"),
        (lambda: exponential_decay(-1), "step ≥ 0, got -1"),
        (lambda: one_over_t(-1), "step ≥ 0, got -1"),
        (lambda: cosine(-1, n_steps=4), "step ≥ 0, got -1"),
        (lambda: exponential_decay(1, rate=-0.1), "rate ≥ 0, got -0.1"),
        (lambda: exponential_decay(1, rate=math.inf), "rate ≥ 0, got inf"),
        (lambda: one_over_t(1, rate=math.nan), "rate ≥ 0, got nan"),
        (lambda: step_decay(1, every=0), "every ≥ 1, got 0"),
        (lambda: step_decay(1, factor=1.5), "factor ≤ 1, got 1.5"),
        (lambda: step_decay(1, factor=0.0), "factor ≤ 1, got 0.0"),
        (lambda: cosine(1, n_steps=0), "n_steps ≥ 1, got 0"),
    ],
)
def test_impossible_settings_are_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()
