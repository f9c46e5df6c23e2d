"""Whether a network can be trained by a recipe is known of its stages alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.features.small import family
from tests.training.tiny import tiny_backbone
from toolkit.backbones.catalog import as_backbone, build_backbone
from toolkit.errors import SettingError
from toolkit.plan import Recipe
from toolkit.training.able import check_able
from toolkit.training.blend import blend
from toolkit.training.module import TransferModule

CUTMIX, DROP_PATH = Recipe(cutmix=1.0), Recipe(drop_path=0.1)


@pytest.mark.parametrize("name", ["convnext_tiny", "swin_t", "timm/test_vit", "resnet20"])
def test_cutmix_is_refused_where_the_batch_would_refuse_it(name: str) -> None:
    try:
        backbone = family(name)
    except KeyError:
        backbone = build_backbone(name, pretrained=False, image_size_px=32)
    refused = []
    for cut in range(1, len(backbone)):
        module = TransferModule(backbone, 3, cut=cut)
        size = backbone.preprocessing.crop_px
        given = module.network.before_tail(torch.zeros(2, 3, size, size, dtype=torch.uint8))
        told = []
        for act in (
            lambda given=given: blend(given, backbone.layout, mixup=0.0, cutmix=1.0),
            lambda cut=cut: check_able(backbone, CUTMIX, cut),
        ):
            try:
                act()
                told.append("")
            except SettingError as error:
                told.append(str(error))
        assert told[0] == told[1]
        refused.append(bool(told[0]))
    check_able(backbone, CUTMIX, 0)  # an image is a map
    check_able(backbone, Recipe(mixup=1.0), len(backbone) - 1)
    assert any(refused) == (name == "timm/test_vit")


def test_a_vector_is_no_map() -> None:
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    backbone = as_backbone([nn.Conv2d(3, 4, 3, 4), pooled, nn.Linear(4, 8)])
    check_able(backbone, CUTMIX, 1)
    with pytest.raises(SettingError, match="cutmix: nothing to cut from"):
        check_able(backbone, CUTMIX, 2)


def test_blocks_that_can_be_skipped_have_to_be_among_those_that_train() -> None:
    block = nn.Conv2d(4, 4, 3)
    block.drop_path = nn.Identity()
    backbone = as_backbone([nn.Conv2d(3, 4, 3, 4), block, nn.Conv2d(4, 8, 3)])
    check_able(backbone, DROP_PATH, 1)
    with pytest.raises(SettingError, match="drop_path: no stage of custom that trains has blocks"):
        check_able(backbone, DROP_PATH, 2)
    for share in (0.0, 0.1):
        with pytest.raises(SettingError, match="drop_path: no stage of custom"):
            check_able(tiny_backbone(), Recipe(drop_path=share), 0)
    check_able(tiny_backbone(), Recipe(), 0)
