"""Splitting: stratified, seeded, stable, and strict about classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.data.manifest import TEST, TRAIN, UNASSIGNED, VAL, Manifest
from toolkit.data.split import assign_splits
from toolkit.errors import DataError, SettingError


def manifest_of(counts: Sequence[int], splits: dict[int, int] | None = None) -> Manifest:
    """Return `counts[c]` images of each class c, all UNASSIGNED but for `splits`, row → split."""
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int64)
    column = np.full(len(labels), UNASSIGNED, np.int8)
    for row, split in (splits or {}).items():
        column[row] = split
    paths = tuple(f"c{label}/{row:05}.jpg" for row, label in enumerate(labels))
    return Manifest(Path("/data"), tuple(f"c{label}" for label in range(len(counts))), paths, labels, column)


def val_paths(manifest: Manifest) -> set[str]:
    return {manifest.paths[row] for row in manifest.rows(VAL)}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=5), st.floats(0.001, 0.999), st.integers(-5, 2**70))
def test_every_class_lands_in_both_parts_in_the_asked_share(counts, val, seed):
    manifest = assign_splits(manifest_of(counts), val=val, seed=seed)
    assert not (manifest.splits == UNASSIGNED).any()
    for count, in_train, in_val in zip(counts, manifest.class_counts(TRAIN), manifest.class_counts(VAL), strict=True):
        assert in_train + in_val == count and in_train >= 1
        assert in_val == (0 if count == 1 else min(max(1, round(val * count)), count - 1))
    assert len(manifest.remarks) == counts.count(1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(3, 40), min_size=2, max_size=4), st.integers(0, 99), st.data())
def test_removing_a_file_moves_at_most_one_other(counts, seed, data):
    whole = manifest_of(counts)
    gone = data.draw(st.integers(0, len(whole) - 1))
    before, after = (
        val_paths(assign_splits(whole, seed=seed)),
        val_paths(assign_splits(whole.without([(gone, "x")]), seed=seed)),
    )
    assert len((before ^ after) - {whole.paths[gone]}) <= 1


def test_the_seed_decides_and_the_order_of_rows_does_not():
    manifest = manifest_of([50, 50])
    assert val_paths(assign_splits(manifest, seed=1)) == val_paths(assign_splits(manifest, seed=1))
    assert val_paths(assign_splits(manifest, seed=1)) != val_paths(assign_splits(manifest, seed=2))
    turned = Manifest(
        manifest.root, manifest.classes, manifest.paths[::-1], manifest.labels[::-1], manifest.splits[::-1]
    )
    assert val_paths(assign_splits(turned, seed=1)) == val_paths(assign_splits(manifest, seed=1))


def test_the_split_is_the_same_in_every_version():
    """Golden of this very function: a change would reshuffle every user's validation set."""
    assert val_paths(assign_splits(manifest_of([5, 5]), val=0.4)) == GOLDEN


GOLDEN = {"c0/00000.jpg", "c0/00004.jpg", "c1/00006.jpg", "c1/00008.jpg"}


def test_the_input_is_not_changed():
    manifest = manifest_of([4, 4])
    assign_splits(manifest)
    assert (manifest.splits == UNASSIGNED).all()


def test_given_splits_stay():
    manifest = manifest_of([3, 3], {0: TRAIN, 1: VAL, 2: TEST, 3: TRAIN, 4: VAL, 5: TEST})
    assert assign_splits(manifest, val=0.9).splits.tolist() == manifest.splits.tolist()
    mixed = manifest_of([10, 10], {0: TEST, 19: TEST})
    assigned = assign_splits(mixed)
    assert assigned.splits[[0, 19]].tolist() == [TEST, TEST]
    assert assigned.class_counts(VAL).tolist() == [2, 2] and assigned.class_counts(TRAIN).tolist() == [7, 7]


def test_unlabelled_test_rows_are_left_alone():
    manifest = manifest_of([2, 2, 3], {4: TEST, 5: TEST, 6: TEST})
    labels = np.where(manifest.labels == 2, -1, manifest.labels)
    flat = Manifest(manifest.root, ("c0", "c1"), manifest.paths, labels, manifest.splits)
    assert len(assign_splits(flat).rows(TEST)) == 3


def test_a_single_image_trains_and_is_named():
    manifest = assign_splits(manifest_of([1, 4]))
    assert manifest.splits[0] == TRAIN and "'c0'" in manifest.remarks[0]
    assert assign_splits(manifest).remarks == manifest.remarks


def test_a_class_that_lost_all_its_images_is_named():
    manifest = manifest_of([2, 4, 4]).without([(0, "x"), (1, "x")])
    assert "'c0' has no usable image" in assign_splits(manifest).remarks[0]


@pytest.mark.parametrize("val", [0, 1, -0.1, 1.5, float("nan"), float("inf"), True])
def test_val_outside_0_to_1(val):
    with pytest.raises(SettingError, match="between 0 and 1"):
        assign_splits(manifest_of([3, 3]), val=val)


@pytest.mark.parametrize("split", [VAL, TEST])
def test_a_class_without_training_images_is_named(split):
    with pytest.raises(DataError, match="'c1'"):
        assign_splits(manifest_of([3, 2, 3], {3: split, 4: split}))


@pytest.mark.parametrize("counts", [[5], [5, 0], [0, 0], []])
def test_fewer_than_two_classes(counts):
    with pytest.raises(DataError, match="at least 2 classes"):
        assign_splits(manifest_of(counts))


def test_a_share_that_nothing_is_split_by_is_told():
    split = assign_splits(manifest_of([4, 4]))
    assert not split.remarks
    assert assign_splits(split, val=0.3).remarks == ("val 0.3 is not used: the data have a split of their own",)
    assert not assign_splits(manifest_of([4, 4]), val=0.3).remarks
