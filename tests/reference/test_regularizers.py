"""Weight regularisation: the penalties and their gradients, what L2 prefers and what L1 removes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.against import assert_close, autograd, numbers
from toolkit.reference import regularizers as room

PAIRS = [
    (room.l2, room.l2_gradient, lambda w, s: s * w.pow(2).sum()),
    (room.l1, room.l1_gradient, lambda w, s: s * torch.linalg.vector_norm(w, 1)),
    (
        lambda w, s: room.elastic_net(w, s, 0.3),
        lambda w, s: room.elastic_net_gradient(w, s, 0.3),
        lambda w, s: s * (0.3 * torch.linalg.vector_norm(w, 1) + 0.7 * w.pow(2).sum()),
    ),
]


@pytest.mark.parametrize(("penalty", "gradient", "formula"), PAIRS, ids=["l2", "l1", "elastic net"])
@settings(max_examples=30, deadline=None)
@given(shape=st.lists(st.integers(1, 4), max_size=3), strength=st.sampled_from([0.0, 1e-4, 0.5, 3.0]))
def test_penalty_and_gradient(penalty, gradient, formula, shape, strength):
    weights = numbers(*shape)
    assert_close(penalty(weights, strength), formula(weights, strength))
    (expected,) = autograd(lambda w: formula(w, strength), None, weights)
    assert_close(gradient(weights, strength), expected)
    assert_close(autograd(lambda w: penalty(w, strength), None, weights)[0], expected)


def test_the_gradient_at_zero_is_zero():
    for _, gradient, _ in PAIRS:
        assert not gradient(torch.zeros(3), 1.0).any()


def test_the_elastic_net_has_both_ends_and_the_middle():
    weights = numbers(3, 4)
    assert_close(room.elastic_net(weights, 0.2, 1.0), room.l1(weights, 0.2))
    assert_close(room.elastic_net(weights, 0.2, 0.0), room.l2(weights, 0.2))
    assert_close(room.elastic_net(weights, 0.2), room.elastic_net(weights, 0.2, 0.5))
    assert_close(room.elastic_net_gradient(weights, 0.2), room.elastic_net_gradient(weights, 0.2, 0.5))


def test_l2_prefers_spread_weights_of_the_same_data_loss():
    x = torch.ones(4, dtype=torch.float64)
    one, spread = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64), torch.full((4,), 0.25, dtype=torch.float64)
    assert one @ x == spread @ x == 1
    assert (room.l2(one, 1.0), room.l2(spread, 1.0)) == (1.0, 0.25)
    assert room.l1(one, 1.0) == room.l1(spread, 1.0) == 1.0, "L1 does not care"


@settings(max_examples=40, deadline=None)
@given(shape=st.lists(st.integers(1, 4), max_size=3), amount=st.sampled_from([0.0, 0.1, 0.7, 5.0]))
def test_soft_threshold_is_torchs_softshrink(shape, amount):
    weights = numbers(*shape)
    weights = torch.cat([weights.flatten(), torch.tensor([amount, -amount], dtype=torch.float64)])  # the corners, too
    theirs = lambda w: torch.nn.functional.softshrink(w, amount)  # noqa: E731
    assert_close(room.soft_threshold(weights, amount), theirs(weights))
    ours = autograd(lambda w: room.soft_threshold(w, amount), torch.ones_like(weights), weights)
    assert_close(ours[0], autograd(theirs, torch.ones_like(weights), weights)[0])


def test_soft_threshold_solves_its_problem():
    """½ (z − w)² + amount · |z| is smallest at the result: no z of a fine grid is better."""
    grid = torch.linspace(-4, 4, 8001, dtype=torch.float64)
    for w in (-3.0, -0.5, 0.0, 0.4, 0.5, 2.2):
        best = float(room.soft_threshold(torch.tensor(w, dtype=torch.float64), 0.5))
        cost = 0.5 * (grid - w) ** 2 + 0.5 * grid.abs()
        assert 0.5 * (best - w) ** 2 + 0.5 * abs(best) <= float(cost.min()) + 1e-12


def test_soft_threshold_keeps_nan_and_dtype():
    assert room.soft_threshold(torch.tensor([math.nan, 2.0]), 1.0).isnan().tolist() == [True, False]
    assert room.soft_threshold(torch.tensor([2.0, -0.5]), 1.0).tolist() == [1.0, 0.0]


def test_proximal_steps_drive_a_planted_irrelevant_weight_to_exactly_zero():
    x = numbers(200, 4)
    truth = torch.tensor([2.0, 0.0, -1.0, 0.5], dtype=torch.float64)
    y = x @ truth + 0.1 * numbers(200, seed=1)
    results = {}
    for name in ("none", "l1", "l2"):
        weights, rate, strength = torch.ones(4, dtype=torch.float64), 0.1, 0.1
        for _ in range(300):
            gradient = x.T @ (x @ weights - y) / len(x)
            if name == "l2":
                gradient = gradient + room.l2_gradient(weights, strength)
            weights = weights - rate * gradient
            if name == "l1":
                weights = room.soft_threshold(weights, rate * strength)
        results[name] = weights
    assert (results["l1"] == 0).tolist() == [False, True, False, False]
    assert (results["l1"] - truth).abs().max() < 0.2 and torch.equal(results["l1"].sign(), truth.sign())
    assert results["none"].all() and results["l2"].all(), "without it, and with L2, none is exactly 0"
    assert results["l2"].norm() < results["none"].norm()


def test_a_larger_strength_costs_more():
    weights = numbers(5)
    for penalty, _, _ in PAIRS:
        costs = [float(penalty(weights, strength)) for strength in (0.0, 0.1, 1.0)]
        assert costs[0] == 0 and costs == sorted(set(costs))


@pytest.mark.parametrize("strength", [-1e-3, math.inf, math.nan])
def test_an_impossible_strength_is_refused(strength):
    functions = [function for pair in PAIRS for function in pair[:2]]
    for function in [*functions, room.soft_threshold]:
        with pytest.raises(ValueError, match=f"expected a finite strength ≥ 0, got (-0.00|{strength})"):
            function(torch.ones(2), strength)


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_an_impossible_share_is_refused(share):
    for function in (room.elastic_net, room.elastic_net_gradient):
        with pytest.raises(ValueError, match=f"expected 0 ≤ l1_share ≤ 1, got {share}"):
            function(torch.ones(2), 1.0, share)
