"""Random against grid search, as many trials each, where one setting matters more than the other."""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import torch
from torch import Tensor

from toolkit.experiments.digits import Digits, digits
from toolkit.experiments.finding import Cell, Finding
from toolkit.reference.losses import log_softmax, softmax

SIDE, REPEATS, STEPS, N_TRAIN = 3, 40, 40, 300
LOG_LR = (-4.0, 2.0)  # of 10**uniform
LOG_STRENGTHS = {"λ hardly matters": (-6.0, -4.0), "λ matters too": (-6.0, 0.0)}


def run(seed: int = 0) -> Finding:
    """Search the rate and λ of a linear classifier forty times with each, SIDE² trials a time."""
    data = digits(seed, N_TRAIN)
    generator = torch.Generator().manual_seed(seed)
    ticks = torch.arange(SIDE) / SIDE
    cells = torch.cartesian_prod(ticks, ticks)
    # The grid stands anywhere, as a person's does: moved as a whole by up to one of its steps.
    grids = torch.stack([cells + torch.rand(2, generator=generator) / SIDE for _ in range(REPEATS)])
    randoms = torch.rand(REPEATS, SIDE**2, 2, generator=generator)
    best: dict[tuple[str, str], list[float]] = {}
    for case, strengths in LOG_STRENGTHS.items():
        low, high = torch.tensor([LOG_LR, strengths]).T
        for name, points in (("grid", grids), ("random", randoms)):
            losses = _validation_losses(data, (low + (high - low) * points).reshape(-1, 2))
            best[case, name] = losses.reshape(REPEATS, -1).amin(1).tolist()
    mean = {key: statistics.mean(losses) for key, losses in best.items()}
    better = {case: mean[case, "random"] < mean[case, "grid"] for case in LOG_STRENGTHS}
    rows: list[tuple[Cell, ...]] = [
        (*key, mean[key], statistics.median(losses), max(losses)) for key, losses in best.items()
    ]
    said = "; ".join(
        f"where {case}, {mean[case, 'random']:.3f} on average with random search, {mean[case, 'grid']:.3f} with a grid"
        for case in LOG_STRENGTHS
    )
    return Finding(
        name="random_search",
        title=f"Is random search better than a grid, {SIDE**2} trials each?",
        claim="random search is better than grid search.",
        shown=all(better.values()),
        verdict=f"the best validation loss of {SIDE**2} trials ({REPEATS} searches) is, {said}",
        header=("case", "search", "mean best loss", "median", "worst"),
        rows=tuple(rows),
        draw=partial(_draw, grids[0].tolist(), randoms[0].tolist(), best),
    )


def _validation_losses(data: Digits, settings: Tensor) -> Tensor:
    """Return the validation loss (T,) of a linear classifier after STEPS full-batch steps, for (T, 2) log settings."""
    lr, strength = (10 ** settings[:, i, None, None] for i in range(2))
    weight = torch.zeros(len(settings), 64, 10)
    target = torch.zeros(len(data.y), 10).scatter_(1, data.y[:, None], 1.0)
    for _ in range(STEPS):
        error = softmax(data.x @ weight) - target
        gradient = data.x.T @ error / len(target) + 2 * strength * weight
        weight = weight - lr * gradient
    losses = (
        -log_softmax(data.test_x @ weight).gather(2, data.test_y.expand(len(settings), -1).unsqueeze(2)).mean((1, 2))
    )
    return losses.nan_to_num(nan=torch.inf)  # a rate that is too large


def _draw(
    grid: list[list[float]], random: list[list[float]], best: dict[tuple[str, str], list[float]], figure: Any
) -> None:
    left, *others = figure.subplots(1, 1 + len(LOG_STRENGTHS))
    left.plot([x for x, _ in grid], [y for _, y in grid], "s", label="grid")
    left.plot([x for x, _ in random], [y for _, y in random], "o", label="random")
    left.set(title="one search of each", xlabel="log rate (share of its range)", ylabel="log λ (share of its range)")
    left.set(ylim=(0, 1.2))
    left.grid(alpha=0.3)
    left.legend(ncols=2, loc="upper center")
    for axis, case in zip(others, LOG_STRENGTHS, strict=True):
        axis.boxplot([best[case, "grid"], best[case, "random"]], tick_labels=["grid", "random"])
        axis.set(title=case, xlabel=f"best of {SIDE**2} trials, {REPEATS} searches", ylabel="validation loss")
