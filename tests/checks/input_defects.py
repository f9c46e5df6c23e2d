"""Defects of the user's own backbone, of settings and of what the pictures show, each with a sound counterpart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import nn

from tests.checks.pictures import SMALL, classes_of, images_of, pixels, random_backbone
from tests.checks.planted import FAIL, WARN, DataDefect, Planted
from toolkit.backbones.catalog import as_backbone
from toolkit.data.preprocessing import Preprocessing

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def prepared(folder: Path, **values: Any) -> Planted:
    """The user's own backbone, whose inputs are scaled in this way."""
    preprocessing = Preprocessing(73, 64, **{**IMAGENET, **values})
    return Planted(folder, settings={"backbone": random_backbone(preprocessing)})


@dataclass(frozen=True)
class RoundedOnDisk(Preprocessing):
    """A description that loses something on its way to the model folder."""

    def to_dict(self) -> dict[str, Any]:
        rounded = {name: tuple(round(value, 1) for value in getattr(self, name)) for name in ("mean", "std")}
        return {**super().to_dict(), **rounded}


@dataclass(frozen=True)
class PlainOnDisk(Preprocessing):
    """A description that forgets how it resizes."""

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "interpolation": "nearest"}


def described(folder: Path, kind: type[Preprocessing]) -> Planted:
    return Planted(folder, settings={"backbone": random_backbone(kind(73, 64, "bicubic", **IMAGENET))})


class BatchStandardise(nn.Module):
    """A batch normalisation that torch does not know as one: in training it divides by the spread over the batch."""

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(n_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * ((x - x.mean(0)) / (x.std(0) + 1e-5) if self.training else x)


def norm_on_one_position(folder: Path, norm: type[nn.Module]) -> Planted:
    """An own backbone that ends in a norm of (N, D) and trains as a whole."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = nn.Sequential(nn.Conv2d(3, 32, 8, stride=8), nn.ReLU())
        last = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), norm(32))
    backbone = as_backbone([first, last], preprocessing=SMALL)
    return Planted(folder, settings={"backbone": backbone, "strategy": "full"})


def one_grey(folder: Path) -> Planted:
    """Every picture is the same grey: a lens cap, or an export that failed."""
    for place in classes_of(folder):
        for file in images_of(place):
            Image.new("RGB", pixels(file).size, (128, 128, 128)).save(file)
    return Planted(folder)


def negatives(folder: Path) -> Planted:
    """Every picture is its own negative: unlike ImageNet, and as easy to tell apart as before."""
    for place in classes_of(folder):
        for file in images_of(place):
            ImageOps.invert(pixels(file)).save(file)
    return Planted(folder)


def dim(folder: Path) -> Planted:
    """Every picture was taken at dusk: values of a quarter, with less contrast than ImageNet's."""
    for place in classes_of(folder):
        for file in images_of(place):
            pixels(file).point(lambda value: value // 4).save(file)
    return Planted(folder)


def untouched(folder: Path) -> Planted:
    return Planted(folder)


INPUT_DEFECTS = [
    DataDefect(
        "values_to_255",
        "an own backbone divides by nothing: its inputs run from 0 to 255",
        "input_statistics",
        WARN,
        lambda folder: prepared(folder, mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255)),
        lambda folder: prepared(folder),
    ),
    DataDefect(
        "mean_of_255",
        "mean and std are those of values to 255, the values run to 1",
        "input_statistics",
        WARN,
        lambda folder: prepared(folder, mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)),
        lambda folder: prepared(folder, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    ),
    DataDefect(
        "std_slip",
        "a slip of the decimal point in std",
        "input_statistics",
        WARN,
        lambda folder: prepared(folder, std=(0.0229, 0.0224, 0.0225)),
        lambda folder: prepared(folder),
    ),
    # Both are seen only if the description that would be saved is what the tensor of `predict` is made with.
    DataDefect(
        "rounded_on_disk",
        "the saved description of the preprocessing is rounded",
        "predict_preprocessing",
        WARN,
        lambda folder: described(folder, RoundedOnDisk),
        lambda folder: described(folder, Preprocessing),
    ),
    DataDefect(
        "resized_otherwise",
        "the saved description resizes by the nearest pixel, training by bicubic interpolation",
        "predict_preprocessing",
        WARN,
        lambda folder: described(folder, PlainOnDisk),
        lambda folder: described(folder, Preprocessing),
    ),
    DataDefect(
        "norm_on_one_position",
        "an own backbone has a norm of its own over the batch, which one picture is not",
        "last_batch",
        WARN,
        lambda folder: norm_on_one_position(folder, BatchStandardise),
        lambda folder: norm_on_one_position(folder, nn.LayerNorm),
    ),
    DataDefect(
        "blind_backbone",
        "the last stage of an own backbone is silent, whatever it sees",
        "overfit",
        WARN,  # the head sees earlier stages too, and learns from them, if slowly
        lambda folder: Planted(folder, settings={"backbone": random_backbone(bias=-1000.0)}),
        lambda folder: Planted(folder, settings={"backbone": random_backbone()}),
    ),
    DataDefect("one_grey", "all pictures are the same grey", "overfit", FAIL, one_grey, untouched, needs_weights=True),
    DataDefect(
        "rate_too_small",
        "a learning rate at which nothing moves",
        "overfit",
        FAIL,
        lambda folder: Planted(folder, settings={"model": "mlp", "lr": 1e-9}),
        lambda folder: Planted(folder, settings={"model": "mlp"}),
        word="rate",
    ),
    # A small network may end at loss 0 on 20 pictures even so, by way of losses of 1e13: the last loss does not tell.
    DataDefect(
        "rate_too_large",
        "a learning rate at which everything flies apart",
        "overfit",
        FAIL,
        lambda folder: Planted(folder, settings={"model": "mlp", "lr": 100.0}),
        lambda folder: Planted(folder, settings={"model": "mlp"}),
        word="rate",
    ),
]
