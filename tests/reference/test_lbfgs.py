"""L-BFGS: the two loops are the BFGS matrix, steps worked by hand, and the minima that torch's own finds."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.against import numbers
from toolkit.reference.lbfgs import LBFGS, two_loop


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def parameter(*values):
    return torch.nn.Parameter(vector(*values))


@given(dim=st.integers(1, 6), pairs=st.integers(1, 5), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_two_loops_are_the_bfgs_matrix(dim, pairs, seed):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    hessian = root @ root.T + torch.eye(dim)
    steps = [torch.randn(dim, generator=generator, dtype=torch.float64) for _ in range(pairs)]
    changes = [hessian @ step for step in steps]
    gradient = torch.randn(dim, generator=generator, dtype=torch.float64)
    identity = torch.eye(dim, dtype=torch.float64)
    inverse = identity * (steps[-1] @ changes[-1]) / (changes[-1] @ changes[-1])
    for s, y in zip(steps, changes, strict=True):
        rho = 1 / (s @ y)
        inverse = (identity - rho * torch.outer(s, y)) @ inverse @ (identity - rho * torch.outer(y, s))
        inverse += rho * torch.outer(s, s)
    expected = inverse @ gradient
    assert (two_loop(gradient, steps, changes) - expected).norm() <= 1e-9 * expected.norm()


def rosenbrock(x):
    return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2


def descend(optimizer, parameters, function, n):
    losses = []

    def closure():
        optimizer.zero_grad()
        loss = function(*parameters)
        loss.backward()
        return loss

    for _ in range(n):
        losses.append(float(torch.as_tensor(optimizer.step(closure)).detach()))
    return losses


def test_lbfgs_finds_the_bottom_of_a_bent_valley():
    x = torch.nn.Parameter(torch.tensor([-1.2, 1.0], dtype=torch.float64))
    losses = descend(LBFGS([x]), [x], rosenbrock, 60)
    assert (x - 1).abs().max() < 1e-8
    assert all(after <= before for before, after in itertools.pairwise(losses))


def test_lbfgs_agrees_with_torchs_on_logistic_regression():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 5, generator=generator, dtype=torch.float64)
    labels = (inputs[:, 0] + torch.randn(60, generator=generator, dtype=torch.float64) > 0).double()

    def function(w, b):
        scores = inputs @ w + b
        return (scores.exp().log1p() - labels * scores).mean() + 0.01 * (w**2).sum()

    found = []
    for build in (
        LBFGS,
        lambda p: torch.optim.LBFGS(
            p, max_iter=50, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
        ),
    ):
        parameters = [torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in (5, ())]
        descend(build(parameters), parameters, function, 60)
        found.append(torch.cat([one.detach().reshape(-1) for one in parameters]))
    assert (found[0] - found[1]).abs().max() < 1e-6


def test_lbfgs_leaves_weights_that_no_step_betters_and_goes_on_from_its_state():
    x = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = LBFGS([x])
    calls = iter(range(1000))

    def worse():
        x.grad = torch.ones_like(x)
        return torch.tensor(float(next(calls)))

    assert optimizer.step(worse) == 0.0
    assert x.item() == 1.0
    y = torch.nn.Parameter(torch.tensor([-1.2, 1.0], dtype=torch.float64))
    first = LBFGS([y])
    descend(first, [y], rosenbrock, 8)
    z = torch.nn.Parameter(y.detach().clone())
    second = LBFGS([z])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert descend(first, [y], rosenbrock, 8) == descend(second, [z], rosenbrock, 8)
    assert torch.equal(y, z)


def test_without_history_the_gradient_itself_comes_back_as_a_copy():
    gradient = vector(3, -4)
    result = two_loop(gradient, [], [])
    assert torch.equal(result, gradient) and result is not gradient


# The loss is Σ x², the gradient 2x: the first t is min(lr, lr / ‖2x‖), and x − 2t x the point that it leads to.
@pytest.mark.parametrize(
    ("x", "lr", "expected", "calls"),
    [
        ((1.5, 2.0), 1.0, (0.9, 1.2), 2),  # ‖2x‖ = 5, so t = 1/5
        ((0.15, 0.2), 0.25, (0.075, 0.1), 2),  # ‖2x‖ = 1/2, so t = lr
        ((0.15, 0.2), 1.0, (0.0, 0.0), 3),  # t = 1 leads to −x, which is no better, t = 1/2 to the minimum
        ((1.0,), 4.0, (0.0,), 4),  # t = 2 leads to −3x, t = 1 to −x
        ((1.0,), 1e-5, (1 - 1e-5,), 2),  # a short step owes only what the slope promises for its length
        ((1.0,), 1.99, (-0.99,), 2),  # t = 0.995: little better, but by more than 1e-4 of what the slope promises
    ],
)
def test_first_steps_by_hand(x, lr, expected, calls):
    x = parameter(*x)
    before, seen = float((x.detach() ** 2).sum()), []

    def closure():
        x.grad = 2 * x.detach()
        seen.append(float((x.detach() ** 2).sum()))
        return seen[-1]

    assert LBFGS([x], lr).step(closure) == before
    assert x.tolist() == pytest.approx(expected, abs=1e-15) and len(seen) == calls


def scripted(x, *answers):
    """Return a closure that gives these losses and gradients in turn, the last one for ever."""
    left = list(answers)

    def closure():
        loss, gradient = left.pop(0) if len(left) > 1 else left[0]
        x.grad = vector(*gradient)
        return loss

    return closure


def test_a_straight_slope_has_no_curvature_to_remember():
    x = parameter(0.0)
    optimizer = LBFGS([x])
    assert descend(optimizer, [x], lambda x: x.sum(), 3) == [0.0, -1.0, -2.0]
    assert x.item() == -3.0 and optimizer.state[x]["steps"] == []


def test_a_step_whose_gain_is_lost_to_rounding_is_taken():
    x = parameter(0.0)
    assert LBFGS([x]).step(scripted(x, (1.0, (1e-12,)))) == 1.0
    assert x.item() == -1e-12


@pytest.mark.parametrize(("cosine", "kept"), [(-0.5, 0), (0.0, 0), (1e-11, 0), (1e-9, 1), (0.5, 1)])
@pytest.mark.parametrize(("lr", "size"), [(1.0, 3.0), (1e-3, 3.0), (1.0, 1e-6)])
def test_a_pair_counts_if_the_gradient_grows_along_it_for_sure(lr, size, cosine, kept):
    """The first step is (−lr, 0); the gradient changes by `size` in a direction of that cosine with it."""
    x = parameter(0.0, 0.0)
    optimizer = LBFGS([x], lr)
    change = vector(-cosine, math.sqrt(1 - cosine**2)) * size
    optimizer.step(scripted(x, (0.0, (1.0, 0.0)), (-1.0, (vector(1, 0) + change).tolist())))
    state = optimizer.state[x]
    assert x.tolist() == [-lr, 0.0] and len(state["steps"]) == len(state["changes"]) == kept
    if kept:
        assert state["steps"][0].tolist() == [-lr, 0.0]
        assert state["changes"][0].tolist() == pytest.approx(change.tolist(), abs=1e-15)


@pytest.mark.parametrize("history", [1, 2, 5])
def test_the_last_pairs_are_kept_in_order(history):
    """They are the moves of the weights and of the gradient, sinh x, of the convex loss Σ cosh x."""
    x = parameter(-2.0, 1.0, 0.5)
    optimizer = LBFGS([x], history=history)
    places = [x.detach().clone()]
    for _ in range(6):
        descend(optimizer, [x], lambda x: x.cosh().sum(), 1)
        places.append(x.detach().clone())
    pairs = list(itertools.pairwise(places))[-history:]
    state = optimizer.state[x]
    assert len(state["steps"]) == len(state["changes"]) == history
    for step, change, (before, after) in zip(state["steps"], state["changes"], pairs, strict=True):
        assert torch.equal(step, after - before)
        assert change.tolist() == pytest.approx((after.sinh() - before.sinh()).tolist(), abs=1e-12)


def test_the_default_settings():
    assert LBFGS([parameter(1.0)]).defaults == {"lr": 1.0, "history": 10}


def test_later_steps_start_at_lr_and_follow_the_curvature():
    """Of the loss 3x² the first pair gives 1/6 as the inverse of the curvature: lr 1 leads straight to the minimum."""
    for lr, left in ((1.0, 0.0), (0.5, 0.5), (0.25, 0.75)):
        x = parameter(10.0)
        optimizer = LBFGS([x], lr)
        descend(optimizer, [x], lambda x: (3 * x**2).sum(), 1)
        assert x.item() == pytest.approx(10 - lr)
        descend(optimizer, [x], lambda x: (3 * x**2).sum(), 1)
        assert x.item() == pytest.approx((10 - lr) * left, abs=1e-12)


def test_a_step_that_no_rate_betters_forgets_the_curvature():
    x = parameter(3.0)
    optimizer = LBFGS([x])
    descend(optimizer, [x], lambda x: (x**2).sum(), 1)
    state, before = optimizer.state[x], x.item()
    assert len(state["steps"]) == 1
    losses = itertools.count()
    calls = []

    def worse():
        calls.append(x.item())
        x.grad = torch.ones_like(x)
        return float(next(losses))

    assert optimizer.step(worse) == 0.0
    assert x.item() == before and state["steps"] == state["changes"] == []
    assert len(calls) == 1 + 25, "the start and 25 halves of the step"
    assert calls[2] - before == pytest.approx((calls[1] - before) / 2)


@pytest.mark.parametrize(("loss", "gradient"), [(math.nan, 1.0), (math.inf, 1.0), (2.0, 0.0)])
def test_nothing_moves_without_a_finite_loss_or_a_gradient(loss, gradient):
    x = parameter(3.0)
    calls = []

    def closure():
        calls.append(x.item())
        x.grad = vector(gradient)
        return loss

    assert LBFGS([x]).step(closure) == pytest.approx(loss, nan_ok=True)
    assert x.item() == 3.0 and calls == [3.0]


def test_a_parameter_without_a_gradient_stays_and_shapes_come_back():
    a, unused, b = parameter(1.0, 2.0), parameter(7.0), torch.nn.Parameter(numbers(2, 3))
    target = numbers(2, 3, seed=1)
    optimizer = LBFGS([a, unused, b])
    descend(optimizer, [a, b], lambda a, b: ((a - 5) ** 2).sum() + 4 * ((b - target) ** 2).sum(), 20)
    assert unused.tolist() == [7.0]
    assert (a - 5).abs().max() < 1e-8 and (b - target).abs().max() < 1e-8


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda p: LBFGS(p, lr=0), "lr > 0, got 0"),
        (lambda p: LBFGS(p, lr=math.inf), "lr > 0, got inf"),
        (lambda p: LBFGS(p, lr=math.nan), "lr > 0, got nan"),
        (lambda p: LBFGS(p, history=0), "history ≥ 1, got 0"),
        (lambda p: LBFGS([{"params": p[:1]}, {"params": p[1:]}]), "one group of parameters, got 2"),
        (lambda p: LBFGS(p).step(), "closure"),
        (lambda p: two_loop(torch.ones(2), [torch.ones(2)], []), "as many changes as steps, got 0 and 1"),
        (lambda p: two_loop(torch.ones(2), [torch.ones(2)], [-torch.ones(2)]), "s·y > 0, got -2"),
        (lambda p: two_loop(torch.ones(2), [vector(1, 0)], [vector(0, 1)]), "s·y > 0, got 0"),
    ],
)
def test_impossible_settings_are_refused(build, said):
    with pytest.raises(ValueError, match=said):
        build([parameter(1.0), parameter(2.0)])
