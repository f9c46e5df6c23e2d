"""Small baselines with random weights, and photographs for them: quick to make, and sure of different things."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tests.photos import make_photos
from toolkit.baselines.inputs import pixel_preprocessing
from toolkit.baselines.model import BaselineModel, BaselineNetwork
from toolkit.baselines.net import CentredNet, NetSpec
from toolkit.baselines.reading import Reading
from toolkit.data.manifest import Manifest
from toolkit.data.preprocessing import Preprocessing
from toolkit.data.scan import scan
from toolkit.evaluation.blocks import file_blocks
from toolkit.evaluation.ensemble import Ensemble

CLASSES = ("cat", "dog", "owl")
CPU = torch.device("cpu")


def net(
    *,
    seed: int = 0,
    side: int = 12,
    classes: tuple[str, ...] = CLASSES,
    hidden: tuple[int, ...] = (16,),
    dropout: float = 0.0,
    activation: str = "relu",
    layers: str = "torch",
    on: str = "pixels",
    max_pixels: int = 1_000_000,
) -> BaselineModel:
    """Return a net that was never trained."""
    reading = Reading(on, 3, side)
    n_inputs = reading(torch.zeros(1, 3, side, side, dtype=torch.uint8)).shape[1]
    mean, scale = (torch.full((n_inputs,), value) for value in ((128.0, 64.0) if on == "pixels" else (0.0, 0.2)))
    spec = NetSpec(n_inputs, len(classes), hidden, activation=activation, dropout=dropout, layers=layers)
    network = BaselineNetwork(reading, CentredNet(spec, mean, scale.double(), seed=seed)).eval()
    return BaselineModel(network, classes, pixel_preprocessing(side), max_pixels)


def noise(n: int, side: int = 12, seed: int = 0) -> torch.Tensor:
    """Return uint8 (n, 3, side, side)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, side, side), generator=generator, dtype=torch.uint8)


def photos(root: Path, counts: dict[str, int] | None = None) -> Manifest:
    """Return the Manifest of photographs of CLASSES."""
    return scan(make_photos(root, counts or dict.fromkeys(CLASSES, 4)), classes=CLASSES)


def pixels_of(ensemble: Ensemble, manifest: Manifest) -> dict[Preprocessing, torch.Tensor]:
    """Return all images of a Manifest, decoded for an ensemble; there are at most 32."""
    (block,) = file_blocks(ensemble, manifest, np.arange(len(manifest)), workers=0)
    return block.pixels
