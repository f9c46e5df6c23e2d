"""What is left of depth when there are no activations."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from toolkit.experiments.finding import Cell, Finding
from toolkit.reference.mlp import MLP

DEPTHS = (1, 2, 3, 5, 10)
WIDTH, N_INPUTS, N_OUTPUTS = 50, 8, 5


def run(seed: int = 0) -> Finding:
    """Compare deep nets without activations with the product of their matrices, and with ReLU nets."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(200, N_INPUTS, generator=generator, dtype=torch.float64)
    apart: dict[str, list[float]] = {"identity": [], "relu": []}
    with torch.no_grad():
        for depth in DEPTHS:
            for activation, found in apart.items():
                sizes = (N_INPUTS, *[WIDTH] * (depth - 1), N_OUTPUTS)
                net = MLP(sizes, activation=activation, init="xavier", generator=generator, dtype=torch.float64)
                for name, bias in net.named_parameters():
                    if name.endswith("bias"):
                        bias.normal_(generator=generator)
                scores = net(x)
                weight, shift = _one_map(net)
                found.append(float((scores - (x @ weight.T + shift)).abs().max() / scores.abs().max()))
    linear, bent = max(apart["identity"]), min(apart["relu"][1:])
    rows: list[tuple[Cell, ...]] = [
        (depth, one, other) for depth, one, other in zip(DEPTHS, *apart.values(), strict=True)
    ]
    return Finding(
        name="linear_net",
        title="Is a deep net without activations more than one linear map?",
        claim="without an activation function a net of any number of layers is a single linear classifier.",
        shown=linear < 1e-10 and bent > 1e-2,
        verdict=(
            f"the scores of up to {DEPTHS[-1]} layers differ from those of W₁₀⋯W₁ x + b by at most {linear:.0e} of the "
            f"largest; with ReLU between the same layers by {bent:.2f} and more"
        ),
        header=("layers", "no activation", "ReLU"),
        rows=tuple(rows),
        draw=partial(_draw, apart),
    )


def _one_map(net: MLP) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the product of a net's matrices (C, D), and the bias (C,) that goes with it."""
    weight = torch.eye(N_INPUTS, dtype=torch.float64)
    shift = torch.zeros(N_INPUTS, dtype=torch.float64)
    for layer in net.layers:
        parameters = dict(layer.named_parameters()) if isinstance(layer, nn.Module) else {}
        if parameters:
            weight = parameters["weight"] @ weight
            shift = parameters["weight"] @ shift + parameters["bias"]
    return weight, shift


def _draw(apart: dict[str, list[float]], figure: Any) -> None:
    axis = figure.subplots()
    for label, key in (("no activation", "identity"), ("ReLU", "relu")):
        axis.plot(DEPTHS, [max(value, 1e-17) for value in apart[key]], marker="o", label=label)
    axis.set(xlabel="layers", ylabel="distance from one linear map (relative)", yscale="log")
    axis.set_xticks(DEPTHS)
    axis.grid(alpha=0.3)
    axis.legend()
