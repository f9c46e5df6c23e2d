"""L-BFGS: the curvature, guessed from the last few steps, turns the gradient towards the minimum."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

SUFFICIENT = 1e-4  # a step has to bring this share of the decrease that the slope promises (Armijo 1966)
MAX_HALVINGS = 25


def two_loop(gradient: Tensor, steps: Sequence[Tensor], changes: Sequence[Tensor]) -> Tensor:
    """Return H · gradient, H the BFGS estimate of the inverse Hessian, which is never written down.

    gradient: (D,). steps: the last moves sᵢ = xᵢ₊₁ − xᵢ, oldest first, (D,) each; changes: those of the gradient, yᵢ.
    H starts as (s·y / y·y) I of the last pair and gets the rank-2 update
    H ← (I − ρ s yᵀ) H (I − ρ y sᵀ) + ρ s sᵀ, ρ = 1 / y·s, of each pair; O(D) numbers a pair instead of O(D²).
    Raises ValueError unless there are as many changes as steps and each s·y > 0.
    Source: notes: Parameter update, Limited memory BFGS; Nocedal & Wright 2006, algorithm 7.4.

    >>> two_loop(torch.tensor([4.0]), [torch.tensor([1.0])], [torch.tensor([2.0])])  # the second derivative is 2
    tensor([2.])
    """
    if len(steps) != len(changes):
        raise ValueError(f"expected as many changes as steps, got {len(changes)} and {len(steps)}")
    if not steps:
        return gradient.clone()
    rhos = []
    for s, y in zip(steps, changes, strict=True):
        product = float(s @ y)
        if not product > 0:
            raise ValueError(f"expected steps along which the gradient grows, s·y > 0, got {product}")
        rhos.append(1 / product)
    result = gradient.clone()
    shares = []
    for s, y, rho in zip(reversed(steps), reversed(changes), reversed(rhos), strict=True):
        share = rho * float(s @ result)
        shares.append(share)
        result = result - share * y
    result = result * (float(steps[-1] @ changes[-1]) / float(changes[-1] @ changes[-1]))
    for s, y, rho, share in zip(steps, changes, rhos, reversed(shares), strict=True):
        result = result + s * (share - rho * float(y @ result))
    return result


class LBFGS(Optimizer):
    """One quasi-Newton step a call: x ← x − t H dx, H by `two_loop`, t halved from lr until the loss falls enough.

    step(closure): the closure clears the gradients, computes the loss of all weights together, calls backward and
    returns the loss; it runs once or more a step. A step that no t makes better leaves the weights as they are and
    forgets the curvature. The loss has to be the same function at every call: full batch, no dropout.
    torch.optim.LBFGS differs in its first step and its line search, so it reaches the same minimum by another way.

    lr > 0 is the first t tried (of the very first step lr / ‖dx‖ at most), history ≥ 1 the pairs kept: 2 · history · D
    numbers. One group of parameters. Raises ValueError for settings out of range, several groups, and no closure.
    Source: notes: Parameter update, Limited memory BFGS; Nocedal 1980.

    >>> x = torch.nn.Parameter(torch.tensor([3.0, -2.0], dtype=torch.float64))
    >>> optimizer = LBFGS([x])
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = (x**2 * torch.tensor([1.0, 50.0])).sum()
    ...     loss.backward()
    ...     return loss
    >>> for _ in range(20):
    ...     loss = optimizer.step(closure)
    >>> bool(x.abs().max() < 1e-6)
    True
    """

    def __init__(self, params: Iterable[Any], lr: float = 1.0, history: int = 10) -> None:
        if not 0 < lr < math.inf:
            raise ValueError(f"expected a finite lr > 0, got {lr}")
        if history < 1:
            raise ValueError(f"expected history ≥ 1, got {history}")
        super().__init__(params, {"lr": lr, "history": history})
        if len(self.param_groups) != 1:
            raise ValueError(f"expected one group of parameters, got {len(self.param_groups)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> float:  # type: ignore[override]
        """Take one step; return the loss before it."""
        if closure is None:
            raise ValueError("expected a closure that computes the loss and its gradients, got None")
        group = self.param_groups[0]
        state = self.state[group["params"][0]]
        steps, changes = state.setdefault("steps", []), state.setdefault("changes", [])
        loss, dx = self._evaluate(closure)
        if not math.isfinite(loss) or not dx.any():
            return loss
        direction = -two_loop(dx, steps, changes)
        slope = float(direction @ dx)
        length = group["lr"] if steps else min(group["lr"], group["lr"] / float(dx.norm()))
        start = self._weights()
        for _ in range(MAX_HALVINGS):
            self._set(start + length * direction)
            new_loss, new_dx = self._evaluate(closure)
            if new_loss <= loss + SUFFICIENT * length * slope:
                self._remember(self._weights() - start, new_dx - dx)
                return loss
            length /= 2
        self._set(start)
        steps.clear()
        changes.clear()
        return loss

    def _remember(self, step: Tensor, change: Tensor) -> None:
        """Keep a pair along which the gradient grows; another one would make H indefinite."""
        group = self.param_groups[0]
        state = self.state[group["params"][0]]
        if float(step @ change) > 1e-10 * float(step.norm() * change.norm()):
            state["steps"] = [*state["steps"], step][-group["history"] :]
            state["changes"] = [*state["changes"], change][-group["history"] :]

    def _evaluate(self, closure: Callable[[], Any]) -> tuple[float, Tensor]:
        """Return the loss and its gradient (D,) at the weights as they are."""
        with torch.enable_grad():
            result = closure()
        loss = float(result.detach() if isinstance(result, Tensor) else result)
        gradients = [torch.zeros_like(x) if x.grad is None else x.grad for x in self.param_groups[0]["params"]]
        return loss, torch.cat([gradient.reshape(-1) for gradient in gradients])

    def _weights(self) -> Tensor:
        return torch.cat([x.detach().reshape(-1) for x in self.param_groups[0]["params"]])

    def _set(self, flat: Tensor) -> None:
        parameters = self.param_groups[0]["params"]
        for x, values in zip(parameters, torch.split(flat, [x.numel() for x in parameters]), strict=True):
            x.copy_(values.view_as(x))
