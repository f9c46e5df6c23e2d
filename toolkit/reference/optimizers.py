"""Update rules: how a step is made of a gradient. The rule is a function, its memory is in a torch.optim.Optimizer.

Rules act element by element on floating-point tensors of one shape and dtype and return new ones; x are the weights,
dx the gradient of the loss at x, lr the learning rate. The classes take parameters or parameter groups, a closure,
a learning-rate scheduler and `state_dict` as all of torch's do. Their `weight_decay` adds weight_decay · x to dx: the
gradient of the L2 penalty with λ = weight_decay / 2. They raise ValueError for a setting out of its range, in any
group, and for a sparse gradient. L-BFGS, which looks at the curvature too, is in `lbfgs`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer


def sgd_step(x: Tensor, dx: Tensor, lr: float) -> Tensor:
    """Return x − lr dx.

    Source: notes: Parameter update, SGD.

    >>> sgd_step(torch.tensor([1.0]), torch.tensor([4.0]), lr=0.25).tolist()
    [0.0]
    """
    return x - lr * dx


def momentum_step(x: Tensor, dx: Tensor, velocity: Tensor, lr: float, mu: float) -> tuple[Tensor, Tensor]:
    """Return the new x and velocity: v ← μ v − lr dx, x ← x + v.

    torch keeps v / −lr, which is the same until lr changes: here the old velocity stays as it is, there it is scaled.
    Source: notes: Parameter update, Momentum; Polyak 1964.

    >>> momentum_step(torch.tensor([1.0]), torch.tensor([4.0]), torch.tensor([2.0]), lr=0.25, mu=0.5)
    (tensor([1.]), tensor([0.]))
    """
    velocity = mu * velocity - lr * dx
    return x + velocity, velocity


def nesterov_step(x: Tensor, dx: Tensor, velocity: Tensor, lr: float, mu: float) -> tuple[Tensor, Tensor]:
    """Return the new x and velocity: v' = μ v − lr dx, x ← x − μ v + (1 + μ) v'.

    x is the point ahead, where the gradient is taken, so no second point is needed. What `momentum_step` says of torch
    holds here too. Source: notes: Parameter update, Nesterov Accelerated Gradient; Sutskever et al. 2013.

    >>> nesterov_step(torch.tensor([1.0]), torch.tensor([4.0]), torch.tensor([4.0]), lr=0.25, mu=0.5)
    (tensor([0.5000]), tensor([1.]))
    """
    new = mu * velocity - lr * dx
    return x - mu * velocity + (1 + mu) * new, new


def adagrad_step(x: Tensor, dx: Tensor, cache: Tensor, lr: float, eps: float) -> tuple[Tensor, Tensor]:
    """Return the new x and cache: c ← c + dx², x ← x − lr dx / (√c + ε). The cache only grows, so steps shrink to 0.

    Source: notes: Parameter update, AdaGrad; Duchi et al. 2011.

    >>> adagrad_step(torch.tensor([1.0]), torch.tensor([4.0]), torch.tensor([9.0]), lr=0.5, eps=0.0)
    (tensor([0.6000]), tensor([25.]))
    """
    cache = cache + dx**2
    return x - lr * dx / (cache.sqrt() + eps), cache


def rmsprop_step(
    x: Tensor, dx: Tensor, cache: Tensor, lr: float, decay_rate: float, eps: float
) -> tuple[Tensor, Tensor]:
    """Return the new x and cache: c ← ρ c + (1 − ρ) dx², x ← x − lr dx / (√c + ε), ρ the decay rate.

    Source: notes: Parameter update, RMSProp; Tieleman & Hinton 2012.

    >>> rmsprop_step(torch.tensor([1.0]), torch.tensor([4.0]), torch.tensor([2.0]), lr=0.75, decay_rate=0.5, eps=0.0)
    (tensor([0.]), tensor([9.]))
    """
    cache = decay_rate * cache + (1 - decay_rate) * dx**2
    return x - lr * dx / (cache.sqrt() + eps), cache


def adam_step(
    x: Tensor, dx: Tensor, m: Tensor, v: Tensor, step: int, lr: float, betas: tuple[float, float], eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the new x, m and v; `step` counts from 1.

    m ← β₁ m + (1 − β₁) dx, v ← β₂ v + (1 − β₂) dx², x ← x − lr m̂ / (√v̂ + ε), m̂ = m / (1 − β₁ᵗ), v̂ = v / (1 − β₂ᵗ).
    Source: notes: Parameter update, Adam; Kingma & Ba 2015.

    >>> zero = torch.zeros(1)
    >>> adam_step(zero, torch.tensor([4.0]), zero, zero, step=1, lr=0.5, betas=(0.5, 0.5), eps=0.0)
    (tensor([-0.5000]), tensor([2.]), tensor([8.]))
    """
    beta1, beta2 = betas
    m = beta1 * m + (1 - beta1) * dx
    v = beta2 * v + (1 - beta2) * dx**2
    m_unbiased, v_unbiased = m / (1 - beta1**step), v / (1 - beta2**step)
    return x - lr * m_unbiased / (v_unbiased.sqrt() + eps), m, v


