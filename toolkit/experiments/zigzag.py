"""What inputs away from 0 do to the path of gradient descent."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from toolkit.experiments.finding import Cell, Finding
from toolkit.reference.optimizers import SGD

N, TOLERANCE, MAX_STEPS = 400, 1e-3, 200_000
SHIFTS = (0.0, 0.5, 1.0, 2.0)


def run(seed: int = 0) -> Finding:
    """Fit a plane without an intercept to the same points at different distances from 0."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(N, 2, generator=generator, dtype=torch.float64) - 0.5
    points = (points - points.mean(0)) / points.std(0, correction=0)
    target = torch.tensor([1.0, -1.0], dtype=torch.float64)
    paths: dict[float, Tensor] = {}
    rows: list[tuple[Cell, ...]] = []
    for shift in SHIFTS:
        paths[shift], same_sign = _descend(points + shift, target)
        straight = float((target - paths[shift][0]).norm())
        length = float((paths[shift][1:] - paths[shift][:-1]).norm(dim=1).sum())
        rows.append((shift, len(paths[shift]) - 1, length / straight, same_sign))
    first, last = rows[0], rows[-1]
    return Finding(
        name="zigzag",
        title="Does descent zigzag where all inputs are positive?",
        claim="if a layer's inputs are not zero-centred, gradients of a neuron's weights share their sign, and descent "
        "zigzags and converges slowly.",
        shown=float(last[1]) > 3 * float(first[1]) and float(last[2]) > 1.5 * float(first[2]),
        verdict=(
            f"to come within {TOLERANCE} of the weights takes {first[1]} steps with mean 0 and {last[1]} with mean "
            f"{SHIFTS[-1]:.0f} at the best rate of each; the path is {last[2]:.1f} times the straight line (mean "
            f"0: {first[2]:.1f}), and an image's two gradients share their sign in {last[3]:.0%} of "
            f"cases (mean 0: {first[3]:.0%})"
        ),
        header=("input mean", "steps", "path / straight line", "gradients of one sign"),
        rows=tuple(rows),
        draw=partial(_draw, {shift: path[:400].tolist() for shift, path in paths.items()}, target.tolist()),
    )


def _descend(x: Tensor, target: Tensor) -> tuple[Tensor, float]:
    """Return the path (steps + 1, 2), and how often both partial derivatives of one image have the same sign."""
    curvatures = torch.linalg.eigvalsh(2 * x.T @ x / len(x))
    w = torch.nn.Parameter(torch.tensor([-0.4, -0.8], dtype=torch.float64))
    optimizer = SGD([w], lr=2 / float(curvatures.sum()))  # the best fixed rate
    y = x @ target
    path = [w.detach().clone()]
    each = x * (x @ w.detach() - y)[:, None]
    same_sign = float((each[:, 0] * each[:, 1] > 0).double().mean())
    while float((w.detach() - target).norm()) > TOLERANCE and len(path) <= MAX_STEPS:
        w.grad = 2 * x.T @ (x @ w.detach() - y) / len(x)
        optimizer.step()
        path.append(w.detach().clone())
    return torch.stack(path), same_sign


def _draw(paths: dict[float, list[list[float]]], target: list[float], figure: Any) -> None:
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    for axis, shift in zip(axes, (SHIFTS[0], SHIFTS[-1]), strict=True):
        path = paths[shift]
        axis.plot([x for x, _ in path], [y for _, y in path], marker=".", linewidth=0.8, label="descent")
        axis.plot(*path[0], "o", color="black", label="start")
        axis.plot(*target, "*", color="tab:red", markersize=14, label="minimum")
        axis.set(title=f"inputs with mean {shift:g}: the first {math.floor(len(path) - 1)} steps", xlabel="weight 1")
        axis.set_aspect("equal")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("weight 2")
    axes[0].legend()
