"""Defects of what flows through a deep network, forward and back, each with a sound counterpart."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.checks.nets import N_CLASSES, case, deep, digits, he, seeded, xavier
from tests.checks.planted import WARN, Case, ModelDefect


def biased_body(seed: int, bias: float) -> Case:
    network = deep(seed, nn.ReLU, he, n_layers=3)
    with torch.no_grad():
        network[3].bias.fill_(bias)
    return case(network, seed)


def raw_values(seed: int, *, is_raw: bool) -> Case:
    """The values of a picture from 0 to 255, or standardised, into sigmoids with weights of spread 1/√fan_in."""
    made = case(deep(seed, nn.Sigmoid, xavier, n_layers=2), seed)
    inputs, _ = digits(seed)
    raw = (inputs - inputs.amin()) / (inputs.amax() - inputs.amin()) * 255
    return Case(made.network, raw if is_raw else inputs, made.labels, made.settings)


class Residual(nn.Module):
    """A ReLU layer, or its input plus a share of it (1/√30, so that thirty of them keep the scale)."""

    def __init__(self, *, has_skip: bool) -> None:
        super().__init__()
        self.layer, self.has_skip = nn.Linear(128, 128), has_skip

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.layer(x))
        return x + y / 30**0.5 if self.has_skip else y


def thirty_layers(seed: int, *, has_skip: bool) -> Case:
    """torch's own initialisation shrinks what passes a plain ReLU layer to about 0.4 of it; a skip keeps it."""

    def build() -> nn.Module:
        blocks = [Residual(has_skip=has_skip) for _ in range(30)]
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), *blocks, nn.Linear(128, N_CLASSES))

    return case(seeded(seed, build), seed)


def net(build: Callable[..., nn.Module], *arguments: object, **settings: object) -> Callable[[int], Case]:
    return lambda seed: case(build(seed, *arguments, **settings), seed)


def of(function: Callable[..., Case], *arguments: object, **settings: object) -> Callable[[int], Case]:
    """Return the planting with everything but the seed given."""
    return lambda seed: function(seed, *arguments, **settings)


FLOW_DEFECTS = [
    ModelDefect(
        "collapsed",
        "ten tanh layers with 0.01·randn",
        "activations",
        WARN,
        net(deep, nn.Tanh, lambda _: 0.01),
        net(deep, nn.Tanh, xavier),
    ),
    ModelDefect(
        "collapsed_without_norm",
        "ten ReLU layers with 0.01·randn and no BatchNorm",
        "activations",
        WARN,
        net(deep, nn.ReLU, lambda _: 0.01),
        net(deep, nn.ReLU, lambda _: 0.01, norm=True),
    ),
    ModelDefect(
        "saturated",
        "ten tanh layers with 1·randn",
        "activations",
        WARN,
        net(deep, nn.Tanh, lambda _: 1.0),
        net(deep, nn.Tanh, xavier),
    ),
    ModelDefect(
        "dead",
        "all ReLUs of a layer have a bias of −50",
        "activations",
        WARN,
        of(biased_body, -50.0),
        of(biased_body, 0.0),
    ),
    ModelDefect(
        "raw_values",
        "values to 255 go into sigmoids",
        "activations",
        WARN,
        of(raw_values, is_raw=True),
        of(raw_values, is_raw=False),
    ),
    ModelDefect(
        "vanishing",
        "ten sigmoid layers with 0.01·randn",
        "gradient_flow",
        WARN,
        net(deep, nn.Sigmoid, lambda _: 0.01),
        net(deep, nn.ReLU, he),
    ),
    ModelDefect(
        "exploding",
        "ten ReLU layers with five times He's weights",
        "gradient_flow",
        WARN,
        net(deep, nn.ReLU, lambda n: 5 * he(n)),
        net(deep, nn.ReLU, he),
    ),
    ModelDefect(
        "thirty_plain_layers",
        "thirty ReLU layers as torch initialises them",
        "gradient_flow",
        WARN,
        of(thirty_layers, has_skip=False),
        of(thirty_layers, has_skip=True),
    ),
    ModelDefect(
        "dead_flow",
        "no gradient passes a layer that is silent",
        "gradient_flow",
        WARN,
        of(biased_body, -50.0),
        of(biased_body, 0.0),
    ),
]
