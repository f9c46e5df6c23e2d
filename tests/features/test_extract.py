"""Features: equal to the bit whatever the order and the company, every file accounted for."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from tests.photos import make_photos
from tests.training.tiny import SMALL, WIDTHS, tiny_backbone
from toolkit.backbones.backbone import Backbone
from toolkit.backbones.catalog import build_backbone
from toolkit.data.manifest import Manifest
from toolkit.data.scan import scan
from toolkit.errors import SettingError
from toolkit.features.extract import CHUNK, Features, PooledStages, extract, in_chunks
from toolkit.heads.linear import LinearHead
from toolkit.plan import FreezeSpec
from toolkit.training.network import TransferNetwork
from toolkit.training.trained import TrainedModel

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Manifest:
    """Return 75 images: two full chunks and a part of one."""
    return scan(make_photos(tmp_path_factory.mktemp("features") / "photos", {"cat": 40, "dog": 35}))


@pytest.fixture(scope="module", params=["tiny", "mobilenet_v3_small", "timm/vit_tiny_patch16_224"])
def backbone(request) -> Backbone:
    if request.param == "tiny":
        return tiny_backbone()
    return build_backbone(request.param, pretrained=False, image_size_px=32)


def features(backbone: Backbone, manifest: Manifest, rows=None, **settings) -> Features:
    keys = {"device": CPU, "precision": "32-true", "workers": 0, "max_pixels": 10**6, **settings}
    return extract(backbone, manifest, rows=rows, **keys)


def test_features_do_not_depend_on_order_or_company(backbone, manifest):
    whole = features(backbone, manifest)
    assert whole.values.shape == (75, backbone.feature_dim) and whole.values.dtype == np.float32
    assert whole.rows.tolist() == list(range(75)) and whole.failures == ()
    assert len(np.unique(whole.values, axis=0)) == 75
    shuffled = np.random.default_rng(0).permutation(75)
    for rows in (shuffled, shuffled[:40], np.array([74]), np.arange(1, 75), shuffled[::-1][:33]):
        part = features(backbone, manifest, rows)
        assert part.rows.tolist() == rows.tolist()
        assert np.array_equal(part.values, whole.values[rows])


@pytest.mark.slow
def test_nor_with_as_many_threads_as_cores(backbone, manifest):
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        test_features_do_not_depend_on_order_or_company(backbone, manifest)
    finally:
        torch.set_num_threads(1)


def test_workers_change_nothing(backbone, manifest):
    assert np.array_equal(features(backbone, manifest, workers=2).values, features(backbone, manifest).values)


def test_pooled_stages_equal_the_transfer_networks_features(backbone, manifest):
    taps = (len(backbone) - 3, len(backbone) - 1)
    pixels = torch.randint(0, 256, (CHUNK, 3, 32, 32), dtype=torch.uint8)
    pooled = PooledStages(backbone, taps).eval()
    network = TransferNetwork(backbone, torch.nn.Identity(), FreezeSpec.at_cut(len(backbone), len(backbone)), taps=taps)
    with torch.inference_mode():
        assert torch.equal(pooled(pixels), network.features(pixels))
        assert torch.equal(pooled(pixels), network.train().features(pixels)), "a frozen network has no other mode"


def test_taps_stand_side_by_side_in_stage_order(manifest):
    backbone, rows = tiny_backbone(), np.arange(5)
    both = features(backbone, manifest, rows, taps=[3, 1])
    assert both.taps == (1, 3) and both.values.shape == (5, WIDTHS[1] + WIDTHS[3])
    for tap, part in ((1, both.values[:, : WIDTHS[1]]), (3, both.values[:, WIDTHS[1] :])):
        assert np.array_equal(features(backbone, manifest, rows, taps=[tap]).values, part)
    assert features(backbone, manifest, rows).taps == (3,)


@pytest.mark.parametrize("taps", [[], [4], [-1], [1, 1]])
def test_impossible_taps_are_refused(manifest, taps):
    with pytest.raises(SettingError, match="taps: distinct stages from 0 to 3 expected"):
        features(tiny_backbone(), manifest, taps=taps)


def test_files_that_fail_are_accounted_for(tmp_path):
    manifest = scan(make_photos(tmp_path / "photos", {"cat": 20, "dog": 20}))
    whole = features(tiny_backbone(), manifest)
    manifest.file(3).write_bytes(b"no image")
    manifest.file(33).unlink()
    for workers in (0, 2):
        rest = features(tiny_backbone(), manifest, workers=workers)
        assert [row for row, _ in rest.failures] == [3, 33] and all(reason for _, reason in rest.failures)
        kept = [row for row in range(40) if row not in (3, 33)]
        assert rest.rows.tolist() == kept
        assert np.array_equal(rest.values, whole.values[kept]), "the others do not change for it"


def test_nothing_readable_gives_no_rows(tmp_path):
    manifest = scan(make_photos(tmp_path / "photos", {"cat": 2, "dog": 2}))
    for row in range(4):
        manifest.file(row).unlink()
    nothing = features(tiny_backbone(), manifest)
    assert len(nothing.rows) == len(nothing.values) == 0 and len(nothing.failures) == 4


def test_extraction_leaves_statistics_and_random_state(manifest):
    backbone = tiny_backbone()
    before = [value.clone() for stage in backbone.stages for value in stage.state_dict().values()]
    state = torch.get_rng_state()
    for stage in backbone.stages:
        stage.train()
    trained = features(backbone, manifest, np.arange(40))
    after = [value for stage in backbone.stages for value in stage.state_dict().values()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(trained.values, features(tiny_backbone(), manifest, np.arange(40)).values)


def test_bfloat16_is_near(manifest):
    exact = features(tiny_backbone(), manifest).values
    rough = features(tiny_backbone(), manifest, precision="bf16-mixed").values
    assert rough.dtype == np.float32 and not np.array_equal(rough, exact)
    assert np.abs(rough - exact).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 70])
def test_chunks_have_one_size_and_lose_nothing(count):
    sizes = []

    def doubled(part: torch.Tensor) -> torch.Tensor:
        sizes.append(len(part))
        return part.float().flatten(1) * 2

    pixels = torch.randint(1, 256, (count, 3, 2, 2), dtype=torch.uint8)
    assert torch.equal(in_chunks(doubled, pixels), pixels.float().flatten(1) * 2)
    assert set(sizes) == {CHUNK}


def test_logits_of_a_model_do_not_depend_on_company(backbone):
    taps = (len(backbone) - 2, len(backbone) - 1)
    with torch.inference_mode():
        width = PooledStages(backbone, taps)(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape[1]
    head = LinearHead((width - backbone.feature_dim, backbone.feature_dim), 3)
    torch.nn.init.normal_(head.linear.weight, generator=torch.Generator().manual_seed(0))
    network = TransferNetwork(backbone, head, FreezeSpec.at_cut(len(backbone), len(backbone) - 1), taps=taps)
    model = TrainedModel(network, ("a", "b", "c"), backbone.name, "random", backbone.layout, SMALL, 10**6)
    pixels = torch.randint(0, 256, (70, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = model.logits(pixels)
    assert whole.shape == (70, 3) and whole.dtype == torch.float32
    order = torch.randperm(70, generator=torch.Generator().manual_seed(1))
    network.train()
    for rows in (order, order[:5], torch.tensor([69]), torch.arange(40, 70), order[:0]):
        assert torch.equal(model.logits(pixels[rows]), whole[rows])
    assert "3 classes: a, b, c" in str(model)
