"""Names, random weights, image sizes, stages of one's own, and the list of what there is."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from toolkit.backbones import names, torchvision_source
from toolkit.backbones.backbone import Backbone
from toolkit.backbones.catalog import as_backbone, build_backbone, catalog, default_preprocessing
from toolkit.data.preprocessing import Preprocessing
from toolkit.errors import SettingError, WeightsError

SMALL = "mobilenet_v3_small"


def values(backbone: Backbone) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for stage in backbone.stages for p in stage.parameters()])


def test_unknown_names_get_the_nearest() -> None:
    for name, near in (("resnet81", "resnet18"), ("eficientnet_lite0", "efficientnet_lite0"), ("vit_b16", "vit_b_16")):
        with pytest.raises(SettingError, match=f"unknown backbone '{name}'.*{near}"):
            build_backbone(name)
        with pytest.raises(SettingError, match="unknown backbone"):
            default_preprocessing(name)


def test_the_names_are_torchvisions() -> None:
    from torchvision import models

    ours = tuple(names.FAMILY_OF)
    assert len(ours) == len(set(ours)) == sum(len(members) for members in names.TORCHVISION.values())
    starts = ("resn", "wide_", "vgg", "densenet", "mobilenet", "efficientnet", "convnext", "regnet", "vit_", "swin")
    theirs = {name for name in models.list_models(module=models) if name.startswith(starts)}
    assert theirs == set(ours)


def test_the_names_need_no_library() -> None:
    code = "import sys, toolkit.backbones.names; assert not {'torch', 'torchvision', 'timm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_random_weights_follow_the_seed_and_leave_the_global_state() -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    one = build_backbone(SMALL, pretrained=False, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(4)
    same = build_backbone(SMALL, pretrained=False, seed=1)
    other = build_backbone(SMALL, pretrained=False, seed=2)
    assert torch.equal(values(one), values(same))
    assert not torch.equal(values(one), values(other))
    assert (one.weights, one.weights_digest) == ("random", "random seed 1")
    assert not any(module.training for stage in one.stages for module in stage.modules())
    assert all(p.requires_grad for stage in one.stages for p in stage.parameters())


def test_random_weights_and_a_file_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="random weights were asked for"):
        build_backbone(SMALL, pretrained=False, weights=tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="there is no weights file"):
        build_backbone(SMALL, weights=tmp_path / "w.pth")


def test_preprocessing_is_the_weights_own() -> None:
    assert default_preprocessing("resnet50") == Preprocessing(256, 224, "bilinear")
    assert default_preprocessing("efficientnet_b3") == Preprocessing(320, 300, "bicubic")
    assert default_preprocessing("swin_v2_t") == Preprocessing(260, 256, "bicubic")
    assert default_preprocessing("vit_h_14").crop_px == 518
    assert default_preprocessing("timm/test_vit").crop_px == 160


def test_image_size_of_a_convolutional_network() -> None:
    backbone = build_backbone(SMALL, pretrained=False, image_size_px=96)
    assert (backbone.preprocessing.resize_px, backbone.preprocessing.crop_px) == (110, 96)
    assert backbone.stage_shapes()[-2:] == ((96, 3, 3), (1024,))
    assert backbone.feature_dim == 1024
    with pytest.raises(SettingError, match="at least 32 px expected, got 16"):
        build_backbone(SMALL, pretrained=False, image_size_px=16)


def test_image_size_of_a_vit() -> None:
    for name in ("vit_b_32", "timm/test_vit"):
        with pytest.raises(SettingError, match=r"multiple of its patch size, .*got 100, nearest: 96 and 1"):
            build_backbone(name, pretrained=False, image_size_px=100)
    backbone = build_backbone("timm/test_vit", pretrained=False, image_size_px=96)
    assert backbone.preprocessing.crop_px == 96
    assert backbone.stage_shapes()[0] == (37, 64)
    with pytest.raises(SettingError, match=r"stage 0 of 6 cannot take an image of 100 × 100 px"):
        backbone.stage_shapes(100)


def test_a_vits_positions_are_resampled(tmp_path: Path) -> None:
    whole = torchvision_source.network("vit_b_32", None, False)
    torch.save(whole.model.state_dict(), tmp_path / "vit.pth")
    backbone = build_backbone("vit_b_32", weights=tmp_path / "vit.pth", image_size_px=96)
    given = whole.model.encoder.pos_embedding
    taken = backbone.stages[0].pos_embedding
    assert taken.shape == (1, 1 + 9, 768)
    assert torch.equal(taken[:, 0], given[:, 0])
    grid = given[:, 1:].reshape(1, 7, 7, 768).permute(0, 3, 1, 2)
    scaled = nn.functional.interpolate(grid, size=3, mode="bicubic", align_corners=True)
    torch.testing.assert_close(taken[:, 1:], scaled.flatten(2).transpose(1, 2))


def test_stages_of_ones_own() -> None:
    layers = [nn.Conv2d(3, 8, 3, stride=2), nn.Sequential(nn.ReLU(), nn.Conv2d(8, 16, 3)), nn.BatchNorm2d(16)]
    backbone = as_backbone(nn.Sequential(*layers))
    assert backbone.stages[:2] == tuple(layers[:2])
    assert backbone.stage_shapes() == ((8, 111, 111), (16, 109, 109), (16,))
    assert (backbone.layout, backbone.weights, backbone.classifier) == ("NCHW", "custom", None)
    assert backbone.preprocessing == Preprocessing(256, 224)
    assert next(backbone.stages[2].parameters()) is layers[2].weight

    again = as_backbone(layers, preprocessing=Preprocessing(36, 32), name="mine")
    assert again.name == "mine"
    assert again.stage_shapes() == ((8, 15, 15), (16, 13, 13), (16,))
    with torch.no_grad():
        layers[0].bias[0] += 1
    assert as_backbone(layers).weights_digest != as_backbone(layers[:2]).weights_digest != backbone.weights_digest


def test_token_and_channels_last_stages_of_ones_own() -> None:
    patches = nn.Sequential(nn.Conv2d(3, 6, 16, stride=16), nn.Flatten(2))
    tokens = as_backbone([patches, nn.Linear(196, 196)])
    assert tokens.layout == "NLC"
    assert tokens.stage_shapes() == ((6, 196), (196,))

    class ChannelsLast(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.permute(0, 2, 3, 1)

    last = as_backbone([ChannelsLast(), nn.Linear(3, 5)], layout="NHWC")
    assert last.stage_shapes() == ((224, 224, 3), (5,))
    assert last.pool(torch.ones(2, 4, 4, 3)).shape == (2, 3)

    vector = as_backbone([nn.Conv2d(3, 4, 3), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())])
    assert vector.feature_dim == 4
    assert len(vector.stages[1]) == 2


def test_a_backbone_or_a_name_passes() -> None:
    backbone = build_backbone(SMALL, pretrained=False)
    assert as_backbone(backbone) is backbone
    changed = as_backbone(backbone, preprocessing=Preprocessing(64, 64))
    assert changed.preprocessing.crop_px == 64
    assert changed.stages == backbone.stages
    assert as_backbone("efficientnet_lite0").weights == "embedded"
    with pytest.raises(SettingError, match="layout is for stages"):
        as_backbone(backbone, layout="NCHW")


def test_what_is_no_backbone_is_refused() -> None:
    with pytest.raises(SettingError, match="got a Conv2d"):
        as_backbone(nn.Conv2d(3, 4, 3))  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="got a str"):
        as_backbone([nn.Conv2d(3, 4, 3), "pool"])  # type: ignore[list-item]
    with pytest.raises(SettingError, match="at least one stage"):
        as_backbone([])
    with pytest.raises(SettingError, match="stage 1 of 2 cannot take"):
        as_backbone([nn.Conv2d(3, 4, 3), nn.Conv2d(5, 4, 3)])


def test_stages_that_share_parameters_or_buffers_are_refused() -> None:
    def closing() -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def tied(of_values: bool) -> nn.Module:
        other = nn.Conv2d(3, 3, 1)
        if of_values:
            other.weight.data = same.weight.data
        else:
            other.weight = same.weight
        return other

    same, norm, relu = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()
    buffers = nn.BatchNorm2d(3)
    buffers.running_mean = norm.running_mean
    for stages in (
        [same, nn.ReLU(), same],
        [same, nn.ReLU(), nn.Sequential(nn.ReLU(), tied(of_values=False))],
        [same, nn.ReLU(), tied(of_values=True)],
        [norm, nn.ReLU(), buffers],
    ):
        with pytest.raises(SettingError, match="stages 0 and 2 share parameters or buffers") as caught:
            as_backbone([*stages, closing()])
        assert "\n" not in str(caught.value)
        with pytest.raises(SettingError, match="stages 0 and 2 share"):
            as_backbone(nn.Sequential(*stages, closing()))
    within = as_backbone([nn.Sequential(same, nn.ReLU(), same, tied(of_values=False)), relu, norm, relu, closing()])
    assert within.feature_dim == 3 and within.n_parameters() == 12 + 3 + 6
    with torch.device("meta"):
        unallocated = (nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    assert len(Backbone("meta", unallocated, Preprocessing(8, 8))) == 2


def test_the_catalog_is_cheap_and_true() -> None:
    started = time.perf_counter()
    entries = {entry.name: entry for entry in catalog()}
    assert time.perf_counter() - started < 10
    assert set(names.plain_names()) <= entries.keys()
    assert sum(name.startswith("timm/") for name in entries) == len(names.TIMM)
    assert entries["efficientnet_lite0"].is_local
    for name in (SMALL, "resnet18", "efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"):
        backbone = build_backbone(name, pretrained=False)
        assert backbone.classifier is not None
        n_linear = sum(p.numel() for p in backbone.classifier.parameters())
        assert entries[name].parameters_m == (backbone.n_parameters() + n_linear) / 1e6
        assert entries[name].n_stages == len(backbone)


def test_the_small_net_is_that_of_the_paper_and_never_pretrained() -> None:
    backbone = build_backbone("resnet20", pretrained=False)
    assert [shape[0] for shape in backbone.stage_shapes()] == [16, 16, 32, 64]
    assert backbone.stage_shapes()[:3] == ((16, 32, 32), (16, 32, 32), (32, 16, 16))
    layers = [
        m for stage in backbone.stages for m in stage.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)
    ]
    assert len(layers) == 19, "and the head is the twentieth"
    (entry,) = [entry for entry in catalog() if entry.name == "resnet20"]
    assert entry.parameters_m == pytest.approx(backbone.n_parameters() / 1e6, abs=5e-4)
    with pytest.raises(WeightsError, match="no pretrained weights: take the strategy 'scratch'"):
        build_backbone("resnet20")


def test_sizes_of_stages_are_counts_of_parameters_lazy_ones_too() -> None:
    plain = (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)))
    assert as_backbone(list(plain)).stage_sizes() == (3 * 4 * 9 + 4, 0, 4 * 2 + 2)
    lazy = Backbone("lazy", (nn.LazyConv2d(4, 3), nn.LazyConv2d(2, 1)), Preprocessing(8, 8))
    assert lazy.stage_sizes() == (112, 10)
