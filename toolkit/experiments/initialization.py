"""How far a signal gets through ten layers of 500 units, by how their weights were drawn."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from toolkit.experiments.finding import Cell, Finding
from toolkit.reference.activations import ACTIVATIONS
from toolkit.reference.diagnostics import activation_statistics
from toolkit.reference.initializers import he, small_normal, xavier, zeros

N_LAYERS, WIDTH, N_INPUTS = 10, 500, 1000
STARTS: dict[str, Callable[..., Tensor]] = {
    "zeros": zeros,
    "0.01 randn": small_normal,
    "0.1 randn": partial(small_normal, std=0.1),
    "1.0 randn": partial(small_normal, std=1.0),
    "Xavier": xavier,
    "He": he,
}
KINDS = {"tanh": "Tanh", "relu": "ReLU"}


def run(seed: int = 0) -> Finding:
    """Send 1,000 random inputs through, and a random gradient back."""
    stds: dict[tuple[str, str], list[float]] = {}
    gradients: dict[tuple[str, str], float] = {}
    saturated: dict[str, tuple[float, float]] = {}
    rows: list[tuple[Cell, ...]] = []
    for activation, kind in KINDS.items():
        for start in STARTS:
            layers, weight_gradients = _through(activation, start, seed)
            found = [activation_statistics(str(i), kind, one) for i, one in enumerate(layers, 1)]
            key = activation, start
            stds[key] = [one.std for one in found]
            gradients[key] = float(weight_gradients[0].norm())
            share: Cell = "-"
            if found[0].saturated is not None and found[-1].saturated is not None:
                saturated[start] = found[0].saturated, found[-1].saturated
                share = f"{found[0].saturated:.2f} … {found[-1].saturated:.2f}"
            stages = (stds[key][0], stds[key][4], stds[key][-1])
            rows.append((activation, start, *stages, share, gradients[key]))
    shown = (
        max(stds["tanh", "zeros"]) == 0
        and stds["tanh", "0.01 randn"][-1] < 1e-4
        and stds["tanh", "Xavier"][-1] > 0.1
        and stds["relu", "Xavier"][-1] < 0.1 * stds["relu", "He"][-1]
        and saturated["0.1 randn"][0] > 0.9
    )
    verdict = (
        f"after layer 10, 0.01 randn leaves tanh a std of {stds['tanh', '0.01 randn'][-1]:.1e}, Xavier "
        f"{stds['tanh', 'Xavier'][-1]:.2f}; ReLU has {stds['relu', 'Xavier'][-1]:.3f} with Xavier, "
        f"{stds['relu', 'He'][-1]:.2f} with He; but 0.1 randn saturates {saturated['0.1 randn'][0]:.0%} of tanh units "
        f"in layer 1 and {saturated['0.1 randn'][1]:.0%} in layer 10, not nearly all: that takes 1.0 randn "
        f"({saturated['1.0 randn'][0]:.0%})"
    )
    return Finding(
        name="initialization",
        title="Do ten layers × 500 units keep a signal, by how the weights start?",
        claim="zeros make all neurons equal, 0.01 randn lets activations fade to 0, 0.1 randn saturates nearly all, "
        "Xavier keeps them for tanh but not for ReLU, and He keeps them for ReLU.",
        shown=shown,
        verdict=verdict,
        header=("activation", "weights", "std 1", "std 5", "std 10", "saturated 1 … 10", "gradient 1"),
        rows=tuple(rows),
        draw=partial(_draw, stds),
    )


def _through(activation: str, start: str, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return the outputs of all layers (N, WIDTH), and the gradients of their weights for a random one at the end."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N_INPUTS, WIDTH, generator=generator)
    upstream = torch.randn(N_INPUTS, WIDTH, generator=generator) / N_INPUTS
    act = ACTIVATIONS[activation]()
    weights = [STARTS[start]((WIDTH, WIDTH), generator=generator).requires_grad_() for _ in range(N_LAYERS)]
    outputs = []
    for weight in weights:
        x = act(x @ weight.T)
        outputs.append(x)
    return [one.detach() for one in outputs], list(torch.autograd.grad(outputs[-1], weights, upstream))


def _draw(stds: dict[tuple[str, str], list[float]], figure: Any) -> None:
    axes = figure.subplots(1, len(KINDS))
    for axis, activation in zip(axes, KINDS, strict=True):
        for start in STARTS:
            values = stds[activation, start]
            if max(values) > 0:
                axis.plot(range(1, N_LAYERS + 1), values, marker="o", label=start)
        axis.set(title=activation, xlabel="layer", ylabel="standard deviation of the activations", yscale="log")
        axis.set_xticks(range(1, N_LAYERS + 1))
        axis.grid(alpha=0.3)
    axes[0].legend(title="weights (zeros: 0)")
