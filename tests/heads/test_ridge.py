"""RidgeHead: exactly the scores of models that are refitted without each image, and the λ that they choose."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.heads.rows import WIDTHS, OnDisk, clouds, unit, with_views
from toolkit.heads.examples import UNSEEN_BIAS
from toolkit.heads.linear import LinearHead
from toolkit.heads.ridge import RELATIVE_STRENGTHS, RidgeHead

COUNTS = [9, 4, 7]
WIDE = (30, 50)  # more columns than rows: the other Gram matrix


def weights_of(labels: np.ndarray, images: np.ndarray, balanced: bool) -> np.ndarray:
    """Return what each row counts, from the definition."""
    weights = np.array([1.0 / (images == image).sum() for image in images])
    if balanced:
        per_class = np.array([weights[labels == label].sum() for label in range(labels.max() + 1)])
        weights *= weights.sum() / (len(per_class) * per_class[labels])
    return weights


def refit(inputs: np.ndarray, labels: np.ndarray, weights: np.ndarray, strength: float, n_classes: int) -> np.ndarray:
    """Return (D + 1, C) that solves the normal equations with a free intercept, in float64."""
    design = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)
    penalty = strength * np.eye(design.shape[1])
    penalty[-1, -1] = 0.0
    targets = 2.0 * (labels[:, None] == np.arange(n_classes)) - 1.0
    weighted = design * weights[:, None]
    return np.linalg.solve(design.T @ weighted + penalty, weighted.T @ targets)


def problem(widths: tuple[int, ...], n_views: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return with_views(*clouds(COUNTS, noise=1.5, widths=widths), n_views)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("n_views", [1, 3])
@pytest.mark.parametrize("widths", [WIDTHS, WIDE], ids=["few columns", "many columns"])
def test_scores_out_of_fold_are_those_of_refitted_models(widths, n_views, balanced):
    features, labels, images = problem(widths, n_views)
    head = RidgeHead(widths, balanced=balanced).fit(features, labels, 3, images if n_views > 1 else None)
    inputs, weights = unit(features, widths), weights_of(labels, images, balanced)
    expected = np.empty((len(labels), 3))
    for image in np.unique(images):
        out = images == image
        solution = refit(inputs[~out], labels[~out], weights[~out], head.strength_, 3)
        expected[out] = inputs[out] @ solution[:-1] + solution[-1]
    assert np.abs(head.oof_ - expected).max() < 1e-6
    assert (head.oof_.argmax(1) == expected.argmax(1)).all()
    whole = refit(inputs, labels, weights, head.strength_, 3)
    given = head.head_(torch.from_numpy(features)).detach().numpy()
    assert np.abs(given - (inputs @ whole[:-1] + whole[-1])).max() < 1e-5


@pytest.mark.parametrize("balanced", [False, True])
def test_the_strength_has_the_smallest_error_of_refitted_models(balanced):
    features, labels, images = problem(WIDTHS, 2)
    head = RidgeHead(WIDTHS, balanced=balanced).fit(features, labels, 3, images)
    inputs, weights = unit(features), weights_of(labels, images, balanced)
    clean = np.unique(images, return_index=True)[1]
    errors = {}
    for strength in head.press_:
        errors[strength] = 0.0
        for row in clean:
            rest = images != images[row]
            solution = refit(inputs[rest], labels[rest], weights[rest], strength, 3)
            residual = inputs[row] @ solution[:-1] + solution[-1] - (2.0 * (labels[row] == np.arange(3)) - 1.0)
            errors[strength] += weights[images == images[row]].sum() * (residual**2).sum()
    assert head.press_ == pytest.approx(errors, rel=1e-6)
    assert head.strength_ == min(errors, key=errors.__getitem__)
    assert len(errors) == len(RELATIVE_STRENGTHS) == 25


def test_a_view_that_stays_would_leak():
    """Images leave with all their views: with numbers the scores are those of chance, without they are too good."""
    generator = np.random.default_rng(0)
    features = np.repeat(generator.normal(size=(60, 40)), 3, axis=0) + generator.normal(0, 0.05, (180, 40))
    labels = np.repeat(generator.integers(0, 2, 60), 3)
    accuracy = {}
    for images in (None, np.repeat(np.arange(60), 3)):
        head = RidgeHead((40,)).fit(features.astype(np.float32), labels, 2, images)
        accuracy[images is None] = (head.oof_.argmax(1) == labels).mean()
    assert accuracy[True] > 0.8 and accuracy[False] < 0.65


def test_the_strength_follows_the_noise():
    strengths = [RidgeHead(WIDTHS).fit(*clouds([40] * 3, noise=noise), 3).strength_ for noise in (0.3, 1.5, 6.0)]
    assert strengths[0] < strengths[1] < strengths[2]


def test_many_rows_in_blocks_are_the_same_as_all_at_once():
    """More rows than a block, an image's views far apart, features that cannot be read whole, a part that chooses."""
    features, labels, images = with_views(*clouds([900, 700, 500], noise=3.0), 3)
    head = RidgeHead(WIDTHS).fit(OnDisk(features), labels, 3, images)
    weights = np.where(images == images[0], 1 / 2, 1 / 3)  # the first image has a view less
    inputs = unit(features)
    whole = refit(inputs, labels, weights, head.strength_, 3)
    given = head.head_(torch.from_numpy(features)).detach().numpy()
    assert np.abs(given - (inputs @ whole[:-1] + whole[-1])).max() < 1e-5
    for image in (images[0], images[1000], images[2099]):
        out = images == image
        solution = refit(inputs[~out], labels[~out], weights[~out], head.strength_, 3)
        assert np.abs(head.oof_[out] - (inputs[out] @ solution[:-1] + solution[-1])).max() < 1e-6


def test_balanced_weights_move_the_boundary_to_the_rare_class():
    features, labels = clouds([200, 10], noise=3.0)
    fresh, truth = clouds([200, 200], noise=3.0, seed=5)
    recall = {}
    for balanced in (False, True):
        head = RidgeHead(WIDTHS, balanced=balanced).fit(features, labels, 2).head_
        recall[balanced] = (head(torch.from_numpy(fresh)).argmax(1).numpy()[truth == 1] == 1).mean()
    assert recall[True] > recall[False] + 0.2


def test_an_unseen_class_is_never_predicted():
    features, labels = clouds([20, 20])
    head = RidgeHead(WIDTHS).fit(features, np.where(labels == 1, 3, 0), 5)
    assert isinstance(head.head_, LinearHead)
    scores = head.head_(torch.from_numpy(100 * clouds([50, 50], noise=5, seed=3)[0])).detach()
    assert set(scores.argmax(1).tolist()) == {0, 3}
    assert (scores[:, [1, 2, 4]] == UNSEEN_BIAS).all() and (head.oof_[:, [1, 2, 4]] == UNSEEN_BIAS).all()
