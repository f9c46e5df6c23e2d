"""Batch normalisation: torch's values, gradients and running statistics, training and eval, dense and conv."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.against import assert_close, assert_smooth, autograd, numbers
from toolkit.reference.batchnorm import BatchNorm, batch_norm, batch_norm_backward, batch_statistics
from toolkit.reference.linear import Linear

SHAPES = [(2, 1), (5, 3), (4, 3, 6), (4, 3, 2, 5), (1, 2, 3, 3), (6, 2, 1, 1)]


def theirs(shape: tuple[int, ...], **settings: object) -> torch.nn.Module:
    """Return torch's layer for an input of that shape, with weights and statistics that are not the first ones."""
    kind = torch.nn.BatchNorm2d if len(shape) == 4 else torch.nn.BatchNorm1d
    layer = kind(shape[1], dtype=torch.float64, **settings)
    with torch.no_grad():
        for number, values in enumerate(layer.parameters()):
            values.copy_(numbers(shape[1], seed=number + 5))
        layer.running_mean.copy_(numbers(shape[1], seed=7))
        layer.running_var.copy_(numbers(shape[1], seed=8) ** 2 + 0.1)
    return layer


@pytest.mark.parametrize("config", [{}, {"affine": False}, {"momentum": 0.3, "eps": 0.02}, {"momentum": 1.0}])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_layer_is_torchs(shape, config):
    reference = theirs(shape, **config)
    layer = BatchNorm(shape[1], dtype=torch.float64, **config)
    layer.load_state_dict(reference.state_dict())
    assert list(layer.state_dict()) == list(reference.state_dict())
    for step, training in enumerate([True, True, False, True]):
        layer.train(training), reference.train(training)
        x, upstream = 3 + 2 * numbers(*shape, seed=step), numbers(*shape, seed=step + 50)
        parameters, expected_parameters = list(layer.parameters()), list(reference.parameters())
        ours, expected = x.clone().requires_grad_(), x.clone().requires_grad_()
        values, expected_values = layer(ours), reference(expected)
        assert_close(values, expected_values)
        for one, other in zip(
            torch.autograd.grad(values, [ours, *parameters], upstream),
            torch.autograd.grad(expected_values, [expected, *expected_parameters], upstream),
            strict=True,
        ):
            assert_close(one, other)
        for name, value in reference.state_dict().items():
            assert_close(layer.state_dict()[name], value)
    assert int(layer.num_batches_tracked) == 3 and not layer.running_mean.requires_grad


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 5), c=st.integers(1, 3), rest=st.lists(st.integers(1, 3), max_size=2), seed=st.integers(0, 99))
def test_the_derived_gradient_is_autograds(n, c, rest, seed):
    x, weight, bias = numbers(n, c, *rest, seed=seed), numbers(c, seed=seed + 1), numbers(c, seed=seed + 2)
    upstream = numbers(n, c, *rest, seed=seed + 3)
    if n * math.prod(rest) < 2:
        for call in (batch_statistics, BatchNorm(c, dtype=torch.float64), lambda x: batch_norm_backward(x, x, weight)):
            with pytest.raises(ValueError, match=r"expected more than 1 value per channel in training, got shape \(1,"):
                call(x)
        return
    function = lambda x, weight, bias: batch_norm(x, *batch_statistics(x), weight, bias)  # noqa: E731
    expected = autograd(function, upstream, x, weight, bias)
    for one, other in zip(batch_norm_backward(upstream, x, weight), expected, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("eps", [1e-5, 0.1])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_derived_gradient_is_torchs(shape, eps):
    x, upstream = 3 + 2 * numbers(*shape), numbers(*shape, seed=1)
    weight, bias = numbers(shape[1], seed=2), numbers(shape[1], seed=3)
    function = lambda x, w, b: torch.nn.functional.batch_norm(x, None, None, w, b, training=True, eps=eps)  # noqa: E731
    given_back = batch_norm_backward(upstream, x, weight, eps)
    for one, other in zip(given_back, autograd(function, upstream, x, weight, bias), strict=True):
        assert_close(one, other)


def test_it_is_smooth():
    function = lambda x, weight, bias: batch_norm(x, *batch_statistics(x), weight, bias)  # noqa: E731
    assert_smooth(function, numbers(4, 2), numbers(2, seed=1), numbers(2, seed=2))


def test_a_batch_gets_mean_zero_and_variance_one_per_channel():
    x = numbers(8, 3, 4, 4) * torch.tensor([1.0, 10.0, 100.0]).reshape(3, 1, 1) + 7
    mean, var = batch_statistics(batch_norm(x, *batch_statistics(x)))
    assert mean.abs().max() < 1e-10 and (var - 1).abs().max() < 1e-4
    weight, bias = torch.tensor([2.0, 3.0, 4.0]), torch.tensor([5.0, 6.0, 7.0])
    mean, var = batch_statistics(batch_norm(x, *batch_statistics(x), weight, bias))
    assert_close(mean, bias.double(), 1e-4)
    assert_close(var.sqrt(), weight.double(), 1e-4)


def test_defaults_are_torchs():
    layer = BatchNorm(3)
    assert (layer.eps, layer.momentum, layer.weight.dtype) == (1e-5, 0.1, torch.float32)
    for name, value in torch.nn.BatchNorm1d(3).state_dict().items():
        assert torch.equal(layer.state_dict()[name], value) and layer.state_dict()[name].dtype == value.dtype
    tiny = 1e-3 * numbers(4, 2)
    assert_close(
        batch_norm(tiny, *batch_statistics(tiny)), torch.nn.functional.batch_norm(tiny, None, None, training=True)
    )
    ones = torch.ones(2, dtype=torch.float64)
    for one, other in zip(
        batch_norm_backward(tiny, tiny, ones), batch_norm_backward(tiny, tiny, ones, 1e-5), strict=True
    ):
        assert_close(one, other)
    assert repr(layer) == "BatchNorm(3, eps=1e-05, momentum=0.1, affine=True)"
    assert BatchNorm(3, affine=False).weight is None and BatchNorm(3, affine=False).bias is None


def test_in_eval_a_single_image_is_enough_and_nothing_moves():
    layer = BatchNorm(2, dtype=torch.float64).eval()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    x = numbers(1, 2)
    assert_close(layer(x), x / math.sqrt(1 + 1e-5))
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_what_does_not_fit_is_refused():
    x, two, three = numbers(4, 3), numbers(2), numbers(3)
    for flat in (numbers(3), numbers()):
        for call in (batch_statistics, BatchNorm(3), BatchNorm(3).eval(), lambda x: batch_norm(x, three, three)):
            with pytest.raises(ValueError, match=r"expected an input of shape \(N, C, ...\), got \("):
                call(flat)
    for wrong in ({"mean": two}, {"var": two}, {"weight": two}, {"bias": two}):
        with pytest.raises(ValueError, match=rf"expected {next(iter(wrong))} of shape \(3,\), got \(2,\)"):
            batch_norm(**{"x": x, "mean": three, "var": three, **wrong})
    with pytest.raises(ValueError, match=r"expected weight of shape \(3,\), got \(2,\)"):
        batch_norm_backward(x, x, two)
    with pytest.raises(ValueError, match=r"expected an upstream gradient of shape \(4, 3\), got \(3, 4\)"):
        batch_norm_backward(x.T, x, three)
    for eps in (0.0, -1e-5, math.nan):
        for call in (
            lambda eps=eps: BatchNorm(3, eps=eps),
            lambda eps=eps: batch_norm(x, three, three, eps=eps),
            lambda eps=eps: batch_norm_backward(x, x, three, eps),
        ):
            with pytest.raises(ValueError, match=f"expected eps > 0, got {eps}"):
                call()
    with pytest.raises(ValueError, match="expected n_features ≥ 1, got 0"):
        BatchNorm(0)
    for momentum in (-0.1, 1.1):
        with pytest.raises(ValueError, match=f"expected a momentum between 0 and 1, got {momentum}"):
            BatchNorm(3, momentum=momentum)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        batch_statistics(torch.zeros(0, 2))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        batch_statistics(torch.zeros(4, 0))
    assert BatchNorm(1, momentum=0)(numbers(2, 1).float()).shape == (2, 1)


@pytest.mark.parametrize("affine", [True, False])
def test_a_refused_batch_leaves_the_statistics_as_they_were(affine):
    layer = BatchNorm(3, affine=affine)
    for wrong in (torch.ones(4, 2), torch.ones(1, 3)):
        with pytest.raises(ValueError, match="expected"):
            layer(wrong)
    assert int(layer.num_batches_tracked) == 0 and not layer.running_mean.any()


def deep_loss(batchnorm: bool, rate: float) -> float:
    """Return the last loss of a net of six layers after 30 steps of gradient descent at that rate."""
    generator = torch.Generator().manual_seed(0)
    layers: list[torch.nn.Module] = []
    for _ in range(6):
        layers.append(Linear(20, 20, generator=generator, dtype=torch.float64))
        layers.extend([BatchNorm(20, dtype=torch.float64)] if batchnorm else [])
        layers.append(torch.nn.ReLU())
    net = torch.nn.Sequential(*layers, Linear(20, 1, generator=generator, dtype=torch.float64))
    x = numbers(64, 20, seed=3)
    target = x[:, :1] * x[:, 1:2]
    loss = torch.zeros(())
    for _ in range(30):
        loss = ((net(x) - target) ** 2).mean()
        gradients = torch.autograd.grad(loss, list(net.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(net.parameters(), gradients, strict=True):
                parameter -= rate * gradient
    return float(loss.detach())


def test_a_rate_that_diverges_without_it_trains_with_it():
    assert deep_loss(batchnorm=True, rate=0.2) < 1
    assert not deep_loss(batchnorm=False, rate=0.2) < 1e3
    assert deep_loss(batchnorm=False, rate=0.001) < 10, "the net itself can be trained"
