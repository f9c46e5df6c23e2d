"""What a unit gives in training and at test time, under dropout in three ways."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.experiments.digits import Digits, accuracy, digits, mean_loss, train
from toolkit.experiments.finding import Cell, Finding
from toolkit.reference.dropout import DropoutScaledAtTest, InvertedDropout, monte_carlo
from toolkit.reference.losses import cross_entropy
from toolkit.reference.mlp import MLP
from toolkit.reference.optimizers import Adam

KEEP, N_MASKS, WIDTH = 0.5, 4000, 100
SAMPLES = (2, 8, 32, 128)


def run(seed: int = 0) -> Finding:
    """Average a layer's sums over 4,000 masks, and the predictions of a trained net over up to 128."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # masks come from the global generator
        rows, worst, forgotten = _expectations()
        data = digits(seed, 300)
        net = MLP((64, 200, 200, 10), keep_prob=KEEP, generator=torch.Generator().manual_seed(seed))
        train(net, Adam(net.parameters(), 0.003), data, epochs=60, batch_size=50, seed=seed)
        plain = accuracy(net, data.test_x, data.test_y), mean_loss(net, data.test_x, data.test_y)
        averaged = {samples: _averaged(net, data, samples) for samples in SAMPLES}
    single = averaged[SAMPLES[0]][0]
    most = averaged[SAMPLES[-1]][0]
    rows += [("test accuracy, all units on", plain[0], "", "")]
    rows += [(f"test accuracy, {samples} masks", score, "", "") for samples, (score, _) in averaged.items()]
    return Finding(
        name="dropout",
        title="Do training and test time agree under dropout, three ways?",
        claim="without scaling the outputs of training and test time differ; scaling by the probability at test time, "
        "dividing by it in training, or averaging over masks mends that.",
        shown=worst < 4.5 and abs(forgotten - 1 / KEEP) < 0.05 and abs(most - plain[0]) < 0.02,
        verdict=(
            f"a sum over {WIDTH} units is {forgotten:.2f} times too large at test time if nothing is scaled; with "
            f"either scaling, and over masks, it agrees within {worst:.1f} standard errors. On digits all units on "
            f"score {plain[0]:.3f}, the average of {SAMPLES[0]} masks {single:.3f}, of {SAMPLES[-1]} {most:.3f} at "
            f"{SAMPLES[-1]} times the cost"
        ),
        header=("way", "training (mean)", "test", "standard errors apart"),
        rows=tuple(rows),
        draw=partial(_draw, averaged, plain),
    )


def _expectations() -> tuple[list[tuple[Cell, ...]], float, float]:
    """Return the table, the largest distance in standard errors, and the ratio where nothing is scaled."""
    hidden = torch.randn(1, WIDTH, dtype=torch.float64).clamp(min=0)
    weight = torch.rand(WIDTH, dtype=torch.float64)
    many = hidden.expand(N_MASKS, -1)
    rows: list[tuple[Cell, ...]] = []
    distances = []
    forgotten = 0.0
    layers: dict[str, nn.Module] = {
        "scaled at test time": DropoutScaledAtTest(KEEP),
        "inverted": InvertedDropout(KEEP),
    }
    for name, layer in layers.items():
        in_training = layer.train()(many) @ weight
        at_test = float((layer.eval()(hidden) @ weight)[0])
        rows.append((name, float(in_training.mean()), at_test, _standard_errors(in_training, at_test)))
        distances.append(_standard_errors(in_training, at_test))
        if name == "scaled at test time":
            unscaled = float((hidden @ weight)[0])
            forgotten = unscaled / float(in_training.mean())
            rows.insert(
                0, ("never scaled", float(in_training.mean()), unscaled, _standard_errors(in_training, unscaled))
            )
    layer = InvertedDropout(KEEP)
    mean, _ = monte_carlo(layer, many)
    averages = mean @ weight
    in_training = layer.train()(many) @ weight
    error = math.hypot(_standard_error(in_training), _standard_error(averages))
    apart = abs(float(in_training.mean() - averages.mean())) / error
    rows.append(("averaged over masks", float(in_training.mean()), float(averages.mean()), apart))
    return rows, max(*distances, apart), forgotten


def _standard_error(values: Tensor) -> float:
    return float(values.std() / math.sqrt(len(values)))


def _standard_errors(values: Tensor, expected: float) -> float:
    """Return how many standard errors a mean lies from what is expected."""
    return abs(float(values.mean()) - expected) / _standard_error(values)


def _averaged(net: nn.Module, data: Digits, samples: int) -> tuple[float, float]:
    """Return accuracy and cross-entropy of the scores, averaged over masks."""
    scores, _ = monte_carlo(net, data.test_x, samples)
    return float((scores.argmax(1) == data.test_y).double().mean()), float(cross_entropy(scores, data.test_y))


def _draw(averaged: dict[int, tuple[float, float]], plain: tuple[float, float], figure: Any) -> None:
    axes = figure.subplots(1, 2)
    for i, (axis, name) in enumerate(zip(axes, ("test accuracy", "test cross-entropy"), strict=True)):
        axis.plot(list(averaged), [values[i] for values in averaged.values()], marker="o", label="average over masks")
        axis.axhline(plain[i], color="tab:orange", label="all units on")
        axis.set(xlabel="masks", ylabel=name, xscale="log")
        axis.set_xticks(SAMPLES, [str(samples) for samples in SAMPLES])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend()
