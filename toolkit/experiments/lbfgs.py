"""L-BFGS on full batches and on mini-batches, the same number of passes over the data."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from toolkit.experiments.digits import Digits, batches, digits
from toolkit.experiments.finding import Cell, Finding
from toolkit.reference.lbfgs import LBFGS
from toolkit.reference.losses import cross_entropy
from toolkit.reference.optimizers import SGD

STRENGTH, PASSES, LR = 0.001, 60, 0.1
# Batch size of each; SGD's rate is LR.
RUNS = {
    "L-BFGS, full batch": 1200,
    "SGD, full batch": 1200,
    "L-BFGS, batches of 32": 32,
    "SGD, batches of 32": 32,
}


def run(seed: int = 0) -> Finding:
    """Train a linear softmax classifier with L2 on the digits; every evaluation of a line search counts."""
    data = digits(seed)
    best = _losses(data, "L-BFGS, full batch", seed, passes=1000)[-1][1]
    curves = {name: _losses(data, name, seed, PASSES) for name in RUNS}
    gaps = {name: [(done, max(loss - best, 1e-12)) for done, loss in curve] for name, curve in curves.items()}
    last = {name: curve[-1][1] for name, curve in gaps.items()}
    rows: list[tuple[Cell, ...]] = [
        (name, *(min(gap for done, gap in curve if done <= at) for at in (1, 10)), last[name])
        for name, curve in gaps.items()
    ]
    full, plain_full, mini, plain_mini = (last[name] for name in RUNS)
    return Finding(
        name="lbfgs",
        title="Is L-BFGS good on full batches and poor on mini-batches?",
        claim="L-BFGS works well with the full batch and does not work well with mini-batches.",
        shown=full < 0.1 * plain_full and mini > 10 * full and mini > plain_mini,
        verdict=(
            f"after {PASSES} passes over the data the loss is {full:.1e} above the optimum with L-BFGS on full batches "
            f"({plain_full:.1e} with gradient descent), and {mini:.1e} with L-BFGS on batches of 32 ({plain_mini:.1e} "
            f"with SGD on the same)"
        ),
        header=("rule", "best gap in 1 pass", "in 10", f"gap after {PASSES}"),
        rows=tuple(rows),
        draw=partial(_draw, gaps),
    )


def _loss(weight: Tensor, data: Digits, rows: Tensor | slice = slice(None)) -> Tensor:
    return cross_entropy(data.x[rows].double() @ weight, data.y[rows]) + STRENGTH * (weight**2).sum()


def _losses(data: Digits, name: str, seed: int, passes: int) -> list[tuple[float, float]]:
    """Return pairs of passes done and the loss on all rows, about one a pass."""
    size = RUNS[name]
    weight = torch.nn.Parameter(torch.zeros(64, 10, dtype=torch.float64))
    optimizer: torch.optim.Optimizer = LBFGS([weight]) if name.startswith("L-BFGS") else SGD([weight], LR)
    curve = [(0.0, float(_loss(weight.detach(), data)))]
    seen = 0
    for rows in _endless(len(data.x), size, seed):

        def closure(rows: Tensor = rows) -> Tensor:
            nonlocal seen
            seen += len(rows)
            optimizer.zero_grad()
            loss = _loss(weight, data, rows)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]
        if seen / len(data.x) >= curve[-1][0] + 1:
            curve.append((seen / len(data.x), float(_loss(weight.detach(), data))))
        stuck = name == "L-BFGS, full batch" and float(weight.grad.norm()) < 1e-9 if weight.grad is not None else False
        if seen >= passes * len(data.x) or stuck:
            return curve
    raise AssertionError("the batches are endless")


def _endless(n: int, size: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from batches(n, size, generator)


def _draw(gaps: dict[str, list[tuple[float, float]]], figure: Any) -> None:
    axis = figure.subplots()
    for name, curve in gaps.items():
        axis.plot([done for done, _ in curve], [gap for _, gap in curve], label=name)
    axis.set(xlabel="passes over the data, line searches included", ylabel="loss − optimum", yscale="log")
    axis.grid(alpha=0.3)
    axis.legend()
