"""Stored equals live, to the bit: whatever the order, the company, the views, the cut, and what was stored before."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tests.features.small import SIZES, assert_same, everything, family, fetch, live, photos
from tests.training.tiny import WIDTHS, tiny_backbone
from toolkit.backbones.backbone import Backbone
from toolkit.data.manifest import Manifest
from toolkit.data.views import AUGMENTATIONS
from toolkit.errors import SettingError
from toolkit.features import passes
from toolkit.features.request import Request
from toolkit.plan import FreezeSpec
from toolkit.training.network import TransferNetwork

FAST = ["tiny", "mobilenet_v3_small", "timm/test_vit"]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Manifest:
    """Return 37 images: a full chunk and a part of one."""
    return photos(tmp_path_factory.mktemp("same") / "photos", 37)


def shuffled(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).permutation(n).tolist()


def check_family(name: str, folder, manifest: Manifest) -> None:
    """Store some rows, then add files, views and outputs; whatever is asked for equals what is made anew."""
    backbone = family(name)
    n = len(backbone)
    rows = shuffled(11)
    request = Request(backbone, (n - 2, n - 1), n // 2, views=3)
    first = fetch(folder, request, manifest, rows)
    assert first.n_computed == 33
    assert_same(everything(first), live(request, manifest, rows))
    more = [36, *rows[::-1], 30]  # files were added, and the others stand elsewhere
    second = fetch(folder, request, manifest, more)
    assert second.n_computed == 6 and second.rows.tolist() == more
    assert_same(everything(second), live(request, manifest, more, seed=1))
    third = fetch(folder, replace(request, cut=1, taps=(0, n - 1), views=5), manifest, more[:4])
    assert third.n_computed == 20
    assert_same(everything(third), live(third.request, manifest, more[:4], seed=2))
    again = fetch(folder, request, manifest, more[::-1])
    assert again.n_computed == 0
    assert_same(everything(again), live(request, manifest, more[::-1], seed=3))


@pytest.mark.parametrize("name", FAST)
def test_stored_equals_live(tmp_path, manifest, name):
    check_family(name, tmp_path, manifest)


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_stored_equals_live_in_every_family(tmp_path, manifest, name):
    check_family(name, tmp_path, manifest)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAST)
def test_nor_do_threads_matter(tmp_path, manifest, name):
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        check_family(name, tmp_path, manifest)
    finally:
        torch.set_num_threads(1)


@pytest.mark.slow
def test_a_cache_filled_by_another_number_of_threads_gives_what_an_empty_one_gives(tmp_path, manifest):
    """Matrix products are shared out by the number of threads, and summed up accordingly."""
    request = Request(family("vit_b_32"), (3, 5))
    fetch(tmp_path, request, manifest, range(3))
    torch.set_num_threads(2)
    try:
        assert_same(everything(fetch(tmp_path, request, manifest, range(3))), live(request, manifest, range(3)))
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(
    "name, dtype", [("tiny", torch.bfloat16), ("tiny", torch.float16), (FAST[1], torch.bfloat16)], ids=str
)
def test_half_precision_is_stored_as_it_is(tmp_path, manifest, name, dtype):
    backbone = family(name)
    n, rows = len(backbone), shuffled(9)
    request = Request(backbone, (n - 1,), n - 2, views=2, dtype=dtype)
    stored = fetch(tmp_path, request, manifest, rows)
    assert_same(everything(stored), live(request, manifest, rows))
    found = everything(stored)
    assert found[f"stage.{n - 3}"].dtype == dtype and found[f"pool.{n - 1}"].dtype == torch.float32
    exact = everything(fetch(tmp_path, replace(request, dtype=torch.float32), manifest, rows))
    rough, fine = found[f"pool.{n - 1}"], exact[f"pool.{n - 1}"]
    assert not torch.equal(rough, fine) and (rough - fine).abs().max() < 0.05 * fine.abs().max()


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_pixels_are_stored_for_cut_0(tmp_path, manifest, augmentation):
    request = Request(tiny_backbone(), (), 0, views=4, augmentation=AUGMENTATIONS[augmentation], seed=7)
    stored = fetch(tmp_path, request, manifest)
    assert_same(everything(stored), live(request, manifest, range(37)))
    pixels = stored.inputs(np.array([5, 3]), view=2)
    assert pixels.dtype == torch.uint8 and torch.equal(pixels, everything(stored)["pixels"][[5, 3], 2])
    views = everything(stored)["pixels"][0]
    assert torch.equal(views[0], views[1]) == (augmentation == "none")


@pytest.mark.parametrize("views", [1, 5, 40])
def test_any_number_of_views(tmp_path, manifest, views):
    """40 views of an image are more than go into one forward pass; 37 and 5 · 37 fill none evenly."""
    request = Request(tiny_backbone(), (1, 3), 2, views=views)
    rows = shuffled(37)[: 37 if views < 40 else 5]
    stored = fetch(tmp_path, request, manifest, rows)
    assert stored.n_computed == views * len(rows)
    assert_same(everything(stored), live(request, manifest, rows))
    assert len(torch.unique(everything(stored)["pool.3"].flatten(0, 1), dim=0)) == views * len(rows)


def test_the_size_of_shards_does_not_matter(tmp_path, manifest, monkeypatch):
    request = Request(tiny_backbone(), (3,), 2, views=3)
    rows = shuffled(37)
    whole = everything(fetch(tmp_path / "a", request, manifest, rows))
    monkeypatch.setattr(passes, "SHARD_IMAGES", 2)
    split = fetch(tmp_path / "b", request, manifest, rows)
    assert len(split.columns["pool.3"].shards) > 10
    assert_same(everything(split), whole)


def test_workers_change_nothing(tmp_path, manifest):
    request = Request(tiny_backbone(), (3,), 2, views=2)
    rows = [*range(37), *range(37)]  # 74 images: enough for processes to be used
    one = fetch(tmp_path / "a", request, manifest, rows, workers=0)
    two = fetch(tmp_path / "b", request, manifest, rows, workers=2)
    assert_same(everything(one), everything(two))


def test_taps_stand_side_by_side_in_stage_order(tmp_path, manifest):
    backbone = tiny_backbone()
    both = fetch(tmp_path, Request(backbone, (3, 1)), manifest)
    assert both.pooled().shape == (37, WIDTHS[1] + WIDTHS[3])
    for tap, columns in {1: slice(WIDTHS[1]), 3: slice(WIDTHS[1], None)}.items():
        assert np.array_equal(both.pooled(taps=[tap])[:], both.pooled()[:][:, columns])
    assert fetch(tmp_path, Request(backbone), manifest).pooled().shape == (37, WIDTHS[3]), "the last stage by default"


@pytest.mark.parametrize("taps", [(4,), (-1,), (1, 1)])
def test_impossible_taps_are_refused(taps):
    with pytest.raises(SettingError, match="taps: distinct stages from 0 to 3 expected"):
        Request(tiny_backbone(), taps)


def test_extraction_leaves_statistics_modes_and_random_state(tmp_path, manifest):
    backbone = tiny_backbone()
    before = [value.clone() for stage in backbone.stages for value in stage.state_dict().values()]
    for stage in backbone.stages:
        stage.train()
    state = torch.get_rng_state()
    trained = fetch(tmp_path / "a", Request(backbone, (3,), 2, views=2), manifest)
    after = [value for stage in backbone.stages for value in stage.state_dict().values()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert all(module.training for stage in backbone.stages for module in stage.modules())
    assert all(parameter.requires_grad for stage in backbone.stages for parameter in stage.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    fresh = fetch(tmp_path / "b", Request(tiny_backbone(), (3,), 2, views=2), manifest)
    assert_same(everything(trained), everything(fresh))


def test_a_network_gives_the_stored_features_from_pixels(tmp_path, manifest):
    """What the store holds is what a TransferNetwork, whatever its mode, makes of the same pixels."""
    for name in FAST[:2]:
        backbone = family(name)
        n = len(backbone)
        taps = (n - 3, n - 1)
        stored = fetch(tmp_path / name, Request(backbone, taps), manifest, range(5))
        spec = FreezeSpec.at_cut(n, n)
        network = TransferNetwork(backbone, nn.Identity(), spec, taps=taps)
        pixels = torch.from_numpy(
            np.stack([fetch_pixels(tmp_path / "pixels", backbone, manifest)[row] for row in range(5)])
        )
        for mode in (False, True):
            with torch.no_grad():
                assert np.array_equal(network.train(mode).features(pixels).numpy(), stored.pooled()[:])


def fetch_pixels(folder, backbone: Backbone, manifest: Manifest) -> np.ndarray:
    return fetch(folder, Request(backbone, (), 0), manifest, range(5)).inputs(np.arange(5)).numpy()
