"""repeated_folds: honest about chance, close to what new images give, an interval that knows about overlap."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, t

from tests.heads.rows import WIDTHS, OnDisk, clouds, with_views
from toolkit.errors import SettingError
from toolkit.heads import folds
from toolkit.heads.choose import choose_head
from toolkit.heads.folds import corrected_interval, repeated_folds, wilson_interval


def test_it_is_what_new_images_give():
    features, labels = clouds([40, 40, 40], noise=2.0)
    fresh, truth = clouds([500] * 3, noise=2.0, seed=8)
    scores = repeated_folds(features, labels, 3, WIDTHS, kind="ridge", tap_sets=[(0, 1)])
    head = choose_head(features, labels, 3, WIDTHS, kind="ridge", tap_sets=[(0, 1)]).head
    accuracy = (head(torch.from_numpy(fresh)).argmax(1).numpy() == truth).mean()
    assert scores.interval[0] < accuracy < scores.interval[1]
    assert len(scores.accuracies) == 25 and (scores.k, scores.repeats, scores.n) == (5, 5, 120)
    assert scores.interval[1] - scores.interval[0] < 0.3


def test_choosing_inside_the_folds_makes_nothing_of_noise():
    generator = np.random.default_rng(0)
    features, labels = generator.normal(size=(90, 16)).astype(np.float32), generator.integers(0, 3, 90)
    scores = repeated_folds(features, labels, 3, WIDTHS, repeats=2)
    assert scores.interval[0] < 1 / 3 < scores.interval[1]


def test_views_share_a_fold_and_only_the_clean_one_is_scored():
    generator = np.random.default_rng(1)
    features, labels = generator.normal(size=(100, 16)).astype(np.float32), generator.integers(0, 2, 100)
    features, labels, images = with_views(features, labels, 3)
    scores = repeated_folds(features, labels, 2, WIDTHS, kind="knn", repeats=1, images=images)
    assert scores.mean < 0.7 and scores.n == 100
    assert all((20 * accuracy) == pytest.approx(round(20 * accuracy)) for accuracy in scores.accuracies)


def test_the_choice_inside_knows_the_views(monkeypatch):
    features, labels, images = with_views(*clouds([10, 12]), 3)
    seen = []

    def spy(X, y, *args, images, **settings):
        seen.append((np.asarray(X[:]), images))
        return choose_head(X, y, *args, images=images, **settings)

    monkeypatch.setattr(folds, "choose_head", spy)
    repeated_folds(features, labels, 2, WIDTHS, k=2, repeats=1, kind="ridge", images=images)
    for rows, numbers in seen:
        assert len(rows) == len(numbers) and set(numbers) < set(images)
        assert all((rows[numbers == one] == features[images == one]).all() for one in set(numbers))


def test_the_interval_is_the_corrected_t_test():
    accuracies = [0.8, 0.9, 0.85, 0.7, 0.75, 0.95]
    error = np.sqrt((1 / 6 + 1 / 2) * np.var(accuracies, ddof=1))
    mean, margin = np.mean(accuracies), t.ppf(0.975, 5) * error
    assert corrected_interval(accuracies, 3) == pytest.approx((mean - margin, min(1.0, mean + margin)))
    assert corrected_interval([0.9] * 4, 4) == pytest.approx((0.9, 0.9))


@pytest.mark.parametrize(("hits", "n"), [(0, 3), (7, 9), (250, 250)])
def test_few_images_allow_no_narrow_interval(hits, n):
    expected = binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson_interval(hits / n, n) == pytest.approx((expected.low, expected.high), abs=1e-6)
    scores = repeated_folds(*clouds([10, 10], noise=0.05), 2, WIDTHS, kind="ridge", repeats=1)
    assert scores.mean == 1.0 and scores.interval == wilson_interval(1.0, 20)


def test_repeats_shrink_with_the_rows_and_rows_stay_on_disk(monkeypatch):
    features, labels = clouds([60, 60])
    assert repeated_folds(features, labels, 2, WIDTHS, k=2, repeats=3, kind="ridge").repeats == 3
    monkeypatch.setattr(folds, "REPEATS_OF_MANY", ((100, 1),))
    assert repeated_folds(OnDisk(features, 60), labels, 2, WIDTHS, k=2, kind="ridge").repeats == 1


def test_few_images_and_equal_seeds():
    features, labels = clouds([2, 2])
    scores = repeated_folds(features, labels, 2, WIDTHS)
    assert scores.k == 4 and scores == repeated_folds(features, labels, 2, WIDTHS)
    assert "accuracy" in str(scores) and "1 × 4 folds of 4 images" in str(scores)


@pytest.mark.parametrize(("n", "settings"), [(1, {}), (4, {"k": 1}), (4, {"repeats": 0})])
def test_impossible_folds_are_refused(n, settings):
    with pytest.raises(SettingError, match="at least 2 folds"):
        repeated_folds(*clouds([n, 0]), 2, WIDTHS, **settings)
