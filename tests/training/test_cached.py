"""Cached equals uncached: trained from stored activations, a network ends in the very weights that pixels give it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.features.small import SIZES, family
from tests.photos import make_photos
from tests.training.tiny import assert_equal, copied
from toolkit.backbones.backbone import Backbone
from toolkit.data.datamodule import ImageFolderData
from toolkit.data.loading import ResumableLoader
from toolkit.data.manifest import TRAIN
from toolkit.features.dataset import StoredViews
from toolkit.features.request import Request
from toolkit.features.store import FeatureStore
from toolkit.training.groups import parameter_groups
from toolkit.training.module import TransferModule

VIEWS = 3
STEPS = 30
COUNTS = {"cat": 8, "dog": 7, "owl": 8}  # 18 of them train: 5 batches of 4, the last one of 2

# name → cut and taps of a backbone of n stages
SHAPES = {
    "taps on both sides": lambda n: (n - 2, (n - 4, n - 3, n - 1)),
    "tail alone": lambda n: (n - 1, (n - 1,)),
    "pixels": lambda n: (0, (n - 1,)),
    "head alone": lambda n: (n, (n - 3, n - 1)),
}


def data_of(photos: Path, backbone: Backbone, **settings: Any) -> ImageFolderData:
    keys = {"batch_size": 4, "views": VIEWS, "seed": 3, **settings}
    return ImageFolderData(photos, backbone.preprocessing, **keys)


def stored_views(
    cache: Path,
    data: ImageFolderData,
    backbone: Backbone,
    cut: int,
    taps: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
) -> StoredViews:
    """Return the views of the training images and view 0 of the others, as a run stores them."""
    before = tuple(tap for tap in taps if tap < cut)
    others = Request(backbone, before, cut if cut < len(backbone) else None, seed=data.seed, dtype=dtype)
    train = replace(others, views=data.views, augmentation=data.augment)
    rows, store = data.manifest.rows(TRAIN), FeatureStore(cache)
    rest = np.flatnonzero(data.manifest.splits != TRAIN)
    return StoredViews(
        data.manifest, [store.fetch(train, data.manifest, rows), store.fetch(others, data.manifest, rest)]
    )


def train(
    module: TransferModule, data: ImageFolderData, optimizer: str, steps: int = STEPS
) -> tuple[list[float], dict[str, Tensor]]:
    """Train in a plain loop; return the losses of the steps, of the validation images after them, and the weights."""
    groups = parameter_groups(module.network, lr=0.02, weight_decay=0.01)
    made = torch.optim.SGD(groups, lr=0.02, momentum=0.9) if optimizer == "sgd" else torch.optim.AdamW(groups, lr=0.02)
    module.train()
    torch.manual_seed(5)  # dropout
    losses: list[float] = []
    epoch = 0
    while len(losses) < steps:
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        epoch += 1
        for inputs, labels in batches(data, loader):
            loss = F.cross_entropy(module(inputs), labels)
            made.zero_grad()
            loss.backward()
            made.step()
            losses.append(float(loss.detach()))
    module.eval()
    with torch.no_grad():
        for inputs, labels in batches(data, data.val_dataloader()):
            losses.append(float(F.cross_entropy(module(inputs), labels)))
    return losses, copied(module.network.state_dict())


def batches(data: ImageFolderData, loader: ResumableLoader) -> Any:
    for batch in loader:
        yield data.on_before_batch_transfer(batch, 0)


def check(
    folder: Path,
    photos: Path,
    name: str,
    shape: str,
    optimizer: str,
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> None:
    cut, taps = SHAPES[shape](len(family(name)))
    outcomes = []
    for cached in (False, True):
        backbone = family(name)
        module = TransferModule(backbone, 3, cut=cut, taps=taps, **settings)
        module.network.prefix_dtype = dtype
        start = copied(module.network.state_dict())
        data = data_of(photos, backbone)
        if cached:
            data.stored = stored_views(folder / "cache", data, backbone, cut, taps, dtype)
        outcomes.append(train(module, data, optimizer))
    (losses, weights), (stored_losses, stored_weights) = outcomes
    assert losses == stored_losses
    assert len(losses) > STEPS and np.isfinite(losses).all() and len(set(losses)) == len(losses)
    assert_equal(weights, stored_weights)
    moved = {key for key in weights if not torch.equal(weights[key], start[key])}
    assert moved and not any(key.startswith(tuple(f"stages.{i}." for i in range(cut))) for key in moved)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return make_photos(tmp_path_factory.mktemp("cached") / "photos", COUNTS)


FAST = ["tiny", "mobilenet_v3_small", "timm/test_vit"]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("shape", SHAPES)
def test_weights_are_equal_after_training(tmp_path, pictures, shape, optimizer):
    check(tmp_path, pictures, "tiny", shape, optimizer)


@pytest.mark.parametrize("name", FAST[1:])
def test_in_families_of_convolutions_and_of_tokens(tmp_path, pictures, name):
    check(tmp_path, pictures, name, "taps on both sides", "adamw")


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", SIZES)
def test_in_every_family(tmp_path, pictures, name, optimizer):
    check(tmp_path, pictures, name, "taps on both sides", optimizer)


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["tail alone", "pixels", "head alone"])
@pytest.mark.parametrize("name", SIZES)
def test_in_every_family_at_other_cuts(tmp_path, pictures, name, shape):
    check(tmp_path, pictures, name, shape, "adamw")
