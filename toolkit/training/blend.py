"""Mixup and CutMix, of images or of what a frozen prefix made of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from toolkit.backbones.backbone import Layout
from toolkit.errors import SettingError
from toolkit.features.prefix import Activations

HEIGHT_AND_WIDTH = {"NCHW": (2, 3), "NHWC": (1, 2)}
NO_MAP = "cutmix: nothing to cut from: what the first trained stage gets is no map; take mixup"


class Blend(NamedTuple):
    """A batch of which every image has a part of another one.

    partners: int64 (N,), whose part. kept: in [0, 1], the share of an image that is its own, and of its label.
    """

    inputs: Tensor | Activations
    partners: Tensor
    kept: float


def blend(inputs: Tensor | Activations, layout: Layout, *, mixup: float, cutmix: float) -> Blend:
    """Return a Blend of float images (N, 3, H, W), or of Activations; with both α above 0 either, by a coin.

    Mixup (Zhang et al. 2018) adds λ of an image and 1 − λ of its partner, λ from Beta(α, α), one for the batch; of
    activations it is manifold mixup (Verma et al. 2019) at the cut. CutMix (Yun et al. 2019) gives every image the
    same rectangle of its partner, 1 − λ of the area before it meets the border; kept is what is left. Features pooled
    over positions are blended by that share. Draws from torch's global generator on the CPU.
    Raises SettingError where CutMix finds no map to cut from.
    """
    parts = inputs if isinstance(inputs, Activations) else Activations(inputs, ())
    tensors = [*parts.pooled] if parts.at_cut is None else [parts.at_cut, *parts.pooled]
    partners = torch.randperm(len(tensors[0]))
    cuts = cutmix > 0 and (mixup == 0 or bool(torch.rand(()) < 0.5))
    alpha = cutmix if cuts else mixup
    kept = float(torch.distributions.Beta(alpha, alpha).sample())
    at_cut = parts.at_cut
    if cuts:
        axes = HEIGHT_AND_WIDTH.get("NCHW" if isinstance(inputs, Tensor) else layout)
        if at_cut is None or at_cut.ndim != 4 or axes is None:
            raise SettingError(NO_MAP)
        at_cut, kept = _pasted(at_cut, partners.to(at_cut.device), axes, kept)
    elif at_cut is not None:
        at_cut = _mixed(at_cut, partners, kept)
    if isinstance(inputs, Tensor):
        assert at_cut is not None
        return Blend(at_cut, partners, kept)
    pooled = tuple(_mixed(tensor, partners, kept) for tensor in parts.pooled)
    return Blend(Activations(at_cut, pooled), partners, kept)


def taken(inputs: Tensor | Activations, part: slice | Tensor) -> Tensor | Activations:
    """Return some of a batch's images, or of the Activations of them."""
    if isinstance(inputs, Tensor):
        return inputs[part]
    at_cut = None if inputs.at_cut is None else inputs.at_cut[part]
    return Activations(at_cut, tuple(pooled[part] for pooled in inputs.pooled))


def _mixed(values: Tensor, partners: Tensor, kept: float) -> Tensor:
    values = values.float()  # stored in half precision or not, it is blended in single
    return torch.lerp(values[partners.to(values.device)], values, kept)


def _pasted(values: Tensor, partners: Tensor, axes: tuple[int, int], kept: float) -> tuple[Tensor, float]:
    """Return a map with a rectangle of the partners', and the share of the area that is an image's own."""
    result, theirs = values.float().clone(), values[partners].float()
    into, share = result, 1.0
    for axis, draw in zip(axes, torch.rand(2).tolist(), strict=True):
        size = values.shape[axis]
        side, middle = size * (1 - kept) ** 0.5, draw * size
        low, high = max(0, round(middle - side / 2)), min(size, round(middle + side / 2))
        into, theirs = into.narrow(axis, low, high - low), theirs.narrow(axis, low, high - low)
        share *= (high - low) / size
    into.copy_(theirs)
    return result, 1 - share
