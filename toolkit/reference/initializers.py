"""Weight initialisation: what a layer's weights are before the first step.

Every function takes the weight's shape (fan_out, fan_in, *kernel): (out, in) of a dense layer, (out, in, height, width)
of a convolution, each at least 1; the inputs of one neuron are counted by `fan_in`. It returns a new tensor of that
shape on the CPU, of `dtype` or torch's default one, drawn from `generator` or torch's global one, and raises ValueError
for an impossible shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def fan_in(shape: Sequence[int]) -> int:
    """Return the number of inputs of one neuron: the product of all sizes but the first.

    Source: notes: Weight Initialization, small random numbers.

    >>> fan_in((4, 3)), fan_in((8, 3, 5, 5))
    (3, 75)
    """
    if len(shape) < 2 or min(shape) < 1:
        raise ValueError(f"expected a shape (fan_out, fan_in, ...) of sizes ≥ 1, got {tuple(shape)}")
    return math.prod(shape[1:])


def zeros(
    shape: Sequence[int], *, generator: torch.Generator | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """Return zeros: all neurons of a layer compute the same and learn the same; `generator` is not used.

    Source: notes: Weight Initialization, all weights 0.

    >>> zeros((2, 3)).tolist()
    [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    fan_in(shape)  # refuses what the others refuse
    return torch.zeros(tuple(shape), dtype=dtype)


def small_normal(
    shape: Sequence[int],
    std: float = 0.01,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return std · randn: in a deep net the activations fade to 0, and with them the gradients.

    Raises ValueError for a std that is negative or not finite, too. Source: notes: Weight Initialization, small random
    numbers.

    >>> small_normal((2, 3), std=0.0).abs().sum().item()
    0.0
    """
    fan_in(shape)
    if not 0 <= std < math.inf:
        raise ValueError(f"expected a finite std ≥ 0, got {std}")
    return std * torch.randn(tuple(shape), generator=generator, dtype=dtype)


def large_normal(
    shape: Sequence[int], *, generator: torch.Generator | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """Return 0.1 · randn: with some hundred inputs many tanh units saturate (about a third, not nearly all).

    Source: notes: Weight Initialization, small random numbers (0.1).

    >>> large_normal((2, 3)).shape
    torch.Size([2, 3])
    """
    return small_normal(shape, 0.1, generator=generator, dtype=dtype)


def xavier(
    shape: Sequence[int], *, generator: torch.Generator | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """Return randn / √fan_in: a weighted sum varies as much as its inputs do.

    Source: notes: Weight Initialization, Xavier (the notes' form of Glorot & Bengio 2010, which averages fan_in and
    fan_out).

    >>> xavier((2, 3)).shape
    torch.Size([2, 3])
    """
    std = 1 / math.sqrt(fan_in(shape))
    return std * torch.randn(tuple(shape), generator=generator, dtype=dtype)


def he(shape: Sequence[int], *, generator: torch.Generator | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """Return randn / √(fan_in / 2): as Xavier, with the half of the inputs that ReLU sets to 0 made up for.

    Source: notes: Weight Initialization, He et al. 2015.

    >>> he((8, 3, 5, 5), dtype=torch.float64).dtype
    torch.float64
    """
    std = 1 / math.sqrt(fan_in(shape) / 2)
    return std * torch.randn(tuple(shape), generator=generator, dtype=dtype)


INITIALIZERS: dict[str, Callable[..., Tensor]] = {
    "zeros": zeros,
    "small": small_normal,
    "large": large_normal,
    "xavier": xavier,
    "he": he,
}
