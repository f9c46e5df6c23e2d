"""Views, what a row counts, and folds that keep an image's views together."""

from __future__ import annotations

import numpy as np
import pytest

from tests.heads.rows import OnDisk
from toolkit.heads.blocks import Picked, tap_columns, unit_rows
from toolkit.heads.linear import unit_taps
from toolkit.heads.views import Views, fold_splits, row_weights


def test_the_first_row_of_an_image_is_its_clean_view():
    views = Views.of(np.array([7, 3, 7, 3, 9, 7]), 6)
    assert views.first.tolist() == [1, 0, 4], "by image number"
    assert views.image.tolist() == [1, 0, 1, 0, 2, 1] and views.counts.tolist() == [2, 3, 1]
    assert views.rows_of(np.array([1, 2])).tolist() == [0, 2, 5, 4]
    alone = Views.of(None, 3)
    assert alone.first.tolist() == alone.image.tolist() == [0, 1, 2]


def test_an_image_counts_once_however_many_views_it_has():
    labels, images = np.array([0, 0, 0, 1, 1, 2]), np.array([5, 5, 5, 6, 8, 9])
    views = Views.of(images, 6)
    assert row_weights(labels, views, balanced=False) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1, 1, 1])
    balanced = row_weights(labels, views, balanced=True)
    assert [balanced[labels == label].sum() for label in range(3)] == pytest.approx([4 / 3] * 3)


@pytest.mark.parametrize("n_folds", [2, 3, 5, 10])
def test_folds_are_stratified_and_keep_views_together(n_folds):
    generator = np.random.default_rng(n_folds)
    of_image = generator.integers(0, 6, 97)
    images = generator.permutation(np.repeat(np.arange(97), 3))
    labels = of_image[images]
    folds = fold_splits(labels, images, n_folds, seed=1)
    assert all(len(set(folds[images == image])) == 1 for image in range(97))
    first = np.unique(images, return_index=True)[1]
    counts = np.array([[((folds == f) & (labels == c))[first].sum() for f in range(n_folds)] for c in range(6)])
    assert (np.ptp(counts, axis=1) <= 1).all() and np.ptp(counts.sum(axis=0)) <= 1 and counts.sum() == 97


def test_folds_follow_the_seed():
    labels = np.arange(50) % 3
    assert (fold_splits(labels, None, 5, 1) == fold_splits(labels, None, 5, 1)).all()
    assert (fold_splits(labels, None, 5, 1) != fold_splits(labels, None, 5, 2)).any()


def test_classes_smaller_than_the_folds_are_spread():
    folds = fold_splits(np.array([0, 0, 1, 1, 2]), None, 4, 0)
    assert folds[0] != folds[1] and folds[2] != folds[3]
    assert set(fold_splits(np.array([0, 1]), None, 10, 0)) == {0, 1}, "more folds than images"


def test_picked_rows_and_columns_are_read_when_asked_for():
    values = np.arange(60, dtype=np.float32).reshape(10, 6)
    picked = Picked(OnDisk(values, limit=3), np.array([8, 2, 5, 1]), tap_columns((2, 3, 1), (0, 2)))
    assert picked.shape == (4, 3)
    assert (picked[1:3] == values[[2, 5]][:, [0, 1, 5]]).all()
    again = Picked(picked, np.array([3, 0]), tap_columns((2, 1), (1,)))
    assert again.shape == (2, 1) and again[np.array([1])].tolist() == [[values[8, 5]]]


def test_taps_side_by_side_are_read_without_a_copy():
    assert tap_columns((2, 3, 1), (1, 2)) == slice(2, 6)
    assert tap_columns((2, 3, 1), (0, 2)).tolist() == [0, 1, 5]


def test_unit_rows_are_what_the_module_sees():
    import torch

    features = np.random.default_rng(0).normal(0, 50, (7, 9)).astype(np.float32)
    features[2, :4] = 0.0
    assert np.abs(unit_rows(features, (4, 5)) - unit_taps(torch.from_numpy(features), (4, 5)).numpy()).max() < 1e-7
