"""Networks for small images, to be trained from scratch: what pretraining is worth is held against them."""

from __future__ import annotations

from typing import Any

from torch import nn

from toolkit.backbones.parts import Network, Parts, chain, check_image_size
from toolkit.data.preprocessing import Preprocessing
from toolkit.errors import WeightsError

WIDTHS = (16, 32, 64)
BLOCKS_A_STAGE = {"resnet20": 3}


def preprocessing(name: str) -> Preprocessing:
    """Return 32 px, the size that they were made for, values from −1 to 1."""
    return Preprocessing(32, 32, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def network(name: str, image_size_px: int | None, published: bool) -> Network:
    """Build the network with random weights; raises WeightsError where published ones are wanted: there are none."""
    check_image_size(name, image_size_px)
    if published:
        raise WeightsError(f"{name} has no pretrained weights: take the strategy 'scratch', or give --weights FILE")
    return Network(residual_net(BLOCKS_A_STAGE[name]), split, preprocessing(name), lambda state: state)


def residual_net(blocks_a_stage: int) -> nn.Module:
    """Return a residual network of 6n + 2 layers: a convolution, then three stages of n blocks, 16, 32, 64 wide.

    He et al. 2016, "Deep residual learning for image recognition", section 4.2, with 1 × 1 convolutions where a block
    changes the width (their option B). n = 3: 0.27 M parameters, 41 M multiplications at 32 px.
    """
    from torchvision.models.resnet import BasicBlock

    stem = chain(nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False), nn.BatchNorm2d(WIDTHS[0]), nn.ReLU(inplace=True))
    stages: list[nn.Module] = [stem]
    before = WIDTHS[0]
    for width in WIDTHS:
        blocks = []
        for number in range(blocks_a_stage):
            stride = 2 if number == 0 and width != WIDTHS[0] else 1
            shortcut = None
            if before != width:
                shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))
            blocks.append(BasicBlock(before, width, stride, shortcut))
            before = width
        stages.append(nn.Sequential(*blocks))
    model = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def split(model: Any) -> Parts:
    """Stem; the three stages, the last of them with the pooling."""
    stem, first, second, third, *top = model
    return Parts((stem, first, second, chain(third, *top)), "NCHW", None)
