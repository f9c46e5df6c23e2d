"""Dropout: torch's masks of the same seed, three ways with one expectation, Monte Carlo with BatchNorm at rest."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.reference.against import assert_close, autograd, numbers
from toolkit.reference.batchnorm import BatchNorm
from toolkit.reference.dropout import (
    DropoutScaledAtTest,
    InvertedDropout,
    dropout,
    dropout_backward,
    dropout_mask,
    inverted_dropout,
    inverted_dropout_backward,
    monte_carlo,
)
from toolkit.reference.linear import Linear

CLASSES = [DropoutScaledAtTest, InvertedDropout]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("p_drop", [0.0, 0.1, 0.5, 0.7, 0.99])
@pytest.mark.parametrize("shape", [(), (1,), (40, 30), (2, 3, 4, 5)])
def test_one_seed_gives_torchs_result_to_the_bit(shape, p_drop, dtype):
    x = numbers(*shape).to(dtype)
    for training in (True, False):
        results = []
        for layer in (nn.Dropout(p_drop), InvertedDropout(1 - p_drop)):
            torch.manual_seed(11)
            inputs = x.clone().requires_grad_()
            y = layer.train(training)(inputs)
            results.append((y, torch.autograd.grad(y.sum(), inputs)[0], torch.rand(1)))  # and as many draws
        for one, other in zip(*results, strict=True):
            assert torch.equal(one, other) and one.dtype == other.dtype


@pytest.mark.parametrize("keep_prob", [0.2, 0.5, 0.9, 1.0])
def test_backward_is_autograds(keep_prob):
    torch.manual_seed(0)
    x, upstream = numbers(50, 4), numbers(50, 4, seed=1)
    mask = dropout_mask(x, keep_prob)
    assert mask.shape == x.shape and mask.dtype == x.dtype and set(mask.unique().tolist()) <= {0.0, 1.0}
    assert float(mask.mean()) == pytest.approx(keep_prob, abs=0.12)
    assert_close(dropout(x, mask), torch.where(mask == 1, x, 0.0))
    assert_close(inverted_dropout(x, mask, keep_prob), torch.where(mask == 1, x / keep_prob, 0.0))
    assert_close(dropout_backward(upstream, mask), autograd(lambda x: dropout(x, mask), upstream, x)[0])
    assert_close(dropout_backward(upstream, keep_prob), autograd(lambda x: dropout(x, keep_prob), upstream, x)[0])
    (expected,) = autograd(lambda x: inverted_dropout(x, mask, keep_prob), upstream, x)
    assert_close(inverted_dropout_backward(upstream, mask, keep_prob), expected)


@pytest.mark.parametrize("keep_prob", [0.25, 0.5, 0.8])
def test_three_ways_have_one_expectation(keep_prob):
    """Up to the scale that the first way leaves to test time; 200,000 draws, five standard errors."""
    torch.manual_seed(1)
    x = torch.ones(200_000, dtype=torch.float64)
    error = 5 * math.sqrt((1 - keep_prob) / keep_prob / len(x))
    scaled, inverted = DropoutScaledAtTest(keep_prob), InvertedDropout(keep_prob)
    assert float(scaled(x).mean()) / keep_prob == pytest.approx(1.0, abs=error)
    assert float(inverted(x).mean()) == pytest.approx(1.0, abs=error)
    assert torch.equal(scaled.eval()(x), keep_prob * x) and torch.equal(inverted.eval()(x), x)
    mean, spread = monte_carlo(InvertedDropout(keep_prob), torch.ones(400, dtype=torch.float64), samples=500)
    assert float(mean.mean()) == pytest.approx(1.0, abs=error)
    assert float(spread.mean()) == pytest.approx(math.sqrt((1 - keep_prob) / keep_prob), rel=0.01)
    mean, _ = monte_carlo(DropoutScaledAtTest(keep_prob), torch.ones(400, dtype=torch.float64), samples=500)
    assert float(mean.mean()) == pytest.approx(keep_prob, abs=error)


def test_monte_carlo_is_the_mean_and_deviation_of_its_samples():
    net = nn.Sequential(Linear(3, 8, dtype=torch.float64), InvertedDropout(0.5), Linear(8, 2, dtype=torch.float64))
    x = numbers(5, 3)
    torch.manual_seed(2)
    mean, spread = monte_carlo(net.eval(), x, samples=7)
    net.train()
    torch.manual_seed(2)
    samples = torch.stack([net(x) for _ in range(7)])
    assert torch.equal(mean, samples.mean(0)) and torch.equal(spread, samples.std(0)) and (spread > 0).all()
    assert not mean.requires_grad and not spread.requires_grad
    torch.manual_seed(2)
    assert torch.equal(monte_carlo(net, x)[0], monte_carlo_of_32(net, x)), "32 samples by default"


def monte_carlo_of_32(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return the mean of 32 outputs in training, from the seed of the test above."""
    torch.manual_seed(2)
    return torch.stack([net.train()(x) for _ in range(32)]).mean(0)


