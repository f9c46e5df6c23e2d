"""How each torchvision family is cut into stages; one function a family, its rule in its docstring.

Every stage holds the network's own modules and parameters: nothing is copied. Pooling, flattening and the layers
before the last Linear close the last stage, so that its output is the vector the Linear takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.backbones.parts import Parts, chain, groups, linear_or_none, quarters


def split_resnet(model: Any) -> Parts:
    """ResNet, ResNeXt, Wide ResNet: stem with its max pooling; layer1; layer2; layer3; layer4 with pooling."""
    stem = chain(model.conv1, model.bn1, model.relu, model.maxpool)
    top = chain(model.layer4, model.avgpool, nn.Flatten(1))
    return Parts((stem, model.layer1, model.layer2, model.layer3, top), "NCHW", linear_or_none(model.fc))


def split_vgg(model: Any) -> Parts:
    """VGG: five blocks, each ending with its max pooling; then pooling to 7 × 7 and the two 4096-wide Linears."""
    blocks: list[list[nn.Module]] = [[]]
    for layer in model.features:
        blocks[-1].append(layer)
        if isinstance(layer, nn.MaxPool2d):
            blocks.append([])
    *dense, last = model.classifier
    top = chain(model.avgpool, nn.Flatten(1), *dense)
    return Parts((*(chain(*block) for block in blocks if block), top), "NCHW", linear_or_none(last))


def split_densenet(model: Any) -> Parts:
    """DenseNet: stem; three dense blocks, each with the transition after it; the fourth with norm5 and pooling.

    A transition closes a stage since its output has an eighth of the numbers of its input: cheap to store.
    """
    layers = model.features
    stem = chain(layers.conv0, layers.norm0, layers.relu0, layers.pool0)
    middle = (
        chain(layers.denseblock1, layers.transition1),
        chain(layers.denseblock2, layers.transition2),
        chain(layers.denseblock3, layers.transition3),
    )
    top = chain(layers.denseblock4, layers.norm5, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
    return Parts((stem, *middle, top), "NCHW", linear_or_none(model.classifier))


def split_mobilenet(model: Any) -> Parts:
    """MobileNet V2 and V3: stem with the first blocks; each further group of blocks; last convolution, the rest.

    A block without a residual connection changes width or resolution, and begins a new group. The rest: pooling,
    and of the classifier all but its last Linear (V3: Linear, Hardswish, Dropout; V2: Dropout).
    """
    stem, *blocks, last_conv = model.features
    first, *others = groups(blocks, lambda block: not block.use_res_connect)
    *dense, last = model.classifier
    top = chain(last_conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(1), *dense)
    return Parts((chain(stem, *first), *(chain(*group) for group in others), top), "NCHW", linear_or_none(last))


def split_efficientnet(model: Any) -> Parts:
    """EfficientNet V1 and V2: stem with the first group; each further group; last convolution, pooling, dropout."""
    stem, first, *others, last_conv = model.features
    dropout, last = model.classifier
    top = chain(last_conv, model.avgpool, nn.Flatten(1), dropout)
    return Parts((chain(stem, first), *others, top), "NCHW", linear_or_none(last))


def split_convnext(model: Any) -> Parts:
    """ConvNeXt: stem; four groups, each with the downsampling before it; the last with pooling and LayerNorm."""
    stem, group1, down2, group2, down3, group3, down4, group4 = model.features
    norm, flatten, last = model.classifier
    top = chain(down4, group4, model.avgpool, norm, flatten)
    stages = (stem, group1, chain(down2, group2), chain(down3, group3), top)
    return Parts(stages, "NCHW", linear_or_none(last))


def split_regnet(model: Any) -> Parts:
    """RegNet X and Y: stem; block1; block2; block3; block4 with pooling."""
    *middle, last_block = model.trunk_output
    top = chain(last_block, model.avgpool, nn.Flatten(1))
    return Parts((model.stem, *middle, top), "NCHW", linear_or_none(model.fc))


def split_vit(model: Any) -> Parts:
    """ViT: embedding (patches, class token, positions); quarters of its blocks; norm and token choice."""
    stages = (_Embedding(model), *quarters(list(model.encoder.layers)), chain(model.encoder.ln, _ClassToken()))
    return Parts(stages, "NLC", linear_or_none(model.heads.head))


def split_swin(model: Any) -> Parts:
    """Swin V1 and V2: patch embedding; four groups, each with the merging before it; the last with norm and pooling."""
    embedding, group1, merge2, group2, merge3, group3, merge4, group4 = model.features
    top = chain(merge4, group4, model.norm, model.permute, model.avgpool, model.flatten)
    stages = (embedding, group1, chain(merge2, group2), chain(merge3, group3), top)
    return Parts(stages, "NHWC", linear_or_none(model.head))


class _Embedding(nn.Module):
    """Images (N, 3, H, W) → tokens (N, 1 + H/p · W/p, C), the class token first."""

    def __init__(self, vit: Any) -> None:
        super().__init__()
        self.conv_proj = vit.conv_proj
        self.class_token = vit.class_token
        self.pos_embedding = vit.encoder.pos_embedding
        self.dropout = vit.encoder.dropout

    def forward(self, images: Tensor) -> Tensor:
        patches: Tensor = self.conv_proj(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(patches), -1, -1), patches], dim=1)
        embedded: Tensor = self.dropout(tokens + self.pos_embedding)
        return embedded


class _ClassToken(nn.Module):
    """Tokens (N, L, C) → the first of them, (N, C)."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0]


SPLIT: dict[str, Callable[[nn.Module], Parts]] = {
    "ResNet": split_resnet,
    "ResNeXt": split_resnet,
    "Wide ResNet": split_resnet,
    "VGG": split_vgg,
    "DenseNet": split_densenet,
    "MobileNetV2": split_mobilenet,
    "MobileNetV3": split_mobilenet,
    "EfficientNet": split_efficientnet,
    "EfficientNetV2": split_efficientnet,
    "ConvNeXt": split_convnext,
    "RegNet": split_regnet,
    "ViT": split_vit,
    "Swin": split_swin,
}
