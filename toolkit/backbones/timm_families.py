"""How each timm family is cut into stages; one function a family, its rule in its docstring.

As with torchvision's: the network's own modules and parameters, nothing copied, the last stage gives the vector
that the last Linear takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from toolkit.backbones.parts import Parts, chain, linear_or_none, quarters


def split_resnet(model: Any) -> Parts:
    """resnet.py: stem with its pooling; layer1; layer2; layer3; layer4 with pooling."""
    stem = chain(model.conv1, model.bn1, model.act1, model.maxpool)
    top = chain(model.layer4, model.global_pool, _dropout(model.drop_rate))
    return Parts((stem, model.layer1, model.layer2, model.layer3, top), "NCHW", linear_or_none(model.fc))


def split_efficientnet(model: Any) -> Parts:
    """efficientnet.py: stem with the first group of blocks; each further group; last convolution with pooling."""
    first, *others = model.blocks
    stem = chain(model.conv_stem, model.bn1, first)
    top = chain(model.conv_head, model.bn2, model.global_pool, _dropout(model.drop_rate))
    return Parts((stem, *others, top), "NCHW", linear_or_none(model.classifier))


def split_mobilenetv3(model: Any) -> Parts:
    """mobilenetv3.py: stem with the first group of blocks; each further group; pooling and the convolution after it."""
    first, *others = model.blocks
    stem = chain(model.conv_stem, model.bn1, first)
    top = chain(
        model.global_pool, model.conv_head, model.norm_head, model.act2, model.flatten, _dropout(model.drop_rate)
    )
    return Parts((stem, *others, top), "NCHW", linear_or_none(model.classifier))


def split_convnext(model: Any) -> Parts:
    """convnext.py: stem; its four stages (downsampling first in each), the last one with its norm and pooling."""
    *middle, last_group = model.stages
    head = model.head
    if hasattr(head, "norm"):  # pool, then norm: the published order; the other head norms first, in norm_pre
        closing = [head.global_pool, head.norm, head.flatten, head.pre_logits, head.drop]
    else:
        closing = [head.global_pool, head.drop]
    top = chain(last_group, model.norm_pre, *closing)
    return Parts((model.stem, *middle, top), "NCHW", linear_or_none(head.fc))


def split_vit(model: Any) -> Parts:
    """vision_transformer.py: embedding; quarters of its blocks; norm and the pooling of tokens that its head uses."""
    stages = (_Embedding(model), *quarters(list(model.blocks)), _Readout(model))
    return Parts(stages, "NLC", linear_or_none(model.head))


class _Embedding(nn.Module):
    """Images (N, 3, H, W) → tokens (N, L, C) with position embeddings, class and register tokens first."""

    def __init__(self, vit: Any) -> None:
        super().__init__()
        # the names are timm's, since its own function below reads them
        self.patch_embed = vit.patch_embed
        self.cls_token = vit.cls_token
        self.reg_token = vit.reg_token
        self.pos_embed = vit.pos_embed
        self.pos_drop = vit.pos_drop
        self.patch_drop = vit.patch_drop
        self.norm_pre = vit.norm_pre
        self.dynamic_img_size = vit.dynamic_img_size
        self.no_embed_class = vit.no_embed_class
        self.num_prefix_tokens = vit.num_prefix_tokens
        self._add_positions: Callable[[Any, Tensor], Tensor] = type(vit)._pos_embed

    def forward(self, images: Tensor) -> Tensor:
        tokens = self._add_positions(self, self.patch_embed(images))
        embedded: Tensor = self.norm_pre(self.patch_drop(tokens))
        return embedded


class _Readout(nn.Module):
    """Tokens (N, L, C) → (N, D): norm, token choice, mean or attention pooling, norm."""

    def __init__(self, vit: Any) -> None:
        super().__init__()
        self.norm = vit.norm
        self.attn_pool = vit.attn_pool
        self.fc_norm = vit.fc_norm
        self.head_drop = vit.head_drop
        self.global_pool = vit.global_pool
        self.num_prefix_tokens = vit.num_prefix_tokens
        self.pool_include_prefix = vit.pool_include_prefix
        self._pool: Callable[[Any, Tensor], Tensor] = type(vit).pool

    def forward(self, tokens: Tensor) -> Tensor:
        features: Tensor = self.head_drop(self.fc_norm(self._pool(self, self.norm(tokens))))
        return features


def _dropout(rate: float) -> nn.Module:
    """Return the dropout that these networks apply as a function before their Linear."""
    return nn.Dropout(rate) if rate else nn.Identity()


SPLIT: dict[str, Callable[[nn.Module], Parts]] = {
    "resnet": split_resnet,
    "efficientnet": split_efficientnet,
    "mobilenetv3": split_mobilenetv3,
    "convnext": split_convnext,
    "vision_transformer": split_vit,
}
