"""The update rules in a narrow valley, and leaving a saddle."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from toolkit.experiments.finding import Cell, Finding
from toolkit.reference.optimizers import SGD, AdaGrad, Adam, Momentum, Nesterov, RMSProp

STEEP = 100.0  # the valley is a hundred times as steep across as along
BUDGET, TOLERANCE, OUT, SADDLE_RATE = 400, 1e-3, 1.0, 0.1
RULES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": SGD,
    "momentum": Momentum,
    "Nesterov": Nesterov,
    "AdaGrad": AdaGrad,
    "RMSProp": RMSProp,
    "Adam": Adam,
}
RATES = tuple(10 ** (exponent / 4) for exponent in range(-14, 3))


def valley(x: Tensor) -> Tensor:
    """Return (a² + STEEP · b²) / 2, a = 0.8 x₁ + 0.6 x₂ along the valley and b = 0.8 x₂ − 0.6 x₁ across.

    Turned, since AdaGrad, RMSProp and Adam scale each coordinate for itself: a valley along an axis is none to them.
    """
    return ((0.8 * x[0] + 0.6 * x[1]) ** 2 + STEEP * (0.8 * x[1] - 0.6 * x[0]) ** 2) / 2


def saddle(x: Tensor) -> Tensor:
    """Return x₁²/2 − x₂²/2 + x₂⁴/40: a saddle at 0 and two minima at x₂ = ±√10."""
    return x[0] ** 2 / 2 - x[1] ** 2 / 2 + x[1] ** 4 / 40


def run(seed: int = 0) -> Finding:
    """Count the steps of each rule: in the valley at its own best rate, at the saddle all at SADDLE_RATE."""
    generator = torch.Generator().manual_seed(seed)
    turn = 0.05 * torch.randn(1, generator=generator, dtype=torch.float64)
    starts = {
        "valley": torch.tensor([-2.0, 1.0], dtype=torch.float64) + turn,
        "saddle": torch.tensor([2.0, 1e-4], dtype=torch.float64) * (1 + turn),
    }
    steps: dict[tuple[str, str], int] = {}
    rows: list[tuple[Cell, ...]] = []
    paths: dict[str, list[list[float]]] = {}
    for name, rule in RULES.items():
        needed, best = BUDGET, RATES[0]
        for lr in RATES:
            found = _steps(rule, lr, valley, starts["valley"], _is_low, needed)
            needed, best = min((needed, best), (found, lr))
        steps[name, "valley"] = needed
        steps[name, "saddle"] = _steps(rule, SADDLE_RATE, saddle, starts["saddle"], _is_out, BUDGET)
        paths[name] = _path(rule, best, valley, starts["valley"], 60)
        rows.append((name, best, needed, steps[name, "saddle"]))
    faster = [name for name in RULES if name != "SGD" and steps[name, "valley"] < steps["SGD", "valley"]]
    nesterov_better = steps["Nesterov", "valley"] <= steps["momentum", "valley"]
    return Finding(
        name="update_rules",
        title="Which update rule is quick in a narrow valley, and away from a saddle?",
        claim="SGD is very slow; momentum is faster, Nesterov always faster still, and Adam is a good default choice.",
        shown=all(name in faster for name in ("momentum", "Nesterov", "Adam")) and nesterov_better,
        verdict=(
            f"at its best rate SGD takes {steps['SGD', 'valley']} steps to the valley's bottom, momentum "
            f"{steps['momentum', 'valley']}, Nesterov {steps['Nesterov', 'valley']}, Adam {steps['Adam', 'valley']}; "
            f"off the saddle {steps['SGD', 'saddle']}, {steps['momentum', 'saddle']}, {steps['Nesterov', 'saddle']} "
            f"and {steps['Adam', 'saddle']}. Two functions are no proof of “always”"
        ),
        header=("rule", "rate (valley)", "steps (valley)", f"steps (saddle, rate {SADDLE_RATE})"),
        rows=tuple(rows),
        draw=partial(_draw, paths, steps),
    )


def _is_low(x: Tensor) -> bool:
    return float(valley(x)) < TOLERANCE


def _is_out(x: Tensor) -> bool:
    return abs(float(x[1])) > OUT


def _path(
    rule: Callable[..., torch.optim.Optimizer], lr: float, function: Callable[[Tensor], Tensor], start: Tensor, n: int
) -> list[list[float]]:
    x = torch.nn.Parameter(start.clone())
    optimizer = rule([x], lr=lr)
    path = [x.tolist()]
    for _ in range(n):
        optimizer.zero_grad()
        function(x).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        path.append(x.tolist())
    return path


def _steps(
    rule: Callable[..., torch.optim.Optimizer],
    lr: float,
    function: Callable[[Tensor], Tensor],
    start: Tensor,
    done: Callable[[Tensor], bool],
    budget: int,
) -> int:
    """Return the steps until `done` holds ten times in a row (so passing through is not arriving), or the budget."""
    x = torch.nn.Parameter(start.clone())
    optimizer = rule([x], lr=lr)
    held = 0
    for step in range(1, budget + 10):
        optimizer.zero_grad()
        function(x).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        value = x.detach()
        if not value.isfinite().all() or float(value.abs().max()) > 1e6:
            return budget
        held = held + 1 if done(value) else 0
        if held == 10:
            return step - 9
    return budget


def _draw(paths: dict[str, list[list[float]]], steps: dict[tuple[str, str], int], figure: Any) -> None:
    import numpy as np

    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    across, along = np.meshgrid(np.linspace(-2.4, 1.8, 200), np.linspace(-2.2, 1.4, 200))
    left.contour(
        across,
        along,
        ((0.8 * across + 0.6 * along) ** 2 + STEEP * (0.8 * along - 0.6 * across) ** 2) / 2,
        levels=np.logspace(-1, 2, 10),
        colors="lightgray",
    )
    for name in ("SGD", "momentum", "Nesterov", "Adam"):
        path = paths[name]
        left.plot([x for x, _ in path], [y for _, y in path], marker=".", markersize=3, linewidth=1, label=name)
    left.set(title="the valley: the first 60 steps", xlabel="x₁", ylabel="x₂", xlim=(-2.4, 1.8), ylim=(-2.2, 1.4))
    left.legend(loc="lower right", fontsize="small")
    places = np.arange(len(RULES))
    for offset, where in ((-0.2, "valley"), (0.2, "saddle")):
        bars = right.barh(places + offset, [steps[name, where] for name in RULES], height=0.38, label=where)
        right.bar_label(bars, padding=2, fontsize="small")
    right.set_yticks(places, list(RULES))
    right.invert_yaxis()
    right.set(title="steps until it is there", xscale="log", xlim=(1, 3 * max(steps.values())))
    right.legend(loc="lower right", fontsize="small")
