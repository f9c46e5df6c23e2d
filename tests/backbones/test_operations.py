"""Multiplications by stage: as torch's own counter has them, and nothing left behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from toolkit.backbones.catalog import as_backbone, build_backbone
from toolkit.backbones.operations import stage_operations


@pytest.mark.parametrize(
    "name", ["efficientnet_lite0", "resnet18", "convnext_tiny", "mobilenet_v3_small", "swin_t", "vit_b_16"]
)
def test_they_are_what_torch_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = build_backbone(name, pretrained=False, image_size_px=64)
    monkeypatch.setattr(torch.backends.mha, "_is_fastpath_enabled", False)  # torch's counter does not know it
    activation, counted = torch.zeros(1, 3, 64, 64), []
    for stage in backbone.stages:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            activation = stage(activation)
        counted.append(counter.get_total_flops() // 2)
    assert list(stage_operations(backbone)) == pytest.approx(counted, rel=2e-3)
    assert not any(module._forward_hooks for stage in backbone.stages for module in stage.modules())


def test_of_modules_of_ones_own() -> None:
    net = as_backbone(
        [nn.Conv2d(3, 4, 3, padding=1), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))]
    )
    assert stage_operations(net) == (224 * 224 * 4 * 27, 8)


def test_of_layers_that_are_called_as_functions() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4, 3, 2, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.conv2d(x, self.weight, stride=2).mean(dim=(2, 3)) @ torch.ones(4, 6)

    up = nn.ConvTranspose2d(3, 5, 2, stride=2)
    assert stage_operations(as_backbone([Functional()])) == (112 * 112 * 4 * 12 + 24,)
    assert stage_operations(as_backbone([up]))[0] == 224 * 224 * 3 * 5 * 4


def test_modes_are_left_as_they_were() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    backbone = as_backbone([net])
    net.train()
    assert stage_operations(backbone) == (222 * 222 * 4 * 27,)
    assert all(module.training for module in net.modules()) and net[1].num_batches_tracked == 0
