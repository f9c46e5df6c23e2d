"""The linear classifier, and the fully connected layer: a score is a weighted sum of the inputs, plus a bias."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from toolkit.reference.initializers import INITIALIZERS


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the scores x Wᵀ + b, a row W of the weight for each class: W·x + b for every x of a batch.

    x: float (…, in). weight: float (out, in). bias: float (out,). The result is (…, out); all have one dtype.
    Raises ValueError for shapes that do not fit. Source: notes: Linear Classification (Score function).

    >>> linear(torch.tensor([1.0, 2.0]), torch.tensor([[3.0, 4.0], [5.0, 6.0]]), torch.tensor([0.5, -1.0])).tolist()
    [11.5, 16.0]
    """
    _check_input(x, weight)
    if bias.shape != weight.shape[:1]:
        raise ValueError(f"expected a bias of shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    return x @ weight.T + bias


def linear_backward(upstream: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x (…, in), weight (out, in) and bias (out,) from upstream (…, out).

    ∂L/∂x = g W; ∂L/∂W = Σ gᵀ x and ∂L/∂b = Σ g, summed over the batch, for all rows share W and b.
    Raises ValueError for shapes that do not fit. Source: notes: Backpropagation; Linear Classification.

    >>> dx, dweight, dbias = linear_backward(torch.ones(5, 2), torch.ones(5, 3), torch.ones(2, 3))
    >>> dx[0].tolist(), dweight[0].tolist(), dbias.tolist()
    ([2.0, 2.0, 2.0], [5.0, 5.0, 5.0], [5.0, 5.0])
    """
    _check_input(x, weight)
    expected = (*x.shape[:-1], weight.shape[0])
    if upstream.shape != expected:
        raise ValueError(f"expected an upstream gradient of shape {expected}, got {tuple(upstream.shape)}")
    gradients = upstream.reshape(-1, weight.shape[0])
    rows = x.reshape(-1, weight.shape[1])
    return upstream @ weight, gradients.T @ rows, gradients.sum(0)


def _check_input(x: Tensor, weight: Tensor) -> None:
    if weight.ndim != 2:
        raise ValueError(f"expected a weight of shape (out, in), got {tuple(weight.shape)}")
    if x.ndim < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"expected an input of shape (..., {weight.shape[1]}), got {tuple(x.shape)}")


class Linear(nn.Module):
    """A fully connected layer (…, in_features) → (…, out_features); its state dict is that of torch.nn.Linear.

    init: a name of INITIALIZERS, for the weight (out, in), drawn from `generator`; the bias (out,) starts at 0.
    Raises ValueError for sizes < 1 and an unknown init. Source: notes: Neural Network, Fully Connected Layers.

    >>> Linear(3, 4, init="xavier")(torch.ones(5, 3)).shape
    torch.Size([5, 4])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        init: str = "he",
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if init not in INITIALIZERS:
            raise ValueError(f"expected init to be one of {', '.join(INITIALIZERS)}, got {init!r}")
        self.in_features = in_features
        self.out_features = out_features
        weight = INITIALIZERS[init]((out_features, in_features), generator=generator, dtype=dtype)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(out_features, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores (…, out_features) of x (…, in_features)."""
        return linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Return the sizes, for print."""
        return f"in_features={self.in_features}, out_features={self.out_features}"
