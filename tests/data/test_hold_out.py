"""Holding out of the training images: stratified, seeded, apart from the validation split, and never all of a class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.data.manifest import TEST, TRAIN, UNASSIGNED, VAL, Manifest
from toolkit.data.split import assign_splits, hold_out

EVERYTHING = 10**9


def manifest_of(train: Sequence[int], val: Sequence[int] = (), test: Sequence[int] = ()) -> Manifest:
    """Return a Manifest with so many images of each class in train, val and test."""
    counts = [
        (split, label, n) for split, of in ((TRAIN, train), (VAL, val), (TEST, test)) for label, n in enumerate(of)
    ]
    labels = np.array([label for _, label, n in counts for _ in range(n)], dtype=np.int64)
    splits = np.array([split for split, _, n in counts for _ in range(n)], dtype=np.int8)
    paths = tuple(f"c{label}/{row:05}.jpg" for row, label in enumerate(labels))
    return Manifest(Path("/data"), tuple(f"c{label}" for label in range(len(train))), paths, labels, splits)


def paths(manifest: Manifest, split: int) -> set[str]:
    return {manifest.paths[row] for row in manifest.rows(split)}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=5), st.floats(0.01, 0.99), st.integers(0, 2**70))
def test_every_class_gives_the_asked_share_and_keeps_an_image(counts, share, seed):
    held = hold_out(manifest_of(counts), share, EVERYTHING, seed)
    wanted = [0 if count == 1 else min(max(1, round(share * count)), count - 1) for count in counts]
    most = max(1, round(share * sum(counts)))  # classes of a few images would give more than that
    outs = held.class_counts(VAL).tolist()
    assert sum(outs) == min(sum(wanted), most)
    for count, left, out, whole in zip(counts, held.class_counts(TRAIN), outs, wanted, strict=True):
        assert left + out == count and left >= 1
        assert out <= whole and (out == whole or sum(wanted) > most)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=5), st.floats(0.01, 0.5), st.integers(0, 2**70))
def test_parts_have_no_image_in_common_and_are_alike(counts, share, seed):
    manifest = manifest_of(counts)
    parts = [hold_out(manifest, share, EVERYTHING, seed, part) for part in range(4)]
    held = [paths(part, VAL) for part in parts]
    assert parts[0].splits.tolist() == hold_out(manifest, share, EVERYTHING, seed).splits.tolist()
    assert sum(map(len, held)) == len(set().union(*held))
    assert all(len(later) <= len(held[0]) for later in held)
    for number, part in enumerate(parts):
        wanted = [0 if count == 1 else min(max(1, round(share * count)), count - 1) for count in counts]
        kept, outs = part.class_counts(TRAIN).tolist(), part.class_counts(VAL).tolist()
        for count, left, out, whole in zip(counts, kept, outs, wanted, strict=True):
            assert left + out == count and left >= 1 and out <= whole
            if sum(wanted) <= max(1, round(share * sum(counts))):  # no class gives more than its share
                assert out == max(0, min(whole, count - number * whole))


def test_a_class_with_one_image_keeps_it():
    held = hold_out(manifest_of([10, 1, 1]), 0.2, EVERYTHING, 0)
    assert held.class_counts(VAL).tolist() == [2, 0, 0] and held.class_counts(TRAIN).tolist() == [8, 1, 1]


def test_with_one_image_a_class_nothing_is_held_out():
    manifest = manifest_of([1, 1, 1], val=[1, 1, 1])
    held = hold_out(manifest, 0.2, EVERYTHING, 0)
    assert len(held.rows(VAL)) == 0 and paths(held, TRAIN) == paths(manifest, TRAIN)


def test_validation_images_step_out_of_the_way_and_test_images_stay():
    manifest = manifest_of([10, 10], val=[3, 4], test=[2, 5])
    held = hold_out(manifest, 0.2, EVERYTHING, 0)
    assert paths(held, TEST) == paths(manifest, VAL) | paths(manifest, TEST)
    assert paths(held, VAL) < paths(manifest, TRAIN)
    assert paths(held, TRAIN) == paths(manifest, TRAIN) - paths(held, VAL)
    assert held.paths == manifest.paths and held.splits.dtype == manifest.splits.dtype
    assert (held.labels == manifest.labels).all() and held.classes == manifest.classes


def test_validation_images_have_no_say():
    few, many = manifest_of([10, 10], val=[1, 1]), manifest_of([10, 10], val=[30, 1])
    assert paths(hold_out(few, 0.2, EVERYTHING, 0), VAL) == paths(hold_out(many, 0.2, EVERYTHING, 0), VAL)


def test_the_input_is_not_changed():
    manifest = manifest_of([10, 10], val=[3, 4])
    before = manifest.splits.copy()
    hold_out(manifest, 0.2, EVERYTHING, 0)
    assert (manifest.splits == before).all()


def test_the_seed_decides_and_the_order_of_rows_does_not():
    manifest = manifest_of([50, 50])
    held = paths(hold_out(manifest, 0.2, EVERYTHING, 1), VAL)
    assert held == paths(hold_out(manifest, 0.2, EVERYTHING, 1), VAL)
    assert held != paths(hold_out(manifest, 0.2, EVERYTHING, 2), VAL)
    turned = Manifest(
        manifest.root, manifest.classes, manifest.paths[::-1], manifest.labels[::-1], manifest.splits[::-1]
    )
    assert held == paths(hold_out(turned, 0.2, EVERYTHING, 1), VAL)


def test_the_images_are_the_same_in_every_version():
    """Golden of this very function: a change would give a resumed run another trial than it began with."""
    assert paths(hold_out(manifest_of([5, 5]), 0.4, EVERYTHING, 0), VAL) == GOLDEN


GOLDEN = {"c0/00000.jpg", "c0/00004.jpg", "c1/00007.jpg", "c1/00009.jpg"}


@pytest.mark.parametrize("seed", range(3))
def test_other_images_than_a_split_would_take(seed):
    """Of 100 images a class, a fifth each: with one hash for both, they were the same images."""
    manifest = manifest_of([100, 100])
    unassigned = Manifest(
        manifest.root, manifest.classes, manifest.paths, manifest.labels, np.full(200, UNASSIGNED, np.int8)
    )
    split = paths(assign_splits(unassigned, val=0.2, seed=seed), VAL)
    held = paths(hold_out(manifest, 0.2, EVERYTHING, seed), VAL)
    assert len(split) == len(held) == 40 and len(split & held) < 20  # 8 by chance


@pytest.mark.parametrize(("counts", "most"), [([400, 100], 50), ([333, 333, 334], 100), ([1000] * 10, 1000)])
def test_at_most_so_many_are_held_out(counts, most):
    held = hold_out(manifest_of(counts), 0.2, most, 0)
    assert most - len(counts) <= len(held.rows(VAL)) <= most, "each class is rounded"
    shares = held.class_counts(VAL) / np.array(counts)
    assert shares.max() - shares.min() < 0.01, "every class gives the same share"


@pytest.mark.parametrize(("n_classes", "n", "most", "out"), [(8, 5, 3, 3), (300, 2, 1000, 120), (60, 9, 100, 100)])
def test_classes_of_a_few_images_give_no_more_than_the_share_and_the_limit(n_classes, n, most, out):
    held = hold_out(manifest_of([n] * n_classes), 0.2, most, 0)
    assert len(held.rows(VAL)) == out and held.class_counts(TRAIN).min() >= 1
