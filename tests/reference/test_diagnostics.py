"""Diagnostics: known layers' statistics, gradients as autograd keeps them, and a gradient that is wrong."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from toolkit.reference.diagnostics import (
    Watch,
    activation_statistics,
    gradient_check,
    numerical_gradient,
    update_to_weight_ratio,
)
from toolkit.reference.mlp import MLP


def test_statistics_of_every_layer_and_of_its_gradient():
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 2)).double()
    x = torch.randn(9, 4, dtype=torch.float64)
    with Watch(net) as watch:
        net(x).pow(2).sum().backward()
    found = {one.name: one for one in watch.statistics()}
    assert list(found) == ["0", "1", "2", "3", "4"]
    kept, value = [], x
    for layer in (*net[:3], nn.ReLU(), net[4]):
        value = layer(value)
        value.retain_grad()
        kept.append(value)
    value.pow(2).sum().backward()
    for one, expected in zip(found.values(), kept, strict=True):
        assert one.mean == pytest.approx(expected.mean().item())
        assert one.std == pytest.approx(expected.std(correction=0).item())
        assert one.grad_mean == pytest.approx(expected.grad.mean().item())
        assert one.grad_std == pytest.approx(expected.grad.std(correction=0).item())
    assert found["1"].saturated is not None and found["1"].dead is None
    assert found["3"].dead is not None and found["3"].saturated is None
    assert found["0"].dead is found["0"].saturated is None


def test_saturated_and_dead_are_counted():
    assert activation_statistics("", "Tanh", torch.tensor([[0.98, -0.98], [0.96, 0.0]])).saturated == 0.5
    assert activation_statistics("", "Sigmoid", torch.tensor([[0.99, 0.01], [0.98, 0.5]])).saturated == 0.5
    # The slope 1 − y² of tanh is below 0.06 beyond ±0.97; a sigmoid is half as high, around 0.5.
    values = torch.tensor([-1.0, -0.99, -0.98, -0.97, -0.96, -0.5, 0.0, 0.5, 0.96, 0.97, 1.0], dtype=torch.float64)
    for kind in ("Tanh", "Hardtanh"):
        assert activation_statistics("", kind, values).saturated == 4 / 11
    values = torch.tensor([0.001, 0.005, 0.01, 0.02, 0.5, 0.98, 0.99])
    assert activation_statistics("", "Sigmoid", values).saturated == 4 / 7
    # By channel: one that is 0 at every place of every image.
    maps = torch.ones(2, 4, 3, 3)
    maps[:, 1], maps[0, 2], maps[:, 3, 0] = 0, 0, 0
    assert activation_statistics("", "ReLU", maps).dead == 0.25
    assert activation_statistics("", "ReLU", torch.zeros(1, 5)).dead == 1.0
    assert activation_statistics("", "ReLU", torch.tensor([0.0, 2.0, 0.0])).dead == 0.0, "one unit, three inputs"
    assert activation_statistics("", "ReLU6", torch.zeros(3)).dead == 1.0
    assert activation_statistics("", "Linear", torch.zeros(1, 5)).dead is None


def test_the_reference_nets_layers_are_known_too():
    for activation, field in (("tanh", "saturated"), ("sigmoid", "saturated"), ("relu", "dead")):
        net = MLP((3, 4, 2), activation=activation)
        with Watch(net) as watch:
            net(100 * torch.ones(2, 3))
        values = [getattr(one, field) for one in watch.statistics()]
        assert sum(value is not None for value in values) == 1
        assert all(one.grad_std is None for one in watch.statistics())


def test_watching_changes_nothing_and_ends():
    net = MLP((3, 8, 2))
    x = torch.randn(5, 3)
    expected = net(x)
    with Watch(net) as watch:
        assert torch.equal(net(x), expected)
        net(2 * x)  # starts afresh
    before = watch.statistics()
    assert len(before) == 3
    net(x)
    assert watch.statistics() == before and not net._forward_hooks and not net._forward_pre_hooks
    with pytest.raises(ValueError), watch:
        net(torch.ones(5, 4))
    assert all(not module._forward_hooks for module in net.modules())


def test_a_layer_that_runs_twice_is_named_twice_and_one_can_be_picked():
    shared = nn.Linear(3, 3)
    net = nn.Sequential(shared, nn.Tanh(), shared)
    with Watch(net) as watch:
        net(torch.ones(2, 3)).sum().backward()
    assert [one.name for one in watch.statistics()] == ["0", "1", "0#2"]
    with Watch(net, ["1"]) as watch:
        net(torch.ones(2, 3))
    assert [one.name for one in watch.statistics()] == ["1"]


def test_a_new_forward_pass_forgets_the_gradients_of_the_last():
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
    with Watch(net) as watch:
        net(torch.ones(2, 2)).sum().backward()
        assert all(one.grad_mean is not None and one.grad_std is not None for one in watch.statistics())
        net(torch.ones(2, 2))
    assert all(one.grad_mean is one.grad_std is None for one in watch.statistics())


class Function(nn.Module):
    """A layer of any function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def test_results_that_have_no_statistics_are_left_out():
    """A pair, whole numbers, and nothing."""
    pair, first, places = Function(lambda x: (x, x)), Function(lambda x: x[0]), Function(lambda x: x.argmax(1))
    net = nn.Sequential(nn.Linear(2, 3), pair, first, places)
    with Watch(net) as watch:
        net(torch.ones(4, 2))
    assert [one.name for one in watch.statistics()] == ["0", "2"]
    with Watch(net[0]) as watch:
        net[0](torch.ones(0, 2))
    assert watch.statistics() == []


