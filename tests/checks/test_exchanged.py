"""Classes that changed places: found by what a model of the training images says, and never by chance."""

from __future__ import annotations

import numpy as np
import pytest

from tests.checks.test_label_noise import manifest_of
from toolkit.checks.exchanged import exchanges, scores_by, told
from toolkit.checks.label_errors import label_findings
from toolkit.data.manifest import TEST, TRAIN, VAL, Manifest

C = 5


def drawn(n: int, sharpness: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return calibrated probabilities, and labels that are drawn from them."""
    random = np.random.default_rng(seed)
    scores = sharpness * random.standard_normal((n, C))
    chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    labels = (random.random((n, 1)) > chances.cumsum(axis=1)).sum(axis=1).clip(0, C - 1)
    return chances, labels


@pytest.mark.parametrize("names", [(1, 0, 2, 3, 4), (0, 1, 4, 2, 3), (1, 0, 2, 4, 3)])
def test_other_names_are_found(names: tuple[int, ...]) -> None:
    chances, labels = drawn(60, 3.0, 0)
    renamed = np.asarray(names)[labels]
    found = exchanges(chances, renamed)
    moved = {label for label in range(C) if names[label] != label}
    assert {label for one in found for label in one.classes} == moved
    assert all(one.n_fit > one.n / 2 > one.n_own for one in found)


@pytest.mark.parametrize("sharpness", [0.0, 0.5, 1.0, 3.0])
def test_right_names_are_left_alone(sharpness: float) -> None:
    alarms = sum(bool(exchanges(*drawn(n, sharpness, seed))) for n in (10, 40) for seed in range(200))
    assert alarms <= 4, "a hundredth of 400"


def test_an_empty_split_and_a_missing_class() -> None:
    chances, labels = drawn(60, 3.0, 0)
    assert exchanges(chances[:0], labels[:0]) == []
    some = labels != 2
    assert exchanges(chances[some], labels[some]) == []


def test_a_class_that_is_not_there_takes_no_part() -> None:
    """Whatever the assignment does with names that no image has."""
    chances, labels = drawn(200, 3.0, 0)
    only = np.isin(labels, (0, 1, 2))
    swapped = np.asarray([1, 0, 2, 3, 4])[labels[only]]
    (found,) = exchanges(chances[only], swapped)
    assert found.classes == (0, 1)
    one = labels == 0
    assert exchanges(chances[one], labels[one] + 3) == [], "of a single class nobody changed places"
    assert exchanges(chances[only], swapped, known=np.array([0, 2])) == [], "training has no images of the other"


def test_views_of_a_few_images_are_no_crowd_of_witnesses() -> None:
    """Ten views of each of ten images, of which the model is sure and wrong for four, each in its own way."""
    chances = np.full((10, C), 0.01) + 0.95 * np.eye(C)[[0, 1, 2, 3, 4, 1, 2, 0, 3, 4]]
    labels = np.array([0, 1, 2, 3, 4, 0, 1, 2, 3, 4])
    assert exchanges(np.repeat(chances, 10, axis=0), np.repeat(labels, 10)) == []


def test_all_that_changed_is_told() -> None:
    (train, labels), (others, own) = clouds(0), clouds(1, 6)
    both = np.concatenate([labels, np.asarray([1, 0, 3, 2, 4])[own], np.asarray([0, 1, 2, 4, 3])[own]])
    splits = np.repeat(np.array([TRAIN, VAL, TEST], np.int8), [len(labels), len(own), len(own)])
    sentence = told(
        manifest_of(both, splits), np.arange(len(both)), np.concatenate([train, others, others]), [8], [VAL, TEST]
    )
    assert sentence is not None and sentence.count("changed places") == 3
    for words in ("in val a and b", "in val c and d", "in test d and e"):
        assert words in sentence


def test_it_is_told_before_what_follows_from_it() -> None:
    """Of two classes, with as many images in val as in train: then the labels seem to have nothing to do with them."""
    labels = np.array([0, 1] * 20)
    scores = np.where(np.eye(2)[labels] > 0, 0.1, 0.0) * np.where(np.arange(40) % 4 < 2, 1, -1)[:, None]
    finding, _ = label_findings(
        manifest_of(labels), np.arange(40), scores, "in val a and b seem to have changed places"
    )
    assert finding.seen == "in val a and b seem to have changed places"
    assert "nothing to do" in label_findings(manifest_of(labels), np.arange(40), scores)[0].seen


def clouds(seed: int, n: int = 20) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(C), n)
    centres = np.random.default_rng(9).standard_normal((C, 8))
    return (centres[labels] + 0.4 * random.standard_normal((len(labels), 8))).astype(np.float32), labels


def whole(split: int, *, swapped: bool, lacks: int | None = None) -> tuple[Manifest, np.ndarray]:
    (train, labels), (others, own) = clouds(0), clouds(1, 6)
    if swapped:
        own = np.asarray([1, 0, 2, 3, 4])[own]
    kept = labels != lacks
    both = np.concatenate([labels[kept], own])
    splits = np.repeat(np.array([TRAIN, split], np.int8), [int(kept.sum()), len(own)])
    return manifest_of(both, splits), np.concatenate([train[kept], others])


@pytest.mark.parametrize("split", [VAL, TEST])
def test_it_is_told_of_the_split_and_the_names(split: int) -> None:
    manifest, features = whole(split, swapped=True)
    rows = np.arange(len(manifest))
    sentence = told(manifest, rows, features, [8], [VAL, TEST])
    name = {VAL: "val", TEST: "test"}[split]
    assert sentence is not None and sentence.startswith(f"in {name} a and b seem to have changed places: ")
    assert sentence.endswith("of their 12 images 12 look like the other, going by train, and 0 like their own class")
    assert told(*_sound(split), [8], [VAL, TEST]) is None
    assert told(manifest, rows, features, [8], []) is None, "we split it ourselves"


def _sound(split: int) -> tuple[Manifest, np.ndarray, np.ndarray]:
    manifest, features = whole(split, swapped=False)
    return manifest, np.arange(len(manifest)), features


def test_a_class_that_training_lacks_is_no_exchange() -> None:
    manifest, features = whole(VAL, swapped=False, lacks=3)
    assert told(manifest, np.arange(len(manifest)), features, [8], [VAL]) is None


def test_probabilities_are_those_of_other_images() -> None:
    (features, labels), (others, own) = clouds(0), clouds(1, 6)
    chances = scores_by(features, labels, C, [8], others)
    assert chances.shape == (30, C) and np.allclose(chances.sum(axis=1), 1)
    assert (chances.argmax(axis=1) == own).mean() > 0.9
