"""Small inputs that a net can learn, and a way to train on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from toolkit.baselines.inputs import Inputs, statistics
from toolkit.baselines.loading import BaselineData
from toolkit.baselines.module import BaselineModule
from toolkit.baselines.net import CentredNet, NetSpec
from toolkit.data.manifest import TRAIN, VAL, Manifest
from toolkit.training.fit import FitSettings, fit

NET = ("hidden", "activation", "init", "batchnorm", "dropout", "layers")


def examples(n: int = 60, side: int = 6, n_classes: int = 3, seed: int = 0) -> tuple[Manifest, Inputs]:
    """Return grey images of `n_classes` noisy patterns, every fifth of them for validation."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % n_classes
    patterns = generator.integers(40, 200, (n_classes, 1, side, side))
    pixels = np.clip(patterns[labels] + generator.integers(-40, 40, (n, 1, side, side)), 0, 255).astype(np.uint8)
    manifest = Manifest(
        root=Path("nowhere"),
        classes=tuple(f"class {label}" for label in range(n_classes)),
        paths=tuple(f"{number:04}" for number in range(n)),
        labels=labels.astype(np.int64),
        splits=np.where(np.arange(n) % 5 == 4, VAL, TRAIN).astype(np.int8),
    )
    return manifest, Inputs(torch.from_numpy(pixels))


def baseline(
    manifest: Manifest,
    inputs: Inputs,
    *,
    epochs: int = 2,
    batch_size: int = 8,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> tuple[BaselineModule, BaselineData]:
    """Return a module and its data; settings: of the NetSpec and of the BaselineModule."""
    net = {"hidden": (12, 8), **{key: value for key, value in settings.items() if key in NET}}
    rest = {key: value for key, value in settings.items() if key not in NET}
    mean, scale = statistics(inputs, manifest.rows(TRAIN))
    spec = NetSpec(len(mean), len(manifest.classes), **net)
    data = BaselineData(manifest, inputs, batch_size=batch_size, seed=seed)
    network = CentredNet(spec, mean, scale, seed=seed, dtype=dtype)
    total = data.steps_an_epoch * epochs
    return BaselineModule(network, total_steps=total, batch_size=batch_size, **rest), data


def train(folder: Path, *, epochs: int = 2, seed: int = 0, n: int = 60, **settings: Any) -> BaselineModule:
    """Return a module that was trained as a run trains it; history.csv is in `folder`."""
    module, data = baseline(*examples(n), epochs=epochs, seed=seed, **settings)
    torch.manual_seed(seed)
    where = {"folder": folder / "checkpoints", "history": folder / "history.csv", "device": torch.device("cpu")}
    fit(module, data, FitSettings(epochs, "32-true", clip=None), **where)
    return module
