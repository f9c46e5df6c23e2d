"""Twin: two images that show the same picture, byte by byte, or once one is laid over the other."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toolkit.checks.alignment import align
from toolkit.checks.candidates import Pairs

ALIGNED_AT_ONCE = 128  # pairs


@dataclass(frozen=True)
class Twin:
    """Two rows of a Manifest with the same picture. exact: byte by byte. how: what was done to one, in words."""

    first: int
    second: int
    exact: bool
    how: str
    likeness: float = 1.0


def exact_twins(digests: NDArray[np.uint8], rows: Sequence[int]) -> list[Twin]:
    """Return every row whose content another row before it has, with the first such row.

    digests: uint8 (N, 16), of the contents. rows: N rows of the Manifest.
    """
    first: dict[bytes, int] = {}
    twins = []
    for row, digest in zip(rows, digests, strict=True):
        other = first.setdefault(digest.tobytes(), row)
        if other != row:
            twins.append(Twin(other, row, True, "the same file"))
    return twins


def near_twins(pairs: Pairs, pictures: Callable[[NDArray[np.int64]], Tensor]) -> list[Twin]:
    """Return those pairs that are the same picture.

    pairs: int64 (M, 2), candidates. pictures: gives uint8 (n, 3, 64, 64) of some rows.
    """
    twins = []
    for start in range(0, len(pairs), ALIGNED_AT_ONCE):
        some = pairs[start : start + ALIGNED_AT_ONCE]
        found = align(pictures(some[:, 0]), pictures(some[:, 1]))
        for place in torch.nonzero(found.is_copy()).flatten().tolist():
            first, second = some[place].tolist()
            how = _in_words(bool(found.mirrored[place]), float(found.window[place]))
            twins.append(Twin(first, second, False, how, float(found.likeness[place])))
    return twins


def with_copies(near: Sequence[Twin], exact: Sequence[Twin], kinds: Sequence[Hashable]) -> list[Twin]:
    """Return near twins, and those that their exact copies make, one for each pair of kinds.

    near: between rows of which each stands for all of its content. kinds: of every row, such as label and split.
    """
    members: dict[int, list[int]] = {}
    for twin in exact:
        members.setdefault(twin.first, [twin.first]).append(twin.second)
    found = []
    for twin in near:
        seen = set()
        for first in members.get(twin.first, [twin.first]):
            for second in members.get(twin.second, [twin.second]):
                pair = kinds[first], kinds[second]
                if pair not in seen:
                    seen.add(pair)
                    found.append(replace(twin, first=first, second=second))
    return found


def _in_words(mirrored: bool, window: float) -> str:
    cropped = f"cropped to {window:.0%} of its side" if window < 0.985 else "saved again"
    return f"mirrored, {cropped}" if mirrored else cropped
