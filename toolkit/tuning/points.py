"""Where to look: random points, a grid, and the region of the best; each a pure function of seed and number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from toolkit.tuning.space import Choice, Part, Point

BEST_SHARE, BEST_AT_LEAST = 0.25, 3  # of the coarse trials: their bounding box is what the fine stage searches
MARGIN = 0.05  # of the whole axis, on each side of the box
OF_GRID = 1_000_003  # the stream of random numbers that moves a grid; trials have their own numbers


def random_point(n_parts: int, seed: int, number: int) -> Point:
    """Return the point of trial `number`, whatever was drawn before it."""
    return np.random.default_rng([seed, number]).random(n_parts)


@dataclass(frozen=True)
class Region:
    """A box within a space: for a Number the ends (shares of its axis), for a Choice the values that are left.

    Both as pieces of the axis, each (low, high): one for a number, one for every value.
    """

    pieces: tuple[tuple[tuple[float, float], ...], ...]

    def at(self, point: Point) -> Point:
        """Return where a point of the unit cube lies when the cube is laid over this box."""
        placed = []
        for share, pieces in zip(point, self.pieces, strict=True):
            piece = min(int(share * len(pieces)), len(pieces) - 1)
            low, high = pieces[piece]
            placed.append(low + (high - low) * (share * len(pieces) - piece))
        return np.array(placed)


def best_region(space: Sequence[Part], points: Sequence[Point], values: Sequence[float]) -> Region | None:
    """Return the box around the best quarter of some points (three at least), a little wider; None without points.

    values: larger is better; of equals the earlier one counts. What hardly matters stays wide, for good points lie
    anywhere on its axis; what matters becomes narrow. notes: Hyperparameter Optimization ("narrow the range by the
    result").
    """
    if not points:
        return None
    count = max(BEST_AT_LEAST, math.ceil(BEST_SHARE * len(points)))
    order = sorted(range(len(points)), key=lambda i: (-values[i], i))[:count]
    best = np.array([points[i] for i in order])
    pieces = []
    for part, shares in zip(space, best.T, strict=True):
        if isinstance(part, Choice):
            n = len(part.values)
            kept = sorted({min(int(share * n), n - 1) for share in shares})
            pieces.append(tuple((place / n, (place + 1) / n) for place in kept))
        else:
            pieces.append(((max(0.0, float(shares.min()) - MARGIN), min(1.0, float(shares.max()) + MARGIN)),))
    return Region(tuple(pieces))


def grid_levels(space: Sequence[Part], n_points: int) -> tuple[int, ...]:
    """Return how many levels each part has in the largest even grid of at most so many points.

    The parts get a level more in turn, those named first before the others, as long as the product allows it; a choice
    has no more levels than values.
    """
    levels = [1] * len(space)
    while True:
        for place in sorted(range(len(space)), key=lambda i: (levels[i], i)):
            part = space[place]
            more = [*levels[:place], levels[place] + 1, *levels[place + 1 :]]
            if math.prod(more) <= n_points and not (isinstance(part, Choice) and more[place] > len(part.values)):
                levels = more
                break
        else:
            return tuple(levels)


def grid_point(space: Sequence[Part], levels: Sequence[int], seed: int, index: int) -> Point:
    """Return point `index` of the grid, the first part changing fastest.

    The grid stands anywhere, as a person's does: moved as a whole, by up to one of its steps, by the seed. Levels of a
    choice are its first values.
    """
    moved = np.random.default_rng([seed, OF_GRID]).random(len(space))
    point = np.empty(len(space))
    for place, (part, n) in enumerate(zip(space, levels, strict=True)):
        index, level = divmod(index, n)
        if isinstance(part, Choice):
            point[place] = part.share(part.values[level] if n > 1 else part.default)
        else:
            point[place] = (level + moved[place]) / n
    return point
