"""What a test of the reference room holds a formula against: torch's own values and autograd, in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

TOLERANCE = 1e-10


def numbers(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Return float64 standard normal numbers."""
    return scale * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def assert_close(given: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    """Hold shape, dtype and every element."""
    assert given.shape == expected.shape and given.dtype == expected.dtype
    torch.testing.assert_close(given, expected, rtol=tolerance, atol=tolerance)


def autograd(function: Callable[..., Tensor], upstream: Tensor | None, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Return autograd's gradients of Σ upstream · function(inputs) for every input."""
    leaves = [value.detach().clone().requires_grad_() for value in inputs]
    return torch.autograd.grad(function(*leaves), leaves, upstream)


def assert_smooth(function: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Hold first and second derivatives against finite differences."""
    leaves = [value.detach().clone().requires_grad_() for value in inputs]
    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)
