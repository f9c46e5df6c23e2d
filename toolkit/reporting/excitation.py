"""What each stage responds to: the images that excite a few of its channels most.

notes: Transfer Learning: early filters are edges and colours, later ones abstract. Zeiler & Fergus 2014, "Visualizing
and Understanding Convolutional Networks", show the same patch by patch; here it is the mean over the image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toolkit.evaluation.sheet import sheet_png

CHANNELS, IMAGES = 3, 4  # of a stage; of a channel
CELL_PX = 80
WIDER = 30


@dataclass(frozen=True)
class Excited:
    """A channel of a stage, and the images that excite it most, the first most of all: positions."""

    stage: int
    channel: int
    images: tuple[int, ...]


def most_excited(stage: int, pooled: NDArray[np.float32]) -> list[Excited]:
    """Return the channels of a stage that single images out most, by its pooled activations, float32 (N, C).

    A channel is measured by how far the mean of its most exciting thirtieth of the images (those that are shown, at
    least) is above the mean of all, in standard deviations: a channel that one odd image excites says nothing. Channels
    that the same image excites most are told by one of them.
    """
    if not len(pooled) or not np.isfinite(pooled).all():
        return []
    order = np.argsort(-pooled, axis=0, kind="stable")
    top, wider = order[:IMAGES], order[: max(1, min(IMAGES, len(pooled) // 2), len(pooled) // WIDER)]
    highest = np.take_along_axis(pooled, wider, axis=0).mean(0, dtype=np.float64)
    spread = pooled.std(0, dtype=np.float64)
    apart = (highest - pooled.mean(0, dtype=np.float64)) / np.where(spread > 0, spread, np.inf)
    found: list[Excited] = []
    for channel in np.argsort(-apart, kind="stable").tolist():
        if apart[channel] > 0 and all(top[0, channel] != one.images[0] for one in found):
            found.append(Excited(stage, channel, tuple(top[:, channel].tolist())))
        if len(found) == CHANNELS:
            break
    return found


def draw_excitation(found: Sequence[Excited], picture: Callable[[int], Tensor], title: str) -> bytes:
    """Return a sheet as PNG: a row a stage, the images of a channel side by side.

    picture: uint8 (3, H, W) of the image at a position.
    """
    stages = list(dict.fromkeys(one.stage for one in found))
    nothing = torch.full((3, 1, 1), 255, dtype=torch.uint8)
    cells: list[tuple[str, Tensor]] = []
    for stage in stages:
        row: list[tuple[str, Tensor]] = []
        for one in (one for one in found if one.stage == stage):
            shown = [picture(position) for position in one.images]
            told = [f"stage {stage}, channel {one.channel}", *[""] * (IMAGES - 1)]
            row += list(zip(told, [*shown, *[nothing] * (IMAGES - len(shown))], strict=True))
        cells += [*row, *[("", nothing)] * (CHANNELS * IMAGES - len(row))]
    return sheet_png(cells, CHANNELS * IMAGES, title=title, cell_px=CELL_PX, lines=1, cells_a_caption=IMAGES)