class _Elementwise(Optimizer):
    """What the optimizers below share: the walk over groups and parameters."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters with settings of its own; ValueError for one that is out of its range."""
        _check_settings({**self.defaults, **param_group})
        super().add_param_group(param_group)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step for every parameter with a gradient; return the loss of the closure, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for x in group["params"]:
                if x.grad is None:
                    continue
                if x.grad.is_sparse:
                    raise ValueError(f"expected a dense gradient, got a sparse one of shape {tuple(x.grad.shape)}")
                dx = x.grad + group["weight_decay"] * x if group["weight_decay"] else x.grad
                x.copy_(self._rule(x, dx, self.state[x], group))
        return loss

    def _rule(self, x: Tensor, dx: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        raise NotImplementedError


class SGD(_Elementwise):
    """Gradient descent by `sgd_step`; on mini-batches it is the stochastic one.

    >>> x = torch.nn.Parameter(torch.tensor([1.0]))
    >>> (2 * x**2).sum().backward()
    >>> SGD([x], lr=0.25).step()
    >>> x.item()
    0.0
    """

    def __init__(self, params: Iterable[Any], lr: float, *, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    def _rule(self, x: Tensor, dx: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        return sgd_step(x, dx, group["lr"])


class Momentum(_Elementwise):
    """`momentum_step`, from velocity 0; mu, 0 ≤ mu < 1, is what is left of the velocity at each step."""

    def __init__(self, params: Iterable[Any], lr: float, mu: float = 0.9, *, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "mu": mu, "weight_decay": weight_decay})

    def _rule(self, x: Tensor, dx: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        velocity = state.get("velocity", torch.zeros_like(x))
        new, state["velocity"] = momentum_step(x, dx, velocity, group["lr"], group["mu"])
        return new


class Nesterov(_Elementwise):
    """`nesterov_step`, from velocity 0; 0 ≤ mu < 1."""

    def __init__(self, params: Iterable[Any], lr: float, mu: float = 0.9, *, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "mu": mu, "weight_decay": weight_decay})

    def _rule(self, x: Tensor, dx: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        velocity = state.get("velocity", torch.zeros_like(x))
        new, state["velocity"] = nesterov_step(x, dx, velocity, group["lr"], group["mu"])
        return new


class AdaGrad(_Elementwise):
    """`adagrad_step`, from cache 0; eps ≥ 0 is the notes' 1e-7 (torch's default: 1e-10)."""

    def __init__(
        self, params: Iterable[Any], lr: float = 0.01, *, eps: float = 1e-7, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "eps": eps, "weight_decay": weight_decay})

    def _rule(self, x: Tensor, dx: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        cache = state.get("cache", torch.zeros_like(x))
        new, state["cache"] = adagrad_step(x, dx, cache, group["lr"], group["eps"])
        return new


class RMSProp(_Elementwise):
    """`rmsprop_step`, from cache 0; 0 ≤ decay_rate < 1, eps ≥ 0 is the notes' 1e-7 (torch's default: 1e-8)."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        decay_rate: float = 0.99,
        *,
        eps: float = 1e-7,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "decay_rate": decay_rate, "eps": eps, "weight_decay": weight_decay})

    def _rule(self, x: Tensor, dx: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        cache = state.get("cache", torch.zeros_like(x))
        new, state["cache"] = rmsprop_step(x, dx, cache, group["lr"], group["decay_rate"], group["eps"])
        return new


class Adam(_Elementwise):
    """`adam_step`, from m = v = 0: the notes' default choice, with β₂ 0.999 and ε 1e-8 where they have 0.99 and 1e-7.

    Both betas are at least 0 and below 1, eps ≥ 0. Source: notes: Parameter update, Adam; Kingma & Ba 2015.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        *,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def _rule(self, x: Tensor, dx: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        m, v = state.get("m", torch.zeros_like(x)), state.get("v", torch.zeros_like(x))
        state["step"] = state.get("step", 0) + 1
        new, state["m"], state["v"] = adam_step(x, dx, m, v, state["step"], group["lr"], group["betas"], group["eps"])
        return new


def _check_settings(group: dict[str, Any]) -> None:
    for name in ("lr", "eps", "weight_decay"):
        if name in group and not 0 <= group[name] < math.inf:
            raise ValueError(f"expected a finite {name} ≥ 0, got {group[name]}")
    for name in ("mu", "decay_rate"):
        if name in group and not 0 <= group[name] < 1:
            raise ValueError(f"expected 0 ≤ {name} < 1, got {group[name]}")
    betas = group.get("betas", (0.0, 0.0))
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"expected two betas, 0 ≤ beta < 1, got {betas}")
