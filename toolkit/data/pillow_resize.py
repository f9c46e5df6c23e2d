"""Pillow's resizing of 8-bit images on any device: the same values, to the bit.

Pillow (13) resamples in two passes, first along the rows unless the height shrinks by more than twice as many pixels as
the width, with weights in fixed point of 22 bits, and cuts values to 0..255 after each (`Resample.c`). Resampling in
floats is up to 11 of 255 away, where a picture is bright or dark. Here a pass is two products of matrices of whole
numbers that float32 holds exactly.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toolkit.hardware import true_float32

BITS = 22  # of a weight's fraction
HALF_BITS = 11  # a weight is split there, so that sums of products stay below 2^24
MOST_WEIGHTS = 32  # of one value: 32 · 2^11 · 255 < 2^24
SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}


def resized(image: Tensor, size: tuple[int, int], box: tuple[int, int, int, int], interpolation: str) -> Tensor:
    """Return what Pillow's `resize(size).crop(box)` gives: uint8 (3, bottom − top, right − left).

    image: uint8 (3, H, W). size: width and height. box: left, top, right, bottom, of the resized image. interpolation:
    of SUPPORT. Raises ValueError where a value would be made of more than 32 of the image.
    """
    (width, height), (left, top, right, bottom) = size, box
    across = _weights(image.shape[2], width, left, right, interpolation, image.device)
    down = _weights(image.shape[1], height, top, bottom, interpolation, image.device)
    fewer_rows, fewer_columns = image.shape[1] - height, image.shape[2] - width
    with torch.no_grad(), true_float32():
        if fewer_rows > 0 and fewer_rows > 2 * fewer_columns:
            return _applied(_applied(image.transpose(1, 2), down).transpose(1, 2), across)
        return _applied(_applied(image, across).transpose(1, 2), down).transpose(1, 2)


def _applied(lines: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
    """Return uint8 (3, L, n) for uint8 (3, L, m) and the halves of weights (m, n)."""
    high, low = ((lines.float() @ half).to(torch.int32) for half in weights)
    total = (high << HALF_BITS) + low + (1 << (BITS - 1))
    return (total >> BITS).clamp_(0, 255).to(torch.uint8)


@functools.lru_cache(maxsize=64)  # about a megabyte each
def _weights(
    length: int, new_length: int, start: int, stop: int, interpolation: str, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the weights of values `start` to `stop` of a line that is resized, float32 (length, stop − start) each:
    their upper bits and their lower ones."""
    whole = fixed_weights(length, new_length, interpolation)[start:stop]
    halves = whole >> HALF_BITS, whole & ((1 << HALF_BITS) - 1)
    high, low = (torch.from_numpy(half.T.astype(np.float32)).to(device) for half in halves)
    return high, low


def fixed_weights(length: int, new_length: int, interpolation: str) -> NDArray[np.int64]:
    """Return how much each of `length` values counts for each of `new_length`, in 2^−22: int64 (new_length, length)."""
    if length == new_length:  # Pillow leaves such lines as they are
        return np.eye(length, dtype=np.int64) << BITS
    scale = length / new_length
    stretch = max(scale, 1.0)
    support = SUPPORT[interpolation] * stretch
    if 2 * int(np.ceil(support)) + 1 > MOST_WEIGHTS:
        raise ValueError(f"from {length} to {new_length} is more than can be held exactly")
    middle = (np.arange(new_length) + 0.5) * scale
    first = np.maximum((middle - support + 0.5).astype(np.int64), 0)
    last = np.minimum((middle + support + 0.5).astype(np.int64), length)
    place = np.arange(length)
    reach = (place >= first[:, None]) & (place < last[:, None])
    weights = np.where(reach, _FILTERS[interpolation]((place - middle[:, None] + 0.5) / stretch), 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    rounded: NDArray[np.int64] = np.trunc(weights * (1 << BITS) + np.copysign(0.5, weights)).astype(np.int64)
    return rounded


def _bilinear(x: NDArray[np.float64]) -> NDArray[np.float64]:
    height: NDArray[np.float64] = np.maximum(1 - np.abs(x), 0)
    return height


def _bicubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys's cubic convolution with a = −1/2."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x**2 + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


_FILTERS = {"bilinear": _bilinear, "bicubic": _bicubic}
