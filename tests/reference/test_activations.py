"""Activations: torch's values and gradients, ends of the range, and why one is needed at all."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from tests.reference.against import assert_close, assert_smooth, autograd, numbers
from toolkit.reference import activations as room
from toolkit.reference.linear import Linear

THEIRS = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "leaky_relu": functional.leaky_relu,
    "elu": functional.elu,
}
ENDS = torch.tensor([-1e4, -800.0, -1.0, -1e-8, 0.0, 1e-8, 1.0, 800.0, 1e4], dtype=torch.float64)
SHAPES = st.lists(st.integers(1, 4), min_size=0, max_size=3)


@pytest.mark.parametrize("name", THEIRS)
@settings(max_examples=20, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 99))
def test_value_and_both_gradients_are_torchs(name, shape, seed):
    function, backward, theirs = getattr(room, name), getattr(room, f"{name}_backward"), THEIRS[name]
    x, upstream = numbers(*shape, seed=seed, scale=3.0), numbers(*shape, seed=seed + 100)
    assert_close(function(x), theirs(x))
    (expected,) = autograd(theirs, upstream, x)
    assert_close(backward(upstream, x), expected)
    assert_close(autograd(function, upstream, x)[0], expected)
    assert_close(room.ACTIVATIONS[name]()(x), theirs(x))


@pytest.mark.parametrize("name", THEIRS)
def test_the_ends_and_zero_are_torchs(name):
    function, backward, theirs = getattr(room, name), getattr(room, f"{name}_backward"), THEIRS[name]
    upstream = torch.full_like(ENDS, 3.0)
    (expected,) = autograd(theirs, upstream, ENDS)
    assert_close(function(ENDS), theirs(ENDS))
    assert_close(backward(upstream, ENDS), expected)
    assert_close(autograd(function, upstream, ENDS)[0], expected)
    assert function(ENDS.float()).dtype == backward(upstream.float(), ENDS.float()).dtype == torch.float32


def test_far_below_zero_a_sigmoid_is_the_exponential_down_to_the_smallest_number():
    """1 + exp(x) rounds to 1 there; exp(−745) is the smallest positive float64."""
    for x in (-40.0, -708.0, -745.0):
        assert room.sigmoid(torch.tensor(x, dtype=torch.float64)).item() == math.exp(x) > 0


@pytest.mark.parametrize("name", THEIRS)
def test_nan_stays_nan(name):
    assert getattr(room, name)(torch.tensor([math.nan, 1.0])).isnan().tolist() == [True, False]


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_smooth_ones_are_smooth(name):
    assert_smooth(getattr(room, name), torch.cat([numbers(6, scale=2.0), torch.zeros(1, dtype=torch.float64)]))


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "elu"])
def test_the_others_are_smooth_beside_zero(name):
    x = numbers(6, scale=2.0)
    assert_smooth(getattr(room, name), x + 0.1 * torch.sign(x))


def test_settings_reach_the_formula():
    x, upstream = torch.cat([numbers(9), torch.zeros(1, dtype=torch.float64)]), numbers(10, seed=1)
    for slope in (0.2, -1.0):
        assert_close(room.LeakyReLU(slope)(x), functional.leaky_relu(x, slope))
        expected = autograd(lambda x, slope=slope: functional.leaky_relu(x, slope), upstream, x)[0]
        assert_close(room.leaky_relu_backward(upstream, x, slope), expected)
        assert_close(autograd(room.LeakyReLU(slope), upstream, x)[0], expected)
    for alpha in (0.5, 2.0):
        assert_close(room.ELU(alpha)(x), functional.elu(x, alpha))
        expected = autograd(lambda x, alpha=alpha: functional.elu(x, alpha), upstream, x)[0]
        assert_close(room.elu_backward(upstream, x, alpha), expected)
        assert_close(autograd(room.ELU(alpha), upstream, x)[0], expected)


@pytest.mark.parametrize("wrong", [math.inf, math.nan])
@pytest.mark.parametrize("name", ["leaky_relu", "elu"])
def test_settings_that_are_not_finite_are_refused(name, wrong):
    message = f"expected a finite .*, got {wrong}"
    for call in (
        lambda: room.ACTIVATIONS[name](wrong),
        lambda: getattr(room, name)(ENDS, wrong),
        lambda: getattr(room, f"{name}_backward")(ENDS, ENDS, wrong),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 4), d=st.integers(1, 4), pieces=st.integers(1, 4), seed=st.integers(0, 99))
def test_maxout_is_the_largest_of_its_maps(n, d, pieces, seed):
    x, upstream = numbers(n, pieces * d, seed=seed), numbers(n, d, seed=seed + 100)
    maps = x.split(d, dim=1)
    expected = maps[0]
    for one in maps[1:]:
        expected = torch.maximum(expected, one)
    assert_close(room.maxout(x, pieces), expected)
    (gradient,) = autograd(lambda x: room.maxout(x, pieces), upstream, x)
    assert_close(room.maxout_backward(upstream, x, pieces), gradient)
    assert_close(room.maxout(x[0], pieces), expected[0])


def test_equal_maps_share_the_gradient():
    x, upstream = torch.ones(2, 6, dtype=torch.float64), numbers(2, 2)
    given_back = room.maxout_backward(upstream, x, 3)
    assert_close(given_back, torch.cat([upstream / 3] * 3, dim=1))
    assert_close(given_back, autograd(lambda x: room.maxout(x, 3), upstream, x)[0])
    assert room.maxout(x).shape == (2, 3) and room.maxout_backward(numbers(2, 3), x).shape == x.shape
    single = room.maxout_backward(upstream.float(), x.float(), 3)
    assert single.dtype == torch.float32


def test_the_maxout_layer_takes_the_larger_of_two_linear_maps():
    layer = room.Maxout(3, 4, init="xavier", generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = numbers(5, 3)
    first, second = layer.linear.weight.split(4)
    assert_close(layer(x), torch.maximum(x @ first.T, x @ second.T))
    assert_close(
        layer.linear.weight[:, 0].detach(),
        Linear(3, 8, init="xavier", dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        .weight[:, 0]
        .detach(),
    )
    assert room.Maxout(3, 4, pieces=1)(x.float()).shape == (5, 4)
    assert room.Maxout(2, 1, 5).linear.weight.shape == (5, 2)


def test_impossible_pieces_are_refused():
    with pytest.raises(ValueError, match=r"expected pieces ≥ 1, got 0"):
        room.Maxout(3, 4, pieces=0)
    for shape, pieces in (((2, 5), 2), ((), 1), ((2, 4), 0), ((2, 4), -2)):
        message = rf"got {pieces} of \({', '.join(map(str, shape))}"
        with pytest.raises(ValueError, match=message):
            room.maxout(torch.zeros(shape), pieces)
        with pytest.raises(ValueError, match=message):
            room.maxout_backward(torch.zeros(shape), torch.zeros(shape), pieces)


def test_without_activation_a_deep_net_is_one_linear_map():
    generator = torch.Generator().manual_seed(0)
    sizes = [6, 9, 7, 8, 3]
    layers = [Linear(*pair, generator=generator, dtype=torch.float64) for pair in pairwise(sizes)]
    for layer in layers:
        torch.nn.init.normal_(layer.bias, generator=generator)
    x = numbers(20, 6, seed=1)
    outputs, bent, weight, bias = x, x, torch.eye(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    for layer in layers:
        outputs = room.Identity()(layer(outputs))
        bent = room.ReLU()(layer(bent))
        weight, bias = layer.weight @ weight, layer.weight @ bias + layer.bias
    assert_close(outputs, x @ weight.T + bias)
    assert (bent - (x @ weight.T + bias)).abs().max() > 0.1, "with an activation it is not"


def test_two_layers_of_ax_are_a_squared_x():
    x, a = numbers(5, 1), 1.7
    layer = Linear(1, 1, init="zeros", dtype=torch.float64)
    torch.nn.init.constant_(layer.weight, a)
    assert_close(layer(layer(x)), a**2 * x)


def test_the_registry_has_the_notes_names():
    assert list(room.ACTIVATIONS) == ["sigmoid", "tanh", "relu", "leaky_relu", "elu", "identity"]
    assert room.ACTIVATIONS["identity"]()(ENDS) is ENDS
    for name in THEIRS:
        assert room.ACTIVATIONS[name].__name__.lower() == name.replace("_", "")
