"""Cached equals uncached: trained from stored activations, a network ends in the very weights that pixels give it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.features.small import SIZES, family
from tests.photos import make_photos, photo
from tests.training.tiny import SMALL, assert_equal, copied, tiny_backbone
from toolkit.backbones.backbone import Backbone
from toolkit.backbones.catalog import as_backbone
from toolkit.data.datamodule import ImageFolderData
from toolkit.data.loading import ResumableLoader, ViewDataset
from toolkit.data.manifest import TRAIN
from toolkit.features.dataset import StoredViews
from toolkit.features.request import Request
from toolkit.features.store import FeatureStore
from toolkit.plan import Recipe
from toolkit.training.fit import FitSettings, fit
from toolkit.training.groups import parameter_groups
from toolkit.training.module import TransferModule

VIEWS = 3
STEPS = 30
COUNTS = {"cat": 8, "dog": 7, "owl": 8}  # 18 of them train: 5 batches of 4, the last one of 2

# name → cut and taps of a backbone of n stages
SHAPES: dict[str, Callable[[int], tuple[int, tuple[int, ...]]]] = {
    "taps on both sides": lambda n: (n - 2, (n - 4, n - 3, n - 1)),
    "tail alone": lambda n: (n - 1, (n - 1,)),
    "pixels": lambda n: (0, (n - 1,)),
    "sources": lambda n: (0, (n - 1,)),  # of the pixels, from which views are cut
    "head alone": lambda n: (n, (n - 3, n - 1)),
}


def data_of(photos: Path, backbone: Backbone, **settings: Any) -> ImageFolderData:
    keys = {"batch_size": 4, "views": VIEWS, "seed": 3, **settings}
    return ImageFolderData(photos, backbone.preprocessing, **keys)


def stored_views(
    cache: Path, data: ImageFolderData, backbone: Backbone, shape: str, dtype: torch.dtype = torch.float32
) -> StoredViews:
    """Return the views of the training images and view 0 of the others, as a run stores them."""
    cut, taps = SHAPES[shape](len(backbone))
    before = tuple(tap for tap in taps if tap < cut)
    others = Request(backbone, before, cut if cut < len(backbone) else None, seed=data.seed, dtype=dtype)
    train = replace(others, views=data.views, augmentation=data.augment)
    if shape == "sources":
        train = replace(train, views=1, source=True)
    manifest, store = data.manifest, FeatureStore(cache)
    parts = [(train, manifest.rows(TRAIN)), (others, np.flatnonzero(manifest.splits != TRAIN))]
    return StoredViews(manifest, [store.fetch(request, manifest, rows) for request, rows in parts])


def train(
    module: TransferModule, data: ImageFolderData, optimizer: str, steps: int = STEPS
) -> tuple[list[float], dict[str, Tensor]]:
    """Train in a plain loop; return the losses of the steps, of the validation images after them, and the weights."""
    groups = parameter_groups(module.network, Recipe(lr=0.02, weight_decay=0.01))
    made = torch.optim.SGD(groups, momentum=0.9) if optimizer == "sgd" else torch.optim.AdamW(groups)
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
    """Yield what a Trainer would hand to the module, but for batches whose files all failed."""
    for batch in loader:
        inputs, labels = data.on_before_batch_transfer(batch, 0)
        if len(labels):
            yield inputs, labels


def check(
    folder: Path,
    photos: Path,
    backbone_of: Callable[[], Backbone],
    shape: str,
    optimizer: str,
    dtype: torch.dtype = torch.float32,
    steps: int = STEPS,
    **settings: Any,
) -> None:
    """Train from files and from the store, alike in all else; compare losses and weights."""
    outcomes = []
    for cached in (False, True):
        backbone = backbone_of()
        cut, taps = SHAPES[shape](len(backbone))
        module = TransferModule(backbone, 3, cut=cut, taps=taps, **settings)
        module.network.prefix_dtype = dtype
        start = copied(module.network.state_dict())
        data = data_of(photos, backbone)
        data.by_source = data.manifest.splits == TRAIN if shape == "sources" else None
        if cached:
            data.stored = stored_views(folder / "cache", data, backbone, shape, dtype)
        outcomes.append(train(module, data, optimizer, steps))
    (losses, weights), (stored_losses, stored_weights) = outcomes
    assert losses == stored_losses
    assert len(losses) > steps and np.isfinite(losses).all() and len(set(losses)) == len(losses)
    assert_equal(weights, stored_weights)
    moved = {key for key in weights if not torch.equal(weights[key], start[key])}
    assert moved and not any(key.startswith(tuple(f"stages.{i}." for i in range(cut))) for key in moved)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return make_photos(tmp_path_factory.mktemp("cached") / "photos", COUNTS)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("shape", SHAPES)
def test_weights_are_equal_after_training(tmp_path, pictures, shape, optimizer):
    check(tmp_path, pictures, tiny_backbone, shape, optimizer)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "timm/test_vit"])
def test_in_families_of_convolutions_and_of_tokens(tmp_path, pictures, name):
    check(tmp_path, pictures, partial(family, name), "taps on both sides", "adamw", steps=10)


@pytest.mark.slow
@pytest.mark.timeout(900)  # a VGG takes half of the usual limit alone, and more than all of it on busy cores
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", SIZES)
def test_in_every_family(tmp_path, pictures, name, optimizer):
    check(tmp_path, pictures, partial(family, name), "taps on both sides", optimizer)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SIZES)
def test_in_every_family_with_statistics_that_move(tmp_path, pictures, name):
    check(tmp_path, pictures, partial(family, name), "tail alone", "adamw", steps=8, recipe=Recipe(batchnorm="moving"))


@pytest.mark.parametrize("shape", ["taps on both sides", "tail alone", "head alone"])
@pytest.mark.parametrize("name", ["tiny", pytest.param("timm/test_convnext", marks=pytest.mark.slow)])
def test_in_half_precision(tmp_path, pictures, name, shape):
    check(tmp_path, pictures, partial(family, name), shape, "adamw", torch.bfloat16, steps=10)


def test_with_blocks_that_are_skipped(tmp_path, pictures):
    convnext = partial(family, "timm/test_convnext")
    check(tmp_path, pictures, convnext, "taps on both sides", "adamw", steps=8, recipe=Recipe(drop_path=0.5))


def norms_first() -> Backbone:
    """Return a backbone whose tail begins with a BatchNorm, as DenseNet's does."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = [[nn.Conv2d(before, 8, 3, stride=2, padding=1), nn.ReLU()] for before in (3, 8, 8, 8)]
        stages = [nn.Sequential(*part) for part in parts]
        stages[2].insert(0, nn.BatchNorm2d(8))
        stages[3].insert(0, nn.BatchNorm2d(8))
    return as_backbone(stages, preprocessing=SMALL)


