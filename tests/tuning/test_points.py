"""Where a search looks: by seed and number alone, on an even grid, and around the best."""

from __future__ import annotations

import math

import numpy as np
import pytest

from toolkit.tuning.points import MARGIN, Region, best_region, grid_levels, grid_point, random_point
from toolkit.tuning.space import Choice, Number, settings_at

SPACE = (
    Number("lr", 1e-5, 1e-1, 1e-3),
    Number("l2", 1e-7, 1e-1, 0.0),
    Choice("kind", ("a", "b", "c", "d"), "a"),
)


def test_a_random_point_is_its_seed_s_and_number_s() -> None:
    assert (random_point(3, 5, 7) == random_point(3, 5, 7)).all()
    others = [random_point(3, 5, 8), random_point(3, 6, 7)]
    assert not any((random_point(3, 5, 7) == other).any() for other in others)
    points = np.array([random_point(2, 0, number) for number in range(2000)])
    assert points.mean(0) == pytest.approx(0.5, abs=0.03) and points.std(0) == pytest.approx(12**-0.5, abs=0.02)


def test_the_region_is_the_box_around_the_best_quarter() -> None:
    points = [np.array([share, 0.5, 0.125 + 0.25 * (i % 4)]) for i, share in enumerate(np.linspace(0, 1, 16))]
    values = [-abs(point[0] - 0.41) for point in points]  # best: 6, 7, 5, 8 of 15
    region = best_region(SPACE, points, values)
    assert region is not None
    assert region.pieces[0] == (pytest.approx((5 / 15 - MARGIN, 8 / 15 + MARGIN)),)
    assert region.pieces[1] == (pytest.approx((0.5 - MARGIN, 0.5 + MARGIN)),)
    assert region.pieces[2] == ((0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))
    few = best_region(SPACE, points[:4], values[:4])
    assert few is not None and few.pieces[2] == ((0.25, 0.5), (0.5, 0.75), (0.75, 1.0)), "three at least"
    assert best_region(SPACE, [], []) is None


def test_a_region_stays_within_the_space_and_what_was_left_out_is_not_drawn() -> None:
    region = best_region(SPACE, [np.array([0.0, 1.0, 0.3]), np.array([0.02, 0.99, 0.9])], [1.0, 2.0])
    assert region is not None
    placed = np.array([region.at(random_point(3, 0, number)) for number in range(500)])
    assert placed[:, 0].min() >= 0 and placed[:, 0].max() <= 0.02 + MARGIN
    assert placed[:, 1].max() <= 1 and placed[:, 1].min() >= 0.99 - MARGIN
    kinds = [settings_at(SPACE, point)["kind"] for point in placed]
    assert set(kinds) == {"b", "d"} and 200 < kinds.count("b") < 300


def test_a_box_of_one_point_is_that_point() -> None:
    region = Region((((0.25, 0.25),), ((0.5, 0.75),)))
    assert region.at(np.array([0.9, 0.5])) == pytest.approx([0.25, 0.625])


@pytest.mark.parametrize(
    ("n", "levels"),
    [(1, (1, 1, 1)), (2, (2, 1, 1)), (8, (2, 2, 2)), (29, (3, 3, 3)), (64, (4, 4, 4)), (1000, (16, 15, 4))],
)
def test_levels_of_a_grid(n: int, levels: tuple[int, ...]) -> None:
    assert grid_levels(SPACE, n) == levels
    assert math.prod(levels) <= n


def test_a_grid_has_every_combination_once_and_moves_as_a_whole() -> None:
    levels = (3, 2, 2)
    points = np.array([grid_point(SPACE, levels, 4, index) for index in range(12)])
    assert len({tuple(point) for point in points}) == 12
    across = np.unique(points[:, 0])
    assert np.diff(across) == pytest.approx([1 / 3, 1 / 3]) and 0 <= across[0] < 1 / 3
    assert across[0] != grid_point(SPACE, levels, 5, 0)[0]
    assert {settings_at(SPACE, point)["kind"] for point in points} == {"a", "b"}
    alone = grid_point(SPACE, (3, 2, 1), 4, 0)
    assert settings_at(SPACE, alone)["kind"] == "a", "a single level of a choice is its default"
