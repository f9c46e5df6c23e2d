"""Weight regularisation: of the weights that fit the data alike, which one is preferred.

total loss = data loss + penalty. `weights` is one float tensor of any shape; of several layers the penalties add up:
`sum(l2(layer.weight, 1e-4) for layer in layers)` (weights alone: a bias does not make a function wilder). `strength`
is λ, finite and at least 0; what is not raises ValueError. Penalties are scalars, gradients have the weights' shape,
both their dtype.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def l2(weights: Tensor, strength: float) -> Tensor:
    """Return λ Σ w²: many small weights cost less than one large one, so weights spread out.

    torch's weight_decay wd adds wd · w to the gradient, so it is this penalty with λ = wd / 2.
    Source: notes: Weight Regularization, L2.

    >>> l2(torch.tensor([1.0, 0, 0, 0]), 1.0).item(), l2(torch.full((4,), 0.25), 1.0).item()
    (1.0, 0.25)
    """
    _check_strength(strength)
    return strength * (weights**2).sum()


def l2_gradient(weights: Tensor, strength: float) -> Tensor:
    """Return 2 λ w: it pulls the harder, the larger a weight is, and never quite to 0.

    Source: notes: Weight Regularization, L2.

    >>> l2_gradient(torch.tensor([1.0, -2.0]), 0.5).tolist()
    [1.0, -2.0]
    """
    _check_strength(strength)
    return 2 * strength * weights


def l1(weights: Tensor, strength: float) -> Tensor:
    """Return λ Σ |w|: the weights that the data does not need become 0, so few are left.

    Source: notes: Weight Regularization, L1.

    >>> l1(torch.tensor([1.0, -2.0]), 0.5).item()
    1.5
    """
    _check_strength(strength)
    return strength * weights.abs().sum()


def l1_gradient(weights: Tensor, strength: float) -> Tensor:
    """Return λ sign(w), 0 at w = 0: it pulls as hard however small a weight is.

    Steps along it jump to and fro over 0; `soft_threshold` stops there. Source: notes: Weight Regularization, L1.

    >>> l1_gradient(torch.tensor([3.0, -2.0, 0.0]), 0.5).tolist()
    [0.5, -0.5, 0.0]
    """
    _check_strength(strength)
    return strength * torch.sign(weights)


def elastic_net(weights: Tensor, strength: float, l1_share: float = 0.5) -> Tensor:
    """Return λ (α Σ |w| + (1 − α) Σ w²), α the share of L1 between 0 and 1; another one raises ValueError.

    Source: notes: Weight Regularization (L1 and L2 together); Zou & Hastie 2005.

    >>> elastic_net(torch.tensor([1.0, -2.0]), 1.0, l1_share=0.5).item()
    4.0
    """
    _check_share(l1_share)
    return l1(weights, strength * l1_share) + l2(weights, strength * (1 - l1_share))


def elastic_net_gradient(weights: Tensor, strength: float, l1_share: float = 0.5) -> Tensor:
    """Return λ (α sign(w) + 2 (1 − α) w). Raises ValueError as `elastic_net` does.

    Source: notes: Weight Regularization (L1 and L2 together); Zou & Hastie 2005.

    >>> elastic_net_gradient(torch.tensor([1.0, -2.0]), 1.0, l1_share=0.5).tolist()
    [1.5, -2.5]
    """
    _check_share(l1_share)
    return l1_gradient(weights, strength * l1_share) + l2_gradient(weights, strength * (1 - l1_share))


def soft_threshold(weights: Tensor, amount: float) -> Tensor:
    """Return sign(w) max(0, |w| − amount): the proximal step of L1, which makes weights exactly 0.

    After a step of size lr along the data loss alone, `soft_threshold(weights, lr * strength)` does what L1 asks.
    Source: notes: Weight Regularization, L1 (sparse); Daubechies et al. 2004.

    >>> soft_threshold(torch.tensor([3.0, -2.0, 0.5]), 1.0).tolist()
    [2.0, -1.0, 0.0]
    """
    _check_strength(amount)
    return torch.where(weights.abs() <= amount, 0.0, weights - amount * torch.sign(weights))  # NaN stays NaN


def _check_strength(strength: float) -> None:
    if not 0 <= strength < math.inf:
        raise ValueError(f"expected a finite strength ≥ 0, got {strength}")


def _check_share(l1_share: float) -> None:
    if not 0 <= l1_share <= 1:
        raise ValueError(f"expected 0 ≤ l1_share ≤ 1, got {l1_share}")
