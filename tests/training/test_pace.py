"""The time of a training step: tried out on copies, and in proportion to the work."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from toolkit.backbones.catalog import as_backbone, build_backbone
from toolkit.plan import FreezeSpec
from toolkit.training.pace import image_seconds

CPU = torch.device("cpu")


@pytest.mark.parametrize("cut", [0, 5])
def test_nothing_of_the_backbone_changes(cut: int) -> None:
    backbone = build_backbone("efficientnet_lite0", pretrained=False, image_size_px=32)
    stages = nn.ModuleList(backbone.stages)
    before, asked = copy.deepcopy(stages.state_dict()), [p.requires_grad for p in stages.parameters()]
    state = torch.random.get_rng_state()
    taken = image_seconds(backbone, FreezeSpec.at_cut(8, cut), (4, 6, 7), 5, CPU, "32-true")
    assert 0 < taken < 10
    assert all(torch.equal(before[key], value) for key, value in stages.state_dict().items())
    assert [p.requires_grad for p in stages.parameters()] == asked
    assert all(p.grad is None for p in stages.parameters())
    assert not any(module.training for stage in backbone.stages for module in stage.modules())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_more_work_takes_longer() -> None:
    def net(width: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, width, 7, stride=2), nn.ReLU(), nn.Conv2d(width, width, 5, stride=2), nn.ReLU()
        )

    light, heavy = (
        image_seconds(as_backbone([net(width)]), FreezeSpec.at_cut(1, 0), (0,), 2, CPU, "32-true") for width in (2, 64)
    )
    assert heavy > 3 * light


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_of_a_transformer_and_in_half_precision(precision: str) -> None:
    backbone = build_backbone("vit_b_16", pretrained=False, image_size_px=32)
    n = len(backbone)
    assert image_seconds(backbone, FreezeSpec.at_cut(n, n - 2), (n - 1,), 3, CPU, precision) > 0