@pytest.mark.parametrize("shape", ["taps on both sides", "tail alone"])
def test_a_tail_that_begins_with_a_norm_whose_statistics_move(tmp_path, pictures, shape):
    """Sums over a batch depend on how it lies in memory: what is stored has to lie there as what is computed."""
    check(tmp_path, pictures, norms_first, shape, "adamw", recipe=Recipe(batchnorm="moving"))


@pytest.mark.parametrize("recipe", [{}, {"mixup": 1.0, "ema": 0.5}, {"cutmix": 1.0}], ids=["plain", "mixup", "cutmix"])
def test_with_the_trainer(tmp_path, pictures, recipe):
    outcomes = []
    for cached in (False, True):
        backbone = tiny_backbone()
        data = data_of(pictures, backbone)
        if cached:
            data.stored = stored_views(tmp_path / "cache", data, backbone, "taps on both sides")
        module = TransferModule(backbone, 3, cut=2, taps=(0, 1, 3), recipe=Recipe(lr=0.05, **recipe))
        folder = tmp_path / ("store" if cached else "files")
        torch.manual_seed(5)
        settings = FitSettings(epochs=3, precision="32-true")
        fit(module, data, settings, folder=folder, history=folder / "history.csv", device=torch.device("cpu"))
        outcomes.append(copied(module.network.state_dict()))
    assert_equal(*outcomes)


def test_after_files_were_added(tmp_path):
    """What was stored for fewer files serves the larger folder, in its own order and with its own split."""
    folder = make_photos(tmp_path / "photos", COUNTS)
    backbone = tiny_backbone()
    stored_views(tmp_path / "cache", data_of(folder, backbone), backbone, "taps on both sides")
    for number in range(3):
        photo(5, number, seed=9).save(folder / "dog" / f"0{number}a.jpg")
    check(tmp_path, folder, tiny_backbone, "taps on both sides", "adamw")


def test_files_that_fail_are_left_out_alike(tmp_path):
    folder = make_photos(tmp_path / "photos", COUNTS)
    for path in sorted(folder.rglob("*.jpg"))[1::6]:
        path.write_bytes(path.read_bytes()[:-200])  # its header is good
    outcomes = []
    for cached in (False, True):
        backbone = tiny_backbone()
        data = data_of(folder, backbone)
        if cached:
            data.stored = stored_views(tmp_path / "cache", data, backbone, "tail alone")
        outcomes.append((train(TransferModule(backbone, 3, cut=3, taps=(3,)), data, "sgd"), data.failures))
    (from_files, failed), (from_store, failed_in_store) = outcomes
    assert failed == failed_in_store and len(failed) == 4
    assert from_files[0] == from_store[0]
    assert_equal(from_files[1], from_store[1])


def test_scores_of_stored_views_are_those_of_pixels(tmp_path, pictures):
    backbone = tiny_backbone()
    module = TransferModule(backbone, 3, cut=2, taps=(0, 1, 3))
    nn.init.normal_(module.network.head.linear.weight, generator=torch.Generator().manual_seed(0))
    data = data_of(pictures, backbone)
    views = stored_views(tmp_path / "cache", data, backbone, "taps on both sides")
    model = module.trained_model(data.classes)
    rows = data.manifest.rows(TRAIN)[:7].tolist()
    for number in range(VIEWS):
        pixels = ViewDataset(data.manifest, SMALL, data.augment, seed=data.seed, max_pixels=10**6)
        live = pixels.collate([pixels[row, number] for row in rows])
        stored = views.collate([views[row, number] for row in rows])
        assert torch.equal(model.logits(stored.inputs), model.logits(live.inputs))
        assert torch.equal(stored.labels, live.labels) and torch.equal(stored.rows, live.rows)
