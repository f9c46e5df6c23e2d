"""Full-batch against mini-batch gradient descent on a convex problem."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from toolkit.experiments.digits import Digits, batches, digits
from toolkit.experiments.finding import Cell, Finding
from toolkit.reference.lbfgs import LBFGS
from toolkit.reference.losses import cross_entropy
from toolkit.reference.optimizers import SGD
from toolkit.reference.schedules import one_over_t

STRENGTH, LR, EPOCHS, NEAR = 0.01, 0.2, 80, 0.01
SIZES = {"full batch (1200)": 1200, "mini-batch (256)": 256, "mini-batch (32)": 32}


def run(seed: int = 0) -> Finding:
    """Train a linear softmax classifier with L2 on the digits, in batches of three sizes."""
    data = digits(seed)
    best = _optimum(data)
    gaps: dict[str, list[float]] = {name: _descend(data, size, seed, best) for name, size in SIZES.items()}
    soon = {name: next((i for i, gap in enumerate(found) if gap < NEAR), EPOCHS) for name, found in gaps.items()}
    rows: list[tuple[Cell, ...]] = [
        (name, found[1], found[5], found[20], found[-1], soon[name]) for name, found in gaps.items()
    ]
    names = list(SIZES)
    return Finding(
        name="minibatch",
        title="Does a mini-batch get near the optimum in fewer passes over the data?",
        claim="gradient descent can use all of the data or a mini-batch of it (256) for each step, which works better.",
        shown=soon[names[1]] < soon[names[0]] and all(gaps[name][-1] < NEAR for name in names[1:]),
        verdict=(
            f"at the same rate, passes until the loss is within {NEAR} of the optimum {best:.4f}: "
            f"{soon[names[0]]}{_at_least(soon[names[0]])} full batch, {soon[names[1]]} in batches of 256, "
            f"{soon[names[2]]} of 32; after {EPOCHS} passes, the rate falling as 1/t, they are "
            f"{gaps[names[0]][-1]:.1e}, {gaps[names[1]][-1]:.1e} and {gaps[names[2]][-1]:.1e} away"
        ),
        header=("batch", "gap after 1", "5", "20", f"{EPOCHS} passes", f"passes to {NEAR}"),
        rows=tuple(rows),
        draw=partial(_draw, gaps),
    )


def _at_least(passes: int) -> str:
    return " or more" if passes == EPOCHS else ""


def _loss(weight: Tensor, data: Digits, rows: Tensor | slice = slice(None)) -> Tensor:
    return cross_entropy(data.x[rows].double() @ weight, data.y[rows]) + STRENGTH * (weight**2).sum()


def _optimum(data: Digits) -> float:
    weight = torch.nn.Parameter(torch.zeros(64, 10, dtype=torch.float64))
    optimizer = LBFGS([weight])

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = _loss(weight, data)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    return [optimizer.step(closure) for _ in range(120)][-1]


def _descend(data: Digits, size: int, seed: int, best: float) -> list[float]:
    """Return the distance of the loss from the optimum before the first and after each pass."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.nn.Parameter(torch.zeros(64, 10, dtype=torch.float64))
    optimizer = SGD([weight], LR)
    gaps = [float(_loss(weight.detach(), data)) - best]
    for epoch in range(EPOCHS):
        optimizer.param_groups[0]["lr"] = LR * one_over_t(epoch, rate=0.05)
        for rows in batches(len(data.x), size, generator):
            optimizer.zero_grad()
            _loss(weight, data, rows).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        gaps.append(float(_loss(weight.detach(), data)) - best)
    return gaps


def _draw(gaps: dict[str, list[float]], figure: Any) -> None:
    axis = figure.subplots()
    for name, found in gaps.items():
        axis.plot([max(gap, 1e-12) for gap in found], label=name)
    axis.axhline(NEAR, color="gray", linestyle=":", label=f"within {NEAR}")
    axis.set(xlabel="passes over the data", ylabel="loss − optimum", yscale="log")
    axis.grid(alpha=0.3)
    axis.legend()