def test_update_to_weight_ratio():
    net = nn.Linear(3, 2)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.no_grad():
        net.weight *= 1.01
    ratios = update_to_weight_ratio(before, net.state_dict())
    assert ratios["weight"] == pytest.approx(0.01, rel=1e-4) and ratios["bias"] == 0
    zeros = {"w": torch.zeros(2), "n": torch.tensor(3)}
    assert update_to_weight_ratio(zeros, {"w": torch.ones(2), "n": torch.tensor(4)}) == {"w": math.inf}
    assert update_to_weight_ratio(zeros, zeros) == {"w": 0.0}


@given(shape=st.lists(st.integers(1, 3), min_size=0, max_size=3), seed=st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_numerical_gradient_of_a_known_function(shape, seed):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    before = x.clone()
    gradient = numerical_gradient(lambda z: (z.sin() * z).sum(), x)
    assert gradient.shape == x.shape and torch.equal(x, before)
    assert (gradient - (x.cos() * x + x.sin())).abs().max() < 1e-8


def test_numerical_gradient_keeps_the_place_of_every_element():
    x = torch.arange(6.0, dtype=torch.float64).reshape(2, 3).T  # not contiguous
    weights = torch.arange(6.0, dtype=torch.float64).reshape(3, 2)
    assert torch.allclose(numerical_gradient(lambda z: (z * weights).sum(), x), weights)


class Wrong(torch.autograd.Function):
    """A square whose gradient is 1 % too large."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x**2).sum()

    @staticmethod
    def backward(ctx, upstream):
        return upstream * 2.02 * ctx.saved_tensors[0]


def test_gradient_check_tells_a_right_gradient_from_a_wrong_one():
    x = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    assert gradient_check(lambda z: (z**2).sum(), x) < 1e-8
    assert gradient_check(Wrong.apply, x) == pytest.approx(0.01 / 1.01, rel=1e-3)
    net = MLP((3, 5, 1), activation="tanh", dtype=torch.float64)
    assert gradient_check(lambda z: net(z[None]).sum(), x) < 1e-6


class Off(torch.autograd.Function):
    """Σ wᵢ xᵢ, and wᵢ plus an error as the gradient."""

    @staticmethod
    def forward(ctx, x, weights, errors):
        ctx.save_for_backward(weights + errors)
        return (x * weights).sum()

    @staticmethod
    def backward(ctx, upstream):
        return upstream * ctx.saved_tensors[0], None, None


@pytest.mark.parametrize(
    ("weights", "errors", "expected"),
    [
        ([0.5, -0.2, 0.4], [0.0, -0.1, 0.0], 1 / 3),  # −0.3 for −0.2: the largest counts, by the larger of the two
        ([0.5, -0.3, 0.4], [0.0, 0.1, 0.0], 1 / 3),
        ([0.5, 0.0003], [0.0, 0.0001], 0.1),  # below 1e-3 the absolute error counts
        ([0.5, 0.0], [0.0, 0.0], 0.0),
    ],
)
def test_gradient_check_gives_the_largest_relative_error(weights, errors, expected):
    weights, errors = torch.tensor(weights, dtype=torch.float64), torch.tensor(errors, dtype=torch.float64)
    x = torch.zeros_like(weights)
    assert gradient_check(lambda x: Off.apply(x, weights, errors), x) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Watch(nn.Linear(1, 1), ["conv"]), "modules, got conv"),
        (lambda: update_to_weight_ratio({"a": torch.ones(1)}, {}), r"same names, got \['a'\]"),
        (lambda: numerical_gradient(torch.sum, torch.ones(2)), "float64, got torch.float32"),
        (lambda: numerical_gradient(torch.sum, torch.ones(2).double(), step=0), "step > 0, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()
