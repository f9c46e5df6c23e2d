"""Initialisers: the spread each promises, reproducible, for dense layers and convolutions."""

from __future__ import annotations

import math

import pytest
import torch

from toolkit.reference import initializers as room

SPREADS = {
    "zeros": lambda fan_in: 0.0,
    "small": lambda fan_in: 0.01,
    "large": lambda fan_in: 0.1,
    "xavier": lambda fan_in: 1 / math.sqrt(fan_in),
    "he": lambda fan_in: math.sqrt(2 / fan_in),
}


@pytest.mark.parametrize("shape", [(1, 1), (4, 3), (2, 7), (8, 3, 5, 5), (6, 2, 3)])
@pytest.mark.parametrize("name", SPREADS)
def test_it_is_randn_times_the_promised_spread(name, shape):
    """Exactly, so with one seed all differ by a factor alone."""
    given = room.INITIALIZERS[name](shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    randn = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    fan_in = randn[0].numel()
    torch.testing.assert_close(given, SPREADS[name](fan_in) * randn, rtol=1e-12, atol=0.0)
    assert room.fan_in(shape) == fan_in


@pytest.mark.parametrize("name", SPREADS)
def test_the_global_generator_and_dtype_are_the_defaults(name):
    torch.manual_seed(5)
    first = room.INITIALIZERS[name]((300, 200))
    torch.manual_seed(5)
    again = room.INITIALIZERS[name]([300, 200])
    assert torch.equal(first, again) and first.dtype == torch.float32 and not first.requires_grad
    assert float(first.std()) == pytest.approx(SPREADS[name](200), rel=0.02)
    assert abs(float(first.mean())) < 0.01


def test_the_registry_has_the_notes_five():
    assert list(room.INITIALIZERS) == list(SPREADS)


@pytest.mark.parametrize("shape", [(), (3,), (0, 3), (3, 0), (3, -1), (2, 3, 0)])
@pytest.mark.parametrize("name", SPREADS)
def test_impossible_shapes_are_refused(name, shape):
    with pytest.raises(ValueError, match=r"expected a shape \(fan_out, fan_in, ...\) of sizes ≥ 1, got \("):
        room.INITIALIZERS[name](shape)


@pytest.mark.parametrize("std", [-0.01, math.inf, math.nan])
def test_an_impossible_std_is_refused(std):
    with pytest.raises(ValueError, match=f"expected a finite std ≥ 0, got {std}"):
        room.small_normal((2, 3), std)


def test_a_std_of_zero_gives_zeros():
    assert room.small_normal((2, 3), 0.0).tolist() == [[0.0] * 3] * 2


def test_equal_rows_stay_equal_when_all_weights_start_at_zero():
    """The notes: with zeros all neurons of a layer compute the same, and so they stay."""
    torch.manual_seed(0)
    first, second = room.zeros((4, 3), dtype=torch.float64), room.zeros((1, 4), dtype=torch.float64)
    x, target = torch.randn(20, 3, dtype=torch.float64), torch.randn(20, 1, dtype=torch.float64)
    for _ in range(5):
        first.requires_grad_(), second.requires_grad_()
        loss = ((torch.sigmoid(x @ first.T) @ second.T - target) ** 2).mean()
        steps = torch.autograd.grad(loss, (first, second))
        first, second = (first - steps[0]).detach(), (second - steps[1]).detach()
    assert (first - first[:1]).abs().max() < 1e-12 < 1e-3 < first.abs().max()
    assert (second - second[:, :1]).abs().max() < 1e-12 < 1e-3 < second.abs().max()
