"""EfficientNet-Lite 0 to 2: EfficientNet for small devices, with ReLU6 and no squeeze-and-excitation.

Tan and Le 2019, "EfficientNet: Rethinking model scaling for convolutional neural networks", table 1, less what the
authors' Lite models leave out; their stem, first and last block and top are not scaled. Modules and parameters have
the names of timm's `tf_efficientnet_lite…`, so that state dicts pass both ways. Built here because the default network
is, and timm with torchvision takes a second and a half to import.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

N_CLASSES = 1000
STEM_WIDTH, TOP_WIDTH = 32, 1280
EPS = 1e-3  # of BatchNorm, TensorFlow's


class Scale(NamedTuple):
    """What EfficientNet's compound scaling multiplies channels and blocks by."""

    width: float
    depth: float


class _Group(NamedTuple):
    """Blocks of one width: kernel, stride of the first, expansion, channels and number before scaling."""

    kernel: int
    stride: int
    expansion: int
    width: int
    blocks: int


SCALES = {
    "efficientnet_lite0": Scale(1.0, 1.0),
    "efficientnet_lite1": Scale(1.0, 1.1),
    "efficientnet_lite2": Scale(1.1, 1.2),
}
_GROUPS = (
    _Group(3, 1, 1, 16, 1),
    _Group(3, 2, 6, 24, 2),
    _Group(5, 2, 6, 40, 2),
    _Group(3, 2, 6, 80, 3),
    _Group(5, 1, 6, 112, 3),
    _Group(5, 2, 6, 192, 4),
    _Group(3, 1, 6, 320, 1),
)


class EfficientNetLite(nn.Module):
    """Images, float (N, 3, H, W) → scores, float (N, 1000).

    Random weights as the authors draw them: convolutions from N(0, 2 / fan_out), the Linear from U(±1 / √1000).
    """

    drop_rate = 0.0  # before the classifier

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        self.conv_stem = SameConv2d(3, STEM_WIDTH, 3, stride=2, bias=False)
        self.bn1 = NormReLU6(STEM_WIDTH)
        groups, before = [], STEM_WIDTH
        for group in _GROUPS:
            fixed = group in (_GROUPS[0], _GROUPS[-1])
            n_blocks = group.blocks if fixed else math.ceil(group.blocks * scale.depth)
            width = _rounded(group.width * scale.width)
            blocks: list[nn.Module] = []
            for number in range(n_blocks):
                stride = group.stride if number == 0 else 1
                if group.expansion == 1:
                    blocks.append(SeparableBlock(before, width, group.kernel))
                else:
                    blocks.append(InvertedResidual(before, width, group.kernel, stride, group.expansion))
                before = width
            groups.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*groups)
        self.conv_head = nn.Conv2d(before, TOP_WIDTH, 1, bias=False)
        self.bn2 = NormReLU6(TOP_WIDTH)
        self.global_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
        self.classifier = nn.Linear(TOP_WIDTH, N_CLASSES)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
                nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
        nn.init.uniform_(self.classifier.weight, -1 / math.sqrt(N_CLASSES), 1 / math.sqrt(N_CLASSES))
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return class scores, float (N, 1000)."""
        activation = self.blocks(self.bn1(self.conv_stem(images)))
        scores: Tensor = self.classifier(self.global_pool(self.bn2(self.conv_head(activation))))
        return scores


class NormReLU6(nn.BatchNorm2d):
    """BatchNorm, then the ReLU that ends at 6."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=EPS)
        self.act = nn.ReLU6(inplace=True)

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised input between 0 and 6, (N, C, H, W)."""
        activation: Tensor = self.act(super().forward(input))
        return activation


class SameConv2d(nn.Conv2d):
    """A convolution that makes ⌈n / stride⌉ rows of n as TensorFlow does: an odd row of zeros goes below."""

    def forward(self, input: Tensor) -> Tensor:
        """Pad and convolve, (N, C, H, W)."""
        margins: list[int] = []
        for size, kernel, stride in zip(input.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            missing: Any = (-(-size // stride) - 1) * stride + kernel - size
            missing = missing.clamp(min=0) if isinstance(missing, Tensor) else max(0, missing)  # a Tensor in a trace
            margins += [missing // 2, missing - missing // 2]
        return super().forward(F.pad(input, margins))


class SeparableBlock(nn.Module):
    """A depthwise convolution and a pointwise one; nothing goes around it, since the width changes."""

    has_skip = False

    def __init__(self, before: int, width: int, kernel: int) -> None:
        super().__init__()
        self.conv_dw = _depthwise(before, kernel, 1)
        self.bn1 = NormReLU6(before)
        self.conv_pw = nn.Conv2d(before, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width, eps=EPS)
        self.drop_path = nn.Identity()

    def forward(self, activation: Tensor) -> Tensor:
        """Return (N, width, H, W)."""
        made: Tensor = self.bn2(self.conv_pw(self.bn1(self.conv_dw(activation))))
        return made


class InvertedResidual(nn.Module):
    """Pointwise convolution to `expansion` times the width, depthwise, pointwise to the block's own width."""

    def __init__(self, before: int, width: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = before * expansion
        self.has_skip = stride == 1 and before == width
        self.conv_pw = nn.Conv2d(before, middle, 1, bias=False)
        self.bn1 = NormReLU6(middle)
        self.conv_dw = _depthwise(middle, kernel, stride)
        self.bn2 = NormReLU6(middle)
        self.conv_pwl = nn.Conv2d(middle, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width, eps=EPS)
        self.drop_path: nn.Module = nn.Identity()

    def forward(self, activation: Tensor) -> Tensor:
        """Return (N, width, ⌈H / stride⌉, ⌈W / stride⌉), the input added where it has that shape."""
        made: Tensor = self.bn2(self.conv_dw(self.bn1(self.conv_pw(activation))))
        made = self.bn3(self.conv_pwl(made))
        return self.drop_path(made) + activation if self.has_skip else made


def _depthwise(width: int, kernel: int, stride: int) -> nn.Conv2d:
    if stride == 1:  # "same" is symmetric then
        return nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width, bias=False)
    return SameConv2d(width, width, kernel, stride=stride, groups=width, bias=False)


def _rounded(width: float) -> int:
    """Return a number of channels as a multiple of 8, not more than a tenth below."""
    nearest = max(8, int(width + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * width else nearest
