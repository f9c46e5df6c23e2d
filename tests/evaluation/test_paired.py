"""Two models on the same images: the interval is the bootstrap's, p that of the exact test."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import binomtest

from toolkit.evaluation.paired import mcnemar, paired


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (5, 5), (7, 2), (2, 7), (30, 12), (900, 1100)])
def test_p_is_that_of_the_two_sided_binomial_test(wins: int, losses: int) -> None:
    expected = binomtest(wins, wins + losses, 0.5).pvalue if wins + losses else 1.0
    assert mcnemar(wins, losses) == pytest.approx(expected, rel=1e-9)


def test_counts_and_difference() -> None:
    right = np.array([True, True, True, False, False])
    other = np.array([True, False, False, True, False])
    found = paired(right, other)
    assert (found.n, found.wins, found.losses, found.ties) == (5, 2, 1, 2)
    assert (found.accuracy, found.other_accuracy, found.difference) == (0.6, 0.4, 0.2)
    assert json.loads(json.dumps(found.to_dict()))["ties"] == 2


def test_the_interval_is_that_of_resampled_images() -> None:
    generator = np.random.default_rng(1)
    right, other = generator.random(150) < 0.9, generator.random(150) < 0.8
    found = paired(right, other, seed=3)
    gaps = right.astype(float) - other
    resampled = [gaps[generator.integers(0, 150, 150)].mean() for _ in range(10_000)]
    np.testing.assert_allclose(found.interval, np.quantile(resampled, (0.025, 0.975)), atol=0.006)
    assert paired(right, other, seed=3) == found and paired(right, other, seed=4).p == found.p


def test_the_other_way_round_is_the_mirror_image() -> None:
    generator = np.random.default_rng(2)
    right, other = generator.random(80) < 0.9, generator.random(80) < 0.7
    one, two = paired(right, other), paired(other, right)
    assert (one.difference, one.wins, one.p) == (-two.difference, two.losses, two.p)
    assert one.interval == pytest.approx((-two.interval[1], -two.interval[0]), abs=0.02)


def test_equal_models_have_an_interval_without_width() -> None:
    right = np.array([True, False])
    assert paired(right, right).interval == (0, 0) and paired(right, right).p == 1


def test_other_shapes_are_refused() -> None:
    for pair in ((np.ones(2, bool), np.ones(3, bool)), (np.ones(0, bool), np.ones(0, bool))):
        with pytest.raises(ValueError, match="expected two bool"):
            paired(*pair)
