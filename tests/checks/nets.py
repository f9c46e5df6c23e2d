"""Small networks that learn 20 scanned digits of 5 classes, and the digits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from tests.checks.planted import Case
from tests.training.tiny import WIDTHS, tiny_backbone
from toolkit.plan import FreezeSpec
from toolkit.training.network import TransferNetwork

N_CLASSES, N_IMAGES, SIDE_PX = 5, 20, 8


def digits(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return 20 different scans, standardised, float32 (20, 1, 8, 8), four of each of 5 classes, and their labels."""
    table = load_digits()
    generator = torch.Generator().manual_seed(seed)
    rows = [
        torch.from_numpy((table.target == label).nonzero()[0])[torch.randperm(150, generator=generator)[:4]]
        for label in range(N_CLASSES)
    ]
    images = torch.from_numpy(table.images).float()[torch.cat(rows)][:, None]
    return (images - images.mean()) / images.std(), torch.arange(N_CLASSES).repeat_interleave(4)


class Function(nn.Module):
    """A step of a network that is one expression."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def seeded(seed: int, build: Callable[[], nn.Module]) -> Any:
    """Return what is built with this seed; the global random state is put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def mlp(seed: int, *between: nn.Module, after: nn.Module | None = None, width: int = 64) -> nn.Sequential:
    """Return Linear, ReLU, what stands `between`, Linear, what comes `after`; all He."""

    def build() -> nn.Module:
        layers = [nn.Flatten(), nn.Linear(64, width), nn.ReLU(), *between, nn.Linear(width, N_CLASSES)]
        return nn.Sequential(*layers, *([] if after is None else [after]))

    return seeded(seed, build)


def conv(seed: int, *before_last: nn.Module) -> nn.Sequential:
    """Return two convolutions, the mean over what is left of the positions, and a Linear."""

    def build() -> nn.Module:
        first = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()]
        return nn.Sequential(*first, nn.AdaptiveAvgPool2d(2), nn.Flatten(), *before_last, nn.Linear(128, N_CLASSES))

    return seeded(seed, build)


def deep(
    seed: int, activation: type[nn.Module], scale: Callable[[int], float], *, n_layers: int = 10, norm: bool = False
) -> nn.Sequential:
    """Return a deep dense net of width 128 with weights scale(fan_in) · randn and zero biases.

    Source: notes: Weight Initialization.
    """

    def build() -> nn.Module:
        layers: list[nn.Module] = [nn.Flatten()]
        for number in range(n_layers):
            linear = nn.Linear(64 if number == 0 else 128, 128)
            nn.init.normal_(linear.weight, std=scale(linear.in_features))
            nn.init.zeros_(linear.bias)
            layers += [linear, *([nn.BatchNorm1d(128)] if norm else []), activation()]
        return nn.Sequential(*layers, nn.Linear(128, N_CLASSES))

    return seeded(seed, build)


def he(fan_in: int) -> float:
    return float((2 / fan_in) ** 0.5)


def xavier(fan_in: int) -> float:
    return float((1 / fan_in) ** 0.5)


def case(network: nn.Module, seed: int, **settings: Any) -> Case:
    """Return a network with the digits."""
    inputs, labels = digits(seed)
    batch = settings.pop("batch", None)
    return Case(network, inputs, labels, {"n_classes": N_CLASSES, **settings}, batch)


def transfer(seed: int, cut: int = 2, dropout: float = 0.2, width: int = 32) -> Case:
    """Return a frozen prefix, a trainable tail and a head on colour pictures of 32 px.

    The tail gives little contrast at first, so that ReLUs of a head would mostly be of one sign: it has leaky ones.
    """
    network = seeded(
        seed,
        lambda: TransferNetwork(
            tiny_backbone(seed, dropout),
            nn.Sequential(nn.Linear(WIDTHS[-1], width), nn.LeakyReLU(0.1), nn.Linear(width, N_CLASSES)),
            FreezeSpec.at_cut(4, cut),
        ),
    )
    inputs, labels = digits(seed)
    low = inputs.amin()
    pictures = (inputs - low) / (inputs.amax() - low)
    large = nn.functional.interpolate(pictures, size=32, mode="bilinear").expand(-1, 3, -1, -1).contiguous()
    frozen = tuple(f"stages.{stage}." for stage in range(cut))
    return Case(network, large, labels, {"n_classes": N_CLASSES, "frozen": frozen})
