"""Dropout three ways: scaled at test time, inverted (scaled in training), and averaged over many masks.

`keep_prob` is the chance that a unit stays, over 0 and at most 1; torch names the chance that it goes,
p_drop = 1 − keep_prob. (The notes' listing calls `probability` the chance of dropout and uses it as the one to stay.)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def dropout_mask(x: Tensor, keep_prob: float) -> Tensor:
    """Return a new mask of the shape and dtype of x: 1 with the chance keep_prob, else 0.

    Drawn from torch's global generator, in the way that torch.nn.Dropout draws on a CPU: one seed, one mask.
    Raises ValueError for a keep_prob outside 0 < … ≤ 1. Source: notes: Regularization, Dropout.

    >>> dropout_mask(torch.zeros(2, 3), keep_prob=1.0).tolist()
    [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    _check_keep_prob(keep_prob)
    return torch.empty_like(x).bernoulli_(keep_prob)


def dropout(x: Tensor, mask: Tensor | float) -> Tensor:
    """Return x · mask, in training; at test time the mask is replaced by its mean, the number keep_prob.

    x: float, any shape; mask: the same shape, of 0 and 1. Raises ValueError for another shape.
    Source: notes: Regularization, Dropout; Srivastava et al. 2014.

    >>> dropout(torch.tensor([2.0, 4.0]), torch.tensor([0.0, 1.0])).tolist(), dropout(torch.tensor([2.0]), 0.5).tolist()
    ([0.0, 4.0], [1.0])
    """
    _check_mask(x, mask)
    return x * mask


def dropout_backward(upstream: Tensor, mask: Tensor | float) -> Tensor:
    """Return upstream · mask: what did not go forward gets no gradient. Raises ValueError for another shape.

    Source: notes: Regularization, Dropout; Backpropagation.

    >>> dropout_backward(torch.tensor([3.0, 3.0]), torch.tensor([0.0, 1.0])).tolist()
    [0.0, 3.0]
    """
    _check_mask(upstream, mask)
    return upstream * mask


def inverted_dropout(x: Tensor, mask: Tensor, keep_prob: float) -> Tensor:
    """Return x · (mask / keep_prob): the mean over masks is x, so that nothing is left to do at test time.

    x: float, any shape; mask: the same shape, of 0 and 1. Raises ValueError for another shape, and for a keep_prob
    outside 0 < … ≤ 1. Source: notes: Regularization, Inverted Dropout (whose listing divides x, and one layer only).

    >>> inverted_dropout(torch.tensor([2.0, 4.0]), torch.tensor([0.0, 1.0]), keep_prob=0.5).tolist()
    [0.0, 8.0]
    """
    _check_keep_prob(keep_prob)
    _check_mask(x, mask)
    return x * (mask / keep_prob)


def inverted_dropout_backward(upstream: Tensor, mask: Tensor, keep_prob: float) -> Tensor:
    """Return upstream · (mask / keep_prob). Raises ValueError as `inverted_dropout` does.

    Source: notes: Regularization, Inverted Dropout; Backpropagation.

    >>> inverted_dropout_backward(torch.tensor([3.0, 3.0]), torch.tensor([0.0, 1.0]), keep_prob=0.5).tolist()
    [0.0, 6.0]
    """
    _check_keep_prob(keep_prob)
    _check_mask(upstream, mask)
    return upstream * (mask / keep_prob)


def _check_keep_prob(keep_prob: float) -> None:
    if not 0 < keep_prob <= 1:
        raise ValueError(f"expected 0 < keep_prob ≤ 1, got {keep_prob}")


def _check_mask(x: Tensor, mask: Tensor | float) -> None:
    if isinstance(mask, Tensor) and mask.shape != x.shape:
        raise ValueError(f"expected a mask of shape {tuple(x.shape)}, got {tuple(mask.shape)}")


class DropoutScaledAtTest(nn.Module):
    """Dropout as it was first written: masks in training, scales by keep_prob in eval.

    x: float, any shape; the result has its shape and dtype. Raises ValueError for a keep_prob outside 0 < … ≤ 1.
    Source: notes: Regularization, Dropout (testing stage).

    >>> DropoutScaledAtTest(0.5).eval()(torch.tensor([2.0, 4.0])).tolist()
    [1.0, 2.0]
    """

    def __init__(self, keep_prob: float = 0.5) -> None:
        super().__init__()
        _check_keep_prob(keep_prob)
        self.keep_prob = keep_prob

    def forward(self, x: Tensor) -> Tensor:
        """Return x masked (training) or scaled (eval)."""
        return dropout(x, dropout_mask(x, self.keep_prob) if self.training else self.keep_prob)

    def extra_repr(self) -> str:
        """Return the setting, for print."""
        return f"keep_prob={self.keep_prob}"


class InvertedDropout(nn.Module):
    """Dropout as everybody runs it: masks and divides by keep_prob in training, returns x in eval.

    x: float, any shape; the result has its shape and dtype. On a CPU equal to torch.nn.Dropout(1 − keep_prob) of the
    same seed. Raises ValueError for a keep_prob outside 0 < … ≤ 1. Source: notes: Regularization, Inverted Dropout.

    >>> InvertedDropout(0.5).eval()(torch.tensor([2.0, 4.0])).tolist()
    [2.0, 4.0]
    """

    def __init__(self, keep_prob: float = 0.5) -> None:
        super().__init__()
        _check_keep_prob(keep_prob)
        self.keep_prob = keep_prob

    def forward(self, x: Tensor) -> Tensor:
        """Return x masked and scaled (training), or x (eval)."""
        if not self.training or self.keep_prob == 1:  # where nothing can drop, torch draws no mask either
            return x
        return inverted_dropout(x, dropout_mask(x, self.keep_prob), self.keep_prob)

    def extra_repr(self) -> str:
        """Return the setting, for print."""
        return f"keep_prob={self.keep_prob}"


@torch.no_grad()
def monte_carlo(model: nn.Module, x: Tensor, samples: int = 32) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation, element by element, of `samples` outputs under as many masks: an ensemble.

    Only this file's dropout layers are active: all other modules (BatchNorm) are in eval, and every module has its own
    mode again afterwards. Both results have the shape and dtype of model(x); no gradient is recorded.
    Raises ValueError for samples < 2 and a model without these layers, whose outputs would all be equal.
    Source: notes: Regularization, Dropout (Monte Carlo approximation); Gal & Ghahramani 2016.

    >>> mean, spread = monte_carlo(InvertedDropout(1.0), torch.tensor([2.0, 4.0]), samples=3)
    >>> mean.tolist(), spread.tolist()
    ([2.0, 4.0], [0.0, 0.0])
    """
    if samples < 2:
        raise ValueError(f"expected samples ≥ 2, got {samples}")
    modes = [(module, module.training) for module in model.modules()]
    if not any(isinstance(module, (DropoutScaledAtTest, InvertedDropout)) for module, _ in modes):
        raise ValueError("expected a model with DropoutScaledAtTest or InvertedDropout layers, got one without")
    try:
        for module, _ in modes:
            module.training = isinstance(module, (DropoutScaledAtTest, InvertedDropout))
        outputs = torch.stack([model(x) for _ in range(samples)])
    finally:
        for module, mode in modes:
            module.training = mode  # not train(mode), which would set the children, too
    return outputs.mean(0), outputs.std(0)
