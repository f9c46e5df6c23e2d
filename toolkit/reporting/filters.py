"""What the first layer looks for: its filters as small pictures.

notes: Transfer Learning: early filters are edges and colours, later ones abstract.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from toolkit.evaluation.sheet import sheet_png

MOST = 64  # filters that are shown
COLUMNS, CELL_PX = 8, 72


def first_filters(stages: nn.Module) -> Tensor | None:
    """Return the weights (K, 3, h, w) of the first convolution that sees three channels: the pixels' colours.

    A ViT's is the embedding of its patches. None where there is none.
    """
    for module in stages.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 3 and module.groups == 1:
            return module.weight.detach().float().cpu()
    return None


def unit_templates(weight: Tensor, channels: int) -> Tensor | None:
    """Return the weights (K, D) of a layer on D square pixels as pictures (K, channels, S, S); None for other D."""
    side = math.isqrt(weight.shape[1] // channels)
    if channels * side * side != weight.shape[1]:
        return None
    return weight.detach().float().cpu().reshape(len(weight), channels, side, side)


def draw_filters(filters: Tensor, names: list[str] | None = None) -> bytes:
    """Return a sheet of filters (K, 1 or 3, h, w) as PNG: those with the largest weights, in their order.

    names: of all of them, if they have any.
    """
    norms = filters.flatten(1).norm(dim=1)
    kept = sorted(torch.topk(norms, min(MOST, len(filters))).indices.tolist())
    pictures = [(names[k] if names else "", as_picture(filters[k])) for k in kept]
    some = f"{len(kept)} of {len(filters)}" if len(kept) < len(filters) else f"{len(filters)}"
    height, width = filters.shape[2:]
    title = f"First layer: {some} filters of {height} × {width} pixels; grey is 0, each by its largest weight"
    return sheet_png(pictures, COLUMNS, title=title, cell_px=CELL_PX, lines=1 if names else 0)


def as_picture(weights: Tensor) -> Tensor:
    """Return uint8 (3, h, w) of a filter (1 or 3, h, w): zero is grey, its largest weight black or white."""
    largest = weights.abs().max().clamp_min(1e-12)
    grey = 127.5 + 127.5 * torch.nan_to_num(weights / largest)
    return grey.round().clamp(0, 255).to(torch.uint8).expand(3, -1, -1)
