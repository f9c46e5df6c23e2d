"""A bigger net with a stronger λ against a smaller net."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from toolkit.experiments.digits import Digits, accuracy, digits, train
from toolkit.experiments.finding import Cell, Finding
from toolkit.reference.mlp import MLP
from toolkit.reference.optimizers import Adam
from toolkit.reference.regularizers import l2

SIZES = (3, 6, 12, 200)
STRENGTHS = (0.0, 1e-4, 1e-3, 1e-2)
N_TRAIN, N_VALIDATION, EPOCHS, REPEATS = 150, 500, 60, 3


def run(seed: int = 0) -> Finding:
    """Train nets of four sizes with four λ on 150 digits; λ is chosen on 500 others, the rest tells."""
    table = {(size, strength): [0.0, 0.0] for size in SIZES for strength in STRENGTHS}
    for repeat in range(REPEATS):
        data = digits(seed + repeat, N_TRAIN)
        for (size, strength), sums in table.items():
            for i, value in enumerate(_scores(data, size, strength, seed + repeat)):
                sums[i] += value / REPEATS
    test = {key: values[1] for key, values in table.items()}
    chosen = {size: max(STRENGTHS, key=lambda one: (table[size, one][0], one)) for size in SIZES}
    big = SIZES[-1]
    best_small = max(SIZES[:-1], key=lambda size: table[size, chosen[size]][0])
    big_score, small_score = test[big, chosen[big]], max(test[size, 0.0] for size in SIZES[:-1])
    rows: list[tuple[Cell, ...]] = [
        (size, *(test[size, strength] for strength in STRENGTHS), chosen[size]) for size in SIZES
    ]
    return Finding(
        name="capacity",
        title="Is a bigger net with λ better than a smaller net?",
        claim="against overfitting do not make the net smaller but λ larger: well regularised, a bigger net is better.",
        shown=big_score > small_score and big_score > test[best_small, chosen[best_small]],
        verdict=(
            f"trained on {N_TRAIN} digits, {big} hidden units reach {big_score:.3f} with λ = {chosen[big]:g} "
            f"({test[big, 0.0]:.3f} without); the best of the smaller nets without λ {small_score:.3f}, with it "
            f"{test[best_small, chosen[best_small]]:.3f} ({best_small} units). Of the big net's lead λ is worth "
            f"{big_score - test[big, 0.0]:.3f}; the rest is size"
        ),
        header=("hidden units", *(f"λ = {strength:g}" for strength in STRENGTHS), "chosen λ"),
        rows=tuple(rows),
        draw=partial(_draw, test),
    )


def _scores(data: Digits, size: int, strength: float, seed: int) -> tuple[float, float]:
    """Return the accuracy on the validation and on the test digits."""
    net = MLP((64, size, 10), generator=torch.Generator().manual_seed(seed))
    optimizer = Adam(net.parameters(), 0.01)
    weights = [value for name, value in net.named_parameters() if name.endswith("weight")]
    train(
        net,
        optimizer,
        data,
        epochs=EPOCHS,
        batch_size=50,
        seed=seed,
        penalty=lambda: sum((l2(weight, strength) for weight in weights), torch.zeros(())),
    )
    split = N_VALIDATION
    return (
        accuracy(net, data.test_x[:split], data.test_y[:split]),
        accuracy(net, data.test_x[split:], data.test_y[split:]),
    )


def _draw(test: dict[tuple[int, float], float], figure: Any) -> None:
    axis = figure.subplots()
    for strength in STRENGTHS:
        axis.plot(SIZES, [test[size, strength] for size in SIZES], marker="o", label=f"λ = {strength:g}")
    axis.set(xlabel="hidden units", ylabel="test accuracy", xscale="log")
    axis.set_xticks(SIZES, [str(size) for size in SIZES])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend()
