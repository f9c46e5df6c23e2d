"""Which learning rates, initialisations and batch sizes a net bears, with batch normalisation and without."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from toolkit.experiments.digits import Digits, accuracy, digits, train
from toolkit.experiments.finding import Cell, Finding
from toolkit.reference.initializers import small_normal
from toolkit.reference.mlp import MLP
from toolkit.reference.optimizers import SGD

SIZES = (64, 50, 50, 50, 50, 10)
RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
STDS = (0.01, 0.05, 0.2, 0.5, 1.0)  # of the normal weights; He's is 0.2 here
BATCHES = (2, 4, 16, 64)
EPOCHS, RATE, BATCH = 5, 0.1, 64
LEARNT = 0.8

Scores = dict[bool, list[float]]


def run(seed: int = 0) -> Finding:
    """Train a net of four hidden layers for five epochs of the digits under each setting, one changed at a time."""
    data = digits(seed)
    sides = (False, True)
    by_rate = {norm: [_score(data, norm, seed, lr=lr) for lr in RATES] for norm in sides}
    by_std = {norm: [_score(data, norm, seed, std=std) for std in STDS] for norm in sides}
    by_batch = {norm: [_score(data, norm, seed, batch=size) for size in BATCHES] for norm in sides}
    rows: list[tuple[Cell, ...]] = []
    for what, values, scores in (
        ("rate", RATES, by_rate),
        ("weights' std", STDS, by_std),
        ("batch size", BATCHES, by_batch),
    ):
        rows += [(f"{what} {value:g}", scores[False][i], scores[True][i]) for i, value in enumerate(values)]
    largest = {norm: _largest(RATES, by_rate[norm]) for norm in sides}
    starts = {norm: sum(score > LEARNT for score in by_std[norm]) for norm in sides}
    pairs, small, *_, large = by_batch[True]
    return Finding(
        name="batchnorm",
        title="What does batch normalisation make a net bear?",
        claim="with it larger learning rates work, the initialisation matters less, and small batches work too, a "
        "little less well.",
        shown=largest[True] > largest[False] and starts[True] > starts[False] and LEARNT < small < large,
        verdict=(
            f"the largest rate that reaches {LEARNT:.0%} in {EPOCHS} epochs is {largest[True]:g} with it and "
            f"{largest[False]:g} without; of {len(STDS)} initialisations {starts[True]} do and {starts[False]}; with "
            f"it batches of {BATCHES[1]} reach {small:.2f}, of {BATCHES[-1]} {large:.2f} (without it "
            f"{by_batch[False][1]:.2f} and {by_batch[False][-1]:.2f}), but of {BATCHES[0]}, where every unit is ±1, "
            f"{pairs:.2f}"
        ),
        header=("setting", "plain", "with batchnorm"),
        rows=tuple(rows),
        draw=partial(_draw, by_rate, by_std, by_batch),
    )


def _score(
    data: Digits, norm: bool, seed: int, lr: float = RATE, std: float | None = None, batch: int = BATCH
) -> float:
    """Return the test accuracy; a net that diverged scores what its NaN give, about chance."""
    generator = torch.Generator().manual_seed(seed)
    net = MLP(SIZES, batchnorm=norm, generator=generator)
    if std is not None:
        with torch.no_grad():
            for weight in net.parameters():
                if weight.ndim == 2:
                    weight.copy_(small_normal(weight.shape, std, generator=generator))
    train(net, SGD(net.parameters(), lr), data, epochs=EPOCHS, batch_size=batch, seed=seed)
    return accuracy(net, data.test_x, data.test_y)


def _largest(values: Sequence[float], scores: Sequence[float]) -> float:
    """Return the largest value that learns; 0 if none does."""
    return max((value for value, score in zip(values, scores, strict=True) if score > LEARNT), default=0.0)


def _draw(by_rate: Scores, by_std: Scores, by_batch: Scores, figure: Any) -> None:
    axes = figure.subplots(1, 3, sharey=True)
    panels = (
        ("learning rate", RATES, by_rate),
        ("standard deviation of the weights", STDS, by_std),
        ("batch size", BATCHES, by_batch),
    )
    for axis, (name, values, scores) in zip(axes, panels, strict=True):
        for norm, label in ((False, "plain"), (True, "with batchnorm")):
            axis.plot(values, scores[norm], marker="o", label=label)
        axis.set(xlabel=name, xscale="log", ylim=(0, 1.02))
        axis.grid(alpha=0.3)
    axes[2].set_xticks(BATCHES, [str(size) for size in BATCHES])
    axes[2].minorticks_off()
    axes[0].set_ylabel(f"test accuracy after {EPOCHS} epochs")
    axes[0].legend(loc="lower center")
