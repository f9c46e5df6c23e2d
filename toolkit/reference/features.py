"""Features made by hand, as before networks learnt them: where edges point, which colours there are.

Images are uint8 (N, C, H, W), C = 3 (RGB) or 1 (grey); features are float32 (N, D), the same for an image whatever
stands beside it in the batch. Images are worked on in blocks of about BLOCK_PIXELS pixels, some hundred bytes each.
What does not fit raises ValueError. Source of all: notes: Challenges, features of an image as a library.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BLOCK_PIXELS = 2**18
CLIP = 0.2  # of a normalised block, so that one strong edge does not drown the others (Dalal & Triggs 2005)


def oriented_gradients(images: Tensor, cell_px: int = 8, bins: int = 9, block_cells: int = 2) -> Tensor:
    """Return histograms of oriented gradients (HOG): D = bins · block_cells² · blocks down · blocks across.

    The gradient (right − left, below − above; the border pixel is repeated) of the channel in which it is longest adds
    its length to the two nearest of `bins` directions of 0 … 180°, by nearness, of its cell of cell_px × cell_px
    pixels. Each block of block_cells × block_cells neighbouring cells, one for every cell it can start at, is divided
    by its length, cut at 0.2 and divided by its length again. A block without an edge is 0. Pixels right and below
    that fill no cell are left out. Raises ValueError for settings < 1 and images smaller than a block.
    Source: Dalal & Triggs 2005.

    >>> oriented_gradients(torch.zeros(2, 3, 32, 24, dtype=torch.uint8)).shape  # 3 × 2 blocks of 4 cells of 9 bins
    torch.Size([2, 216])
    """
    _check_images(images)
    for name, value in (("cell_px", cell_px), ("bins", bins), ("block_cells", block_cells)):
        if value < 1:
            raise ValueError(f"expected {name} ≥ 1, got {value}")
    least = cell_px * block_cells
    if min(images.shape[2:]) < least:
        raise ValueError(f"expected images of at least {least} × {least} pixels, got shape {tuple(images.shape)}")
    blocks = [_blocks(_cells(some, cell_px, bins), block_cells) for some in _in_parts(images)]
    return torch.cat(blocks)


def colour_histogram(images: Tensor, bins: int = 8, space: str = "hue") -> Tensor:
    """Return how often each colour occurs.

    space "hue" (RGB images): D = bins, the hue circle in equal parts, each pixel counting by its saturation
    (max − min) / max, since a grey one has no hue; divided by the number of pixels. space "rgb": D = C · bins, for each
    channel the shares of the pixels in `bins` equal parts of 0 … 255; of grey images, those of their brightness.
    Raises ValueError for bins outside 1 … 256, another space, and the hue of grey images.

    >>> red = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    >>> red[:, 0] = 200
    >>> colour_histogram(red, bins=3).tolist(), colour_histogram(red, bins=2, space="rgb").tolist()
    ([[1.0, 0.0, 0.0]], [[0.0, 1.0, 1.0, 0.0, 1.0, 0.0]])
    """
    _check_images(images)
    if not 1 <= bins <= 256:
        raise ValueError(f"expected 1 ≤ bins ≤ 256, got {bins}")
    if space not in ("hue", "rgb"):
        raise ValueError(f"expected space to be 'hue' or 'rgb', got {space!r}")
    if space == "hue" and images.shape[1] == 1:
        raise ValueError("expected RGB images for space 'hue', got grey ones; 'rgb' counts their brightness")
    histogram = _hue_histogram if space == "hue" else _channel_histogram
    return torch.cat([histogram(some, bins) for some in _in_parts(images)])


def hand_made_features(images: Tensor, cell_px: int = 8) -> Tensor:
    """Return HOG and colours side by side: D = that of `oriented_gradients` + 8 (hue; of grey images, brightness).

    >>> hand_made_features(torch.zeros(2, 1, 28, 28, dtype=torch.uint8), cell_px=7).shape
    torch.Size([2, 332])
    """
    _check_images(images)
    space = "rgb" if images.shape[1] == 1 else "hue"
    return torch.cat([oriented_gradients(images, cell_px), colour_histogram(images, space=space)], dim=1)


def _cells(images: Tensor, cell_px: int, bins: int) -> Tensor:
    """Return the histograms of all cells, float32 (N, rows, columns, bins)."""
    pixels = images.float()
    down = torch.cat([pixels[:, :, 1:], pixels[:, :, -1:]], 2) - torch.cat([pixels[:, :, :1], pixels[:, :, :-1]], 2)
    across = torch.cat([pixels[..., 1:], pixels[..., -1:]], 3) - torch.cat([pixels[..., :1], pixels[..., :-1]], 3)
    longest = (down**2 + across**2).argmax(1, keepdim=True)
    down, across = down.gather(1, longest).squeeze(1), across.gather(1, longest).squeeze(1)
    length = torch.hypot(down, across)
    # Bins are centred on 0, 180°/bins, …; the last one's neighbour is the first, for 180° is 0° again.
    place = torch.remainder(torch.atan2(down, across), math.pi) * (bins / math.pi)
    lower = place.floor()
    share = place - lower
    first = lower.long() % bins
    n, height, width = length.shape
    rows, columns = height // cell_px, width // cell_px
    # One scatter for all cells: the index of a pixel's cell, times bins, plus its bin.
    cell_row = torch.arange(rows).repeat_interleave(cell_px)
    cell_column = torch.arange(columns).repeat_interleave(cell_px)
    cell = (cell_row[:, None] * columns + cell_column) * bins
    inside = (slice(None), slice(rows * cell_px), slice(columns * cell_px))
    histograms = torch.zeros(n, rows * columns * bins)
    for chosen, weight in ((first, 1 - share), ((first + 1) % bins, share)):
        index = (cell + chosen[inside]).flatten(1)
        histograms.scatter_add_(1, index, (length * weight)[inside].flatten(1))
    return histograms.reshape(n, rows, columns, bins)


def _blocks(cells: Tensor, block_cells: int) -> Tensor:
    """Return the normalised blocks of cells (N, rows, columns, bins), flat: (N, D)."""
    blocks = cells.unfold(1, block_cells, 1).unfold(2, block_cells, 1).flatten(3)
    blocks = _unit(_unit(blocks).clamp(max=CLIP))
    return blocks.flatten(1)


def _unit(blocks: Tensor) -> Tensor:
    length = (blocks**2).sum(-1, keepdim=True).sqrt()
    return blocks / torch.where(length > 0, length, 1.0)


def _hue_histogram(images: Tensor, bins: int) -> Tensor:
    red, green, blue = images.float().unbind(1)
    largest = torch.maximum(torch.maximum(red, green), blue)
    chroma = largest - torch.minimum(torch.minimum(red, green), blue)
    divisor = torch.where(chroma > 0, chroma, 1.0)
    sixths = torch.where(
        largest == red,
        (green - blue) / divisor,
        torch.where(largest == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    hue = torch.remainder(sixths / 6, 1.0)  # 0 red, 1/3 green, 2/3 blue
    saturation = chroma / torch.where(largest > 0, largest, 1.0)
    index = (hue * bins).long().clamp(max=bins - 1).flatten(1)
    counts = torch.zeros(len(images), bins).scatter_add_(1, index, saturation.flatten(1))
    return counts / index.shape[1]


def _channel_histogram(images: Tensor, bins: int) -> Tensor:
    n, channels, height, width = images.shape
    index = (images.flatten(2).long() * bins) // 256 + bins * torch.arange(channels)[:, None]
    ones = torch.ones(1, 1).expand(n, channels * height * width)
    counts = torch.zeros(n, channels * bins).scatter_add_(1, index.flatten(1), ones)
    return counts / (height * width)


def _in_parts(images: Tensor) -> tuple[Tensor, ...]:
    """Return the images in blocks of about BLOCK_PIXELS pixels, one image at least."""
    return torch.split(images, max(1, BLOCK_PIXELS // (images.shape[2] * images.shape[3])))


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or min(images.shape[2:]) < 1:
        raise ValueError(f"expected uint8 (N, 3 or 1, H, W), got {images.dtype} of shape {tuple(images.shape)}")