class Mode(nn.Module):
    """Passes on what it gets, and notes in which mode."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[bool] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(self.training)
        return x


@pytest.mark.parametrize("kind", CLASSES)
def test_only_dropout_is_active_and_every_mode_comes_back(kind):
    norm = BatchNorm(3, dtype=torch.float64)
    frozen = nn.Sequential(kind(0.5)).eval()
    other = Mode()
    net = nn.Sequential(norm, frozen, other)
    modes = [module.training for module in net.modules()]
    state = {name: value.clone() for name, value in net.state_dict().items()}
    mean, spread = monte_carlo(net, numbers(1, 3), samples=20)  # BatchNorm in training would refuse a single image
    assert (spread > 0).all() and mean.shape == (1, 3)
    assert other.seen == [False] * 20
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_modes_come_back_after_an_error():
    net = nn.Sequential(BatchNorm(3), nn.Sequential(InvertedDropout(0.5)).eval())
    modes = [module.training for module in net.modules()]
    with pytest.raises(ValueError, match="running_mean"):
        monte_carlo(net, torch.zeros(2, 4))
    assert [module.training for module in net.modules()] == modes


@pytest.mark.parametrize("keep_prob", [0.0, -0.5, 1.5, math.nan])
def test_an_impossible_keep_prob_is_refused(keep_prob):
    x = torch.ones(3)
    for call in (
        lambda: DropoutScaledAtTest(keep_prob),
        lambda: InvertedDropout(keep_prob),
        lambda: dropout_mask(x, keep_prob),
        lambda: inverted_dropout(x, x, keep_prob),
        lambda: inverted_dropout_backward(x, x, keep_prob),
    ):
        with pytest.raises(ValueError, match=f"expected 0 < keep_prob ≤ 1, got {keep_prob}"):
            call()


def test_what_does_not_fit_is_refused():
    x, mask = torch.ones(3, 2), torch.ones(2)
    for call in (
        lambda: dropout(x, mask),
        lambda: dropout_backward(x, mask),
        lambda: inverted_dropout(x, mask, 0.5),
        lambda: inverted_dropout_backward(x, mask, 0.5),
    ):
        with pytest.raises(ValueError, match=r"expected a mask of shape \(3, 2\), got \(2,\)"):
            call()
    for samples in (1, 0, -3):
        with pytest.raises(ValueError, match=f"expected samples ≥ 2, got {samples}"):
            monte_carlo(InvertedDropout(), x, samples)
    assert monte_carlo(InvertedDropout(), x, 2)[0].shape == x.shape
    with pytest.raises(ValueError, match="got one without"):
        monte_carlo(nn.Sequential(Linear(2, 2), nn.Dropout()), x)


@pytest.mark.parametrize("kind", CLASSES)
def test_half_of_the_units_stay_by_default(kind):
    assert kind().keep_prob == 0.5 and repr(kind(0.8)) == f"{kind.__name__}(keep_prob=0.8)"
