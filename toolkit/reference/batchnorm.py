"""Batch normalisation: each feature, or each channel of a feature map, gets mean 0 and variance 1 over the batch.

The channels are dimension 1: (N, D) of a dense layer, (N, C, H, W) of a convolution, or any (N, C, …). The positions of
a map share their channel's statistics, so that a convolution stays one. All tensors have one floating dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance (divided by the count) of each channel, (C,) both, over all else of x (N, C, …).

    Raises ValueError for fewer than two dimensions, or fewer than two values a channel: their variance is 0, and the
    result would not depend on x. Source: notes: Weight Initialization, Batch Normalization; Ioffe & Szegedy 2015,
    algorithm 1.

    >>> batch_statistics(torch.tensor([[1.0, 4.0], [3.0, 4.0]]))
    (tensor([2., 4.]), tensor([1., 0.]))
    """
    _check_channels(x)
    if x.numel() // max(1, x.shape[1]) < 2:
        raise ValueError(f"expected more than 1 value per channel in training, got shape {tuple(x.shape)}")
    mean = x.mean(_other_axes(x))
    return mean, ((x - _along_channels(mean, x)) ** 2).mean(_other_axes(x))


def batch_norm(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Return y = γ (x − mean) / √(var + ε) + β for x (N, C, …) and per-channel (C,) mean, var, weight γ and bias β.

    Without weight γ = 1, without bias β = 0. In training mean and var are the batch's, at test time the running ones.
    Raises ValueError for shapes that do not fit and eps ≤ 0. Source: notes: Batch Normalization.

    >>> batch_norm(torch.tensor([[1.0], [3.0]]), torch.tensor([2.0]), torch.tensor([0.75]), eps=0.25).tolist()
    [[-1.0], [1.0]]
    """
    _check_channels(x, mean=mean, var=var, weight=weight, bias=bias)
    _check_eps(eps)
    y = (x - _along_channels(mean, x)) / torch.sqrt(_along_channels(var, x) + eps)
    if weight is not None:
        y = y * _along_channels(weight, x)
    if bias is not None:
        y = y + _along_channels(bias, x)
    return y


def batch_norm_backward(
    upstream: Tensor, x: Tensor, weight: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight (C,) and bias (C,) in training, where mean and variance depend on x, too.

    With x̂ = (x − mean) / s, s = √(var + ε), g the upstream gradient and m the values of a channel:
    ∂L/∂β = Σ g and ∂L/∂γ = Σ g x̂. Then h = γ g is the gradient of x̂, which reaches x by three ways:
    directly, h / s; through the variance, −x̂ Σ(h x̂) / (m s); through the mean, −Σh / (m s). Their sum is
    ∂L/∂x = (h − mean(h) − x̂ mean(h x̂)) / s: what would only shift or stretch the batch is taken out.
    (At test time mean and variance are constants: ∂L/∂x = h / s.)

    Raises ValueError for shapes that do not fit, fewer than two values a channel and eps ≤ 0.
    Source: notes: Backpropagation; Ioffe & Szegedy 2015, section 3.

    >>> dx, dweight, dbias = batch_norm_backward(torch.ones(2, 1), torch.tensor([[1.0], [3.0]]), torch.ones(1))
    >>> dx.tolist(), dweight.tolist(), dbias.tolist()
    ([[0.0], [0.0]], [0.0], [2.0])
    """
    _check_channels(x, weight=weight)
    _check_eps(eps)
    if upstream.shape != x.shape:
        raise ValueError(f"expected an upstream gradient of shape {tuple(x.shape)}, got {tuple(upstream.shape)}")
    mean, var = batch_statistics(x)
    axes = _other_axes(x)
    s = torch.sqrt(_along_channels(var, x) + eps)
    normal = (x - _along_channels(mean, x)) / s
    h = upstream * _along_channels(weight, x)
    through_mean = _along_channels(h.mean(axes), x)
    through_variance = normal * _along_channels((h * normal).mean(axes), x)
    return (h - through_mean - through_variance) / s, (upstream * normal).sum(axes), upstream.sum(axes)


def _other_axes(x: Tensor) -> list[int]:
    return [0, *range(2, x.ndim)]


def _along_channels(per_channel: Tensor, x: Tensor) -> Tensor:
    """Return (C,) as (C, 1, …, 1), which broadcasts over x (N, C, …)."""
    return per_channel.reshape(-1, *[1] * (x.ndim - 2))


def _check_channels(x: Tensor, **per_channel: Tensor | None) -> None:
    if x.ndim < 2:
        raise ValueError(f"expected an input of shape (N, C, ...), got {tuple(x.shape)}")
    for name, values in per_channel.items():
        if values is not None and values.shape != x.shape[1:2]:
            raise ValueError(f"expected {name} of shape ({x.shape[1]},), got {tuple(values.shape)}")


def _check_eps(eps: float) -> None:
    if not eps > 0:
        raise ValueError(f"expected eps > 0, got {eps}")


class BatchNorm(nn.Module):
    """Batch normalisation of (N, C) or (N, C, …); its state dict is that of torch.nn.BatchNorm1d and BatchNorm2d.

    In training it uses the batch's statistics and moves the running ones: running ← (1 − momentum) running +
    momentum · batch, with the unbiased variance (divided by count − 1). In eval it uses the running ones, so that an
    image's result does not depend on its neighbours. affine: learn γ (`weight`, 1 at first) and β (`bias`, 0).

    Raises ValueError for n_features < 1, eps ≤ 0, momentum outside 0 … 1, another number of channels, and in training
    fewer than two values a channel. Source: notes: Weight Initialization, Batch Normalization; Ioffe & Szegedy 2015.

    >>> layer = BatchNorm(2)
    >>> layer(torch.tensor([[0.0, 5.0], [2.0, 5.0]])).round().tolist()
    [[-1.0, 0.0], [1.0, 0.0]]
    >>> layer.running_mean
    tensor([0.1000, 0.5000])
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        n_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_eps(eps)
        if n_features < 1:
            raise ValueError(f"expected n_features ≥ 1, got {n_features}")
        if not 0 <= momentum <= 1:
            raise ValueError(f"expected a momentum between 0 and 1, got {momentum}")
        self.n_features = n_features
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(n_features, dtype=dtype)) if affine else None
        self.bias = nn.Parameter(torch.zeros(n_features, dtype=dtype)) if affine else None
        self.register_buffer("running_mean", torch.zeros(n_features, dtype=dtype))
        self.register_buffer("running_var", torch.ones(n_features, dtype=dtype))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        """Return x (N, C, …) normalised, of the same shape; in training move the running statistics."""
        _check_channels(x, running_mean=self.running_mean)  # a wrong batch must leave the statistics as they are
        mean, var = batch_statistics(x) if self.training else (self.running_mean, self.running_var)
        y = batch_norm(x, mean, var, self.weight, self.bias, self.eps)
        if self.training:
            self._track(mean, var, count=x.numel() // self.n_features)
        return y

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, count: int) -> None:
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var * count / (count - 1), self.momentum)

    def extra_repr(self) -> str:
        """Return the settings, for print."""
        return f"{self.n_features}, eps={self.eps}, momentum={self.momentum}, affine={self.weight is not None}"
