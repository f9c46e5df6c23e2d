"""Training sets with hardly anything in them: every kind of head gives finite scores and the only sensible answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.heads.rows import clouds
from toolkit.heads.choose import KINDS, choose_head

EVERY_KIND = pytest.mark.parametrize("kind", ["auto", *KINDS])
EITHER_SIDE = pytest.mark.parametrize("widths", [(6, 10), (1, 1)], ids=["few rows", "few columns"])


def answers(features: np.ndarray, labels: list[int], n_classes: int, kind: str, widths=(6, 10), **more) -> list[int]:
    """Return the predictions for the training rows themselves; nothing on the way may be anything but finite."""
    features = np.asarray(features, dtype=np.float32)[:, : sum(widths)]
    chosen = choose_head(features, np.array(labels), n_classes, widths, kind=kind, **more)
    assert np.isfinite(chosen.temperature) and chosen.temperature > 0
    for one in chosen.candidates:
        assert np.isfinite([one.accuracy, one.se, one.nll, one.strength]).all()
    ends = np.cumsum((0, *widths))
    given = np.concatenate([features[:, ends[tap] : ends[tap + 1]] for tap in chosen.taps], axis=1)
    scores = chosen.head(torch.from_numpy(given)).detach()
    assert scores.shape == (len(labels), n_classes) and scores.isfinite().all()
    return scores.argmax(dim=1).tolist()


@EVERY_KIND
@EITHER_SIDE
@pytest.mark.parametrize("n", [1, 2, 7])
def test_a_single_class_is_always_predicted(kind, widths, n):
    assert answers(clouds([n])[0], [1] * n, 3, kind, widths) == [1] * n
    assert answers(clouds([n])[0], [0] * n, 1, kind, widths) == [0] * n


@EVERY_KIND
@pytest.mark.parametrize("counts", [[1, 1], [1, 1, 1, 1], [1, 20], [2, 1, 9], [2, 2]])
def test_few_images_a_class(kind, counts):
    features, labels = clouds(counts, noise=0.05)
    given = answers(features, labels.tolist(), len(counts), kind)
    if kind != "knn":  # one vote is less than the votes of two
        assert given == labels.tolist()


@EVERY_KIND
@pytest.mark.parametrize("balanced", [False, True])
def test_a_class_without_images_is_never_predicted(kind, balanced):
    features, labels = clouds([12, 10, 11], noise=2.0)
    names = np.array([0, 3, 5])
    assert set(answers(features, names[labels].tolist(), 7, kind, balanced=balanced)) <= set(names)


@EVERY_KIND
@EITHER_SIDE
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_features_give_the_commonest_class(kind, widths, value):
    labels = [0] * 3 + [1] * 8
    assert answers(np.full((11, 16), value), labels, 2, kind, widths) == [1] * 11


@EVERY_KIND
def test_a_tap_of_zeros_does_no_harm(kind):
    features, labels = clouds([10, 10], noise=0.1)
    features[:, 6:] = 0.0
    assert answers(features, labels.tolist(), 2, kind) == labels.tolist()


@EVERY_KIND
def test_two_equal_images_of_different_classes(kind):
    features, labels = clouds([8, 8], noise=0.1)
    features[labels == 1] = features[labels == 0]
    assert set(answers(features, labels.tolist(), 2, kind)) <= {0, 1}
    assert len(answers(features[:1].repeat(2, axis=0), [0, 1], 2, kind)) == 2


@EVERY_KIND
def test_one_image_with_many_views(kind):
    features, _ = clouds([5])
    assert answers(features, [2] * 5, 4, kind, images=np.zeros(5, dtype=np.int64)) == [2] * 5


@EVERY_KIND
def test_more_classes_than_rows(kind):
    features, labels = clouds([1] * 6, noise=0.1)
    assert len(answers(features, (10 * labels).tolist(), 100, kind)) == 6
