"""The linear layer: torch's values, gradients and state dict."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.against import assert_close, assert_smooth, autograd, numbers
from toolkit.reference.initializers import he
from toolkit.reference.linear import Linear, linear, linear_backward


@settings(max_examples=40, deadline=None)
@given(batch=st.lists(st.integers(0, 3), max_size=3), n_in=st.integers(1, 5), n_out=st.integers(1, 5))
def test_value_and_gradients_are_torchs(batch, n_in, n_out):
    x, weight, bias = numbers(*batch, n_in), numbers(n_out, n_in, seed=1), numbers(n_out, seed=2)
    upstream = numbers(*batch, n_out, seed=3)
    expected = autograd(torch.nn.functional.linear, upstream, x, weight, bias)
    assert_close(linear(x, weight, bias), torch.nn.functional.linear(x, weight, bias))
    for mine, ours, theirs in zip(
        linear_backward(upstream, x, weight), autograd(linear, upstream, x, weight, bias), expected, strict=True
    ):
        assert_close(mine, theirs)
        assert_close(ours, theirs)


def test_it_is_smooth():
    assert_smooth(linear, numbers(2, 3), numbers(4, 3, seed=1), numbers(4, seed=2))


def test_the_module_reads_a_torch_state_dict():
    theirs = torch.nn.Linear(5, 3, dtype=torch.float64)
    ours = Linear(5, 3, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())
    x = numbers(4, 5)
    assert_close(ours(x), theirs(x))
    assert [(name, p.shape) for name, p in ours.named_parameters()] == [("weight", (3, 5)), ("bias", (3,))]
    assert repr(ours) == "Linear(in_features=5, out_features=3)"


def test_it_starts_as_the_initialiser_says():
    for init in ("zeros", "small"):
        assert (Linear(300, 4, init=init).weight.std() < 0.02).all()
    layer = Linear(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert_close(layer.weight.detach(), he((4, 3), generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    assert_close(layer.bias.detach(), torch.zeros(4, dtype=torch.float64))
    assert layer.weight.requires_grad and layer.bias.requires_grad
    assert Linear(2, 2).weight.dtype == Linear(2, 2).bias.dtype == torch.float32


def test_what_does_not_fit_is_refused():
    x, weight, bias = torch.zeros(5, 3), torch.zeros(4, 3), torch.zeros(4)
    with pytest.raises(ValueError, match=r"expected an input of shape \(..., 3\), got \(5, 4\)"):
        linear(torch.zeros(5, 4), weight, bias)
    with pytest.raises(ValueError, match=r"expected an input of shape \(..., 3\), got \(\)"):
        linear(torch.tensor(1.0), weight, bias)
    with pytest.raises(ValueError, match=r"expected a weight of shape \(out, in\), got \(3,\)"):
        linear(x, torch.zeros(3), bias)
    with pytest.raises(ValueError, match=r"expected a weight of shape \(out, in\), got \(3, 3, 3\)"):
        linear_backward(torch.zeros(5, 3), x, torch.zeros(3, 3, 3))
    for wrong in (torch.zeros(3), torch.zeros(1), torch.zeros(4, 1)):
        with pytest.raises(ValueError, match=r"expected a bias of shape \(4,\), got \("):
            linear(x, weight, wrong)
    with pytest.raises(ValueError, match=r"expected an upstream gradient of shape \(5, 4\), got \(4, 5\)"):
        linear_backward(torch.zeros(4, 5), x, weight)
    with pytest.raises(ValueError, match=r"expected an input of shape"):
        linear_backward(torch.zeros(5, 4), torch.zeros(5, 4), weight)
    with pytest.raises(ValueError, match="expected init to be one of zeros, small, large, xavier, he, got 'best'"):
        Linear(3, 4, init="best")
    for sizes in ((0, 3), (3, 0), (-1, 2)):
        with pytest.raises(ValueError, match="sizes ≥ 1"):
            Linear(*sizes)
