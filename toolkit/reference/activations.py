"""Activation functions: what a neuron makes of its weighted sum, their gradients, and the modules around them.

All act element by element on floating-point tensors of any shape and return the same shape and dtype (maxout alone
returns fewer columns). `X_backward` takes the upstream gradient ∂L/∂y and the input x and returns ∂L/∂x, the local
gradient ∂y/∂x times the upstream one. NaN goes in and comes out: a diverged net must be seen. A slope or alpha that is
not finite raises ValueError. Source, of all: notes: Activation Function, the entry of that name.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from toolkit.reference.linear import Linear


def sigmoid(x: Tensor) -> Tensor:
    """Return σ(x) = 1 / (1 + exp(−x)), between 0 and 1, for finite x of any size.

    >>> sigmoid(torch.tensor([-1e4, 0.0, 1e4])).tolist()
    [0.0, 0.5, 1.0]
    """
    # The softmax of (x, 0) with the larger one subtracted: no exponent is positive, so nothing overflows, here or in
    # autograd's gradient. The value does not depend on `larger`, so no gradient flows through it.
    larger = torch.where(x > 0, x, 0.0).detach()
    positive = torch.exp(x - larger)
    return positive / (positive + torch.exp(-larger))


def sigmoid_backward(upstream: Tensor, x: Tensor) -> Tensor:
    """Return upstream · σ(x) (1 − σ(x)): at most a quarter of it, and nothing where σ saturates.

    >>> sigmoid_backward(torch.ones(2), torch.tensor([0.0, 1e4])).tolist()
    [0.25, 0.0]
    """
    return upstream * sigmoid(x) * (1 - sigmoid(x))


def tanh(x: Tensor) -> Tensor:
    """Return tanh(x) = 2 σ(2x) − 1: a sigmoid stretched to −1 … 1, and so zero-centred.

    >>> tanh(torch.tensor([-1e4, 0.0, 1e4])).tolist()
    [-1.0, 0.0, 1.0]
    """
    return 2 * sigmoid(2 * x) - 1


def tanh_backward(upstream: Tensor, x: Tensor) -> Tensor:
    """Return upstream · (1 − tanh²(x)).

    >>> tanh_backward(torch.ones(2), torch.tensor([0.0, 1e4])).tolist()
    [1.0, 0.0]
    """
    return upstream * (1 - tanh(x) ** 2)


def relu(x: Tensor) -> Tensor:
    """Return max(0, x).

    >>> relu(torch.tensor([-2.0, 0.0, 3.0])).tolist()
    [0.0, 0.0, 3.0]
    """
    # where, not maximum: autograd would share the gradient at 0, and `x > 0` would turn NaN into 0.
    return torch.where(x <= 0, 0.0, x)


def relu_backward(upstream: Tensor, x: Tensor) -> Tensor:
    """Return upstream where x > 0, else 0: a unit that is negative for every image learns nothing more.

    >>> relu_backward(torch.ones(3), torch.tensor([-2.0, 0.0, 3.0])).tolist()
    [0.0, 0.0, 1.0]
    """
    return torch.where(x <= 0, 0.0, upstream)


def leaky_relu(x: Tensor, slope: float = 0.01) -> Tensor:
    """Return x where x > 0, else slope · x.

    >>> leaky_relu(torch.tensor([-2.0, 3.0]), slope=0.25).tolist()
    [-0.5, 3.0]
    """
    _check_finite("slope", slope)
    return torch.where(x > 0, x, slope * x)


def leaky_relu_backward(upstream: Tensor, x: Tensor, slope: float = 0.01) -> Tensor:
    """Return upstream where x > 0, else slope · upstream.

    >>> leaky_relu_backward(torch.ones(2), torch.tensor([-2.0, 3.0]), slope=0.25).tolist()
    [0.25, 1.0]
    """
    _check_finite("slope", slope)
    return torch.where(x > 0, upstream, slope * upstream)


def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """Return x where x > 0, else α (exp(x) − 1) (Clevert et al. 2016).

    >>> elu(torch.tensor([-1e4, 0.0, 1e4]), alpha=2.0).tolist()
    [-2.0, 0.0, 10000.0]
    """
    _check_finite("alpha", alpha)
    negative = torch.where(x > 0, 0.0, x)  # exp of a large x would be inf, and 0 · inf in its gradient NaN
    return torch.where(x > 0, x, alpha * torch.expm1(negative))


def elu_backward(upstream: Tensor, x: Tensor, alpha: float = 1.0) -> Tensor:
    """Return upstream where x > 0, else α exp(x) · upstream.

    >>> elu_backward(torch.ones(3), torch.tensor([-1e4, 0.0, 1e4]), alpha=2.0).tolist()
    [0.0, 2.0, 1.0]
    """
    _check_finite("alpha", alpha)
    return upstream * torch.where(x > 0, 1.0, alpha * torch.exp(torch.where(x > 0, 0.0, x)))


def maxout(x: Tensor, pieces: int = 2) -> Tensor:
    """Return the largest of `pieces` linear maps: x is (…, pieces · D), the first D columns of the first map; y (…, D).

    Raises ValueError for pieces < 1 and for columns that are no multiple of it (Goodfellow et al. 2013).

    >>> maxout(torch.tensor([1.0, 5.0, 3.0, 4.0]), pieces=2).tolist()
    [3.0, 5.0]
    """
    return _by_piece(x, pieces).amax(-2)


def maxout_backward(upstream: Tensor, x: Tensor, pieces: int = 2) -> Tensor:
    """Return (…, pieces · D): upstream (…, D) at the largest map, shared evenly by equals, and 0 at the others.

    Raises ValueError as `maxout` does.

    >>> maxout_backward(torch.ones(2), torch.tensor([1.0, 5.0, 3.0, 4.0]), pieces=2).tolist()
    [0.0, 1.0, 1.0, 0.0]
    """
    maps = _by_piece(x, pieces)
    largest = (maps == maps.amax(-2, keepdim=True)).to(x.dtype)
    return (upstream.unsqueeze(-2) * largest / largest.sum(-2, keepdim=True)).reshape(x.shape)


def _by_piece(x: Tensor, pieces: int) -> Tensor:
    """Return x (…, pieces · D) as (…, pieces, D)."""
    if pieces < 1 or x.ndim < 1 or x.shape[-1] % pieces:
        raise ValueError(f"expected pieces ≥ 1 that divide the last dimension, got {pieces} of {tuple(x.shape)}")
    return x.reshape(*x.shape[:-1], pieces, x.shape[-1] // pieces)


def _check_finite(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"expected a finite {name}, got {value}")


class Sigmoid(nn.Module):
    """The module of `sigmoid`: `Sigmoid()(x)`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return σ(x)."""
        return sigmoid(x)


class Tanh(nn.Module):
    """The module of `tanh`: `Tanh()(x)`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return tanh(x)."""
        return tanh(x)


class ReLU(nn.Module):
    """The module of `relu`: `ReLU()(x)`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return max(0, x)."""
        return relu(x)


class LeakyReLU(nn.Module):
    """The module of `leaky_relu`: `LeakyReLU(slope=0.01)(x)`."""

    def __init__(self, slope: float = 0.01) -> None:
        super().__init__()
        _check_finite("slope", slope)
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        """Return x where x > 0, else slope · x."""
        return leaky_relu(x, self.slope)


class ELU(nn.Module):
    """The module of `elu`: `ELU(alpha=1.0)(x)`."""

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        _check_finite("alpha", alpha)
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        """Return x where x > 0, else α (exp(x) − 1)."""
        return elu(x, self.alpha)


class Identity(nn.Module):
    """No activation: a net of any depth with it is one linear map (notes: Activation Function, why one is needed)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x."""
        return x


class Maxout(nn.Module):
    """A layer (…, in_features) → (…, out_features): the largest of `pieces` linear maps, each with weights of its own.

    Raises ValueError for sizes or pieces < 1. `init`, `generator` and `dtype` are those of `Linear`.

    >>> Maxout(3, 4, pieces=2)(torch.ones(5, 3)).shape
    torch.Size([5, 4])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        pieces: int = 2,
        *,
        init: str = "he",
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if pieces < 1:
            raise ValueError(f"expected pieces ≥ 1, got {pieces}")
        self.pieces = pieces
        self.linear = Linear(in_features, pieces * out_features, init=init, generator=generator, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return (…, out_features) of x (…, in_features)."""
        return maxout(self.linear(x), self.pieces)


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "sigmoid": Sigmoid,
    "tanh": Tanh,
    "relu": ReLU,
    "leaky_relu": LeakyReLU,
    "elu": ELU,
    "identity": Identity,
}
