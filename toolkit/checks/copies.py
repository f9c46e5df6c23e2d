"""Twin: two images that show the same picture, byte by byte, or once one is laid over the other."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from toolkit.checks.alignment import align
from toolkit.checks.candidates import Candidates, Pairs, unique_pairs
from toolkit.progress import say

ALIGNED_AT_ONCE = 128  # pairs
MOST_PAIRS = 10_000  # of a kind that are laid over each other; a pair takes 1 to 5 ms of a core
# Of the difference to what is alike and no copy. Of 10,000 garments 159 pairs that are two garments pass for copies
# without it, and 7 with it, of 1,797 digits 8 and 2; of 370 copies that were planted in flowers and stamps (JPEG, half
# the size, 5 and 10 % cut off, mirrored, brightened) and found without it, it loses one.
OF_THE_REST = 0.5


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


def near_twins(candidates: Sequence[Candidates], pictures: Callable[[NDArray[np.int64]], Tensor]) -> list[Twin]:
    """Return those pairs that are the same picture.

    Where many are alike (trousers on black, of 28 px), no limit of its own tells copies from others: so a copy must
    also differ half as much as whatever is alike and no copy, of it or of its copies. pictures: gives uint8 (n, 3, 64,
    64) of some rows. Of more than 10,000 candidates of a kind the most alike are looked at.
    """
    n_most = max((len(one) for one in candidates), default=0)
    if n_most > MOST_PAIRS:
        say(f"note: {n_most} pairs of images are much alike; the {MOST_PAIRS} most alike ones are looked at")
    pairs = unique_pairs([one.pairs[:MOST_PAIRS] for one in candidates])
    found = _aligned(pairs, pictures)
    copies = [place for place, one in enumerate(found) if one.is_copy]
    left = _touching(unique_pairs([one.pairs for one in candidates]), pairs, np.unique(pairs[copies]))
    groups = _groups(pairs[copies])  # what is a copy of a copy is not what it has to stand out from
    rest = dict.fromkeys(groups, 1.0)  # how much what is alike, and no copy, differs
    for (first, second), one in zip([*pairs, *left], [*found, *_aligned(left, pictures)], strict=True):
        if groups.get(first, first) != groups.get(second, second):
            for row in (first, second):
                if row in rest:
                    rest[row] = min(rest[row], one.difference)
    twins = []
    for place in copies:
        first, second = pairs[place].tolist()
        if found[place].difference <= OF_THE_REST * min(rest[first], rest[second]):
            twins.append(Twin(first, second, False, found[place].how, found[place].likeness))
    return twins


def _groups(copies: Pairs) -> dict[int, int]:
    """Return for every row of some pairs the smallest row that it hangs together with."""
    group: dict[int, int] = {}

    def root(row: int) -> int:
        while group.setdefault(row, row) != row:
            row = group[row]
        return row

    for first, second in copies.tolist():
        low, high = sorted((root(first), root(second)))
        group[high] = low
    return {row: root(row) for row in group}


@dataclass(frozen=True)
class _Pair:
    is_copy: bool
    difference: float
    likeness: float
    how: str


def _aligned(pairs: Pairs, pictures: Callable[[NDArray[np.int64]], Tensor]) -> list[_Pair]:
    """Return how well the pictures of each pair lie over each other."""
    each = []
    for start in range(0, len(pairs), ALIGNED_AT_ONCE):
        some = pairs[start : start + ALIGNED_AT_ONCE]
        found = align(pictures(some[:, 0]), pictures(some[:, 1]))
        columns = (found.is_copy(), found.difference, found.likeness, found.mirrored, found.window)
        for is_copy, difference, likeness, mirrored, window in zip(*(c.tolist() for c in columns), strict=True):
            each.append(_Pair(is_copy, difference, likeness, _in_words(mirrored, window)))
    return each


def _touching(pairs: Pairs, without: Pairs, rows: NDArray[np.int64]) -> Pairs:
    """Return those pairs that have one of some rows, without others."""
    touching = pairs[np.isin(pairs, rows).any(axis=1)]
    known = {tuple(pair) for pair in without.tolist()}
    return touching[[tuple(pair) not in known for pair in touching.tolist()]]


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
