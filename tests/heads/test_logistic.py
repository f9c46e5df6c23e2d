"""LogisticHead: scikit-learn's solution, a strength that fits the noise, and classes with few images or none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from toolkit.heads.linear import unit_taps
from toolkit.heads.logistic import FOLDED_UP_TO, STRENGTHS, LogisticHead

WIDTHS = (6, 10)


def clouds(counts: list[int], *, noise: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return features float32 (N, 16) around a random centre for each class, and labels."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(0, 1, (len(counts), sum(WIDTHS)))
    labels = np.repeat(np.arange(len(counts)), counts)
    features = centres[labels] + generator.normal(0, noise, (len(labels), sum(WIDTHS)))
    order = generator.permutation(len(labels))
    return features[order].astype(np.float32), labels[order]


def probabilities(head: LogisticHead, features: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return head.head_(torch.from_numpy(features)).double().softmax(dim=1).numpy()


@pytest.mark.parametrize("counts", [[30, 25], [20, 25, 15, 30]], ids=["two classes", "four classes"])
@pytest.mark.parametrize("strength", [1.0, 100.0])
@pytest.mark.parametrize("balanced", [False, True])
def test_it_is_scikit_learns_solution(counts, strength, balanced):
    features, labels = clouds(counts)
    ours = LogisticHead(WIDTHS, strengths=[strength], balanced=balanced).fit(features, labels, len(counts))
    inputs = unit_taps(torch.from_numpy(features), WIDTHS).numpy().astype(np.float64)
    weight = "balanced" if balanced else None
    theirs = LogisticRegression(C=strength, tol=1e-8, max_iter=5000, class_weight=weight).fit(inputs, labels)
    assert np.abs(probabilities(ours, features) - theirs.predict_proba(inputs)).max() < 0.01
    assert (probabilities(ours, features).argmax(1) == theirs.predict(inputs)).mean() > 0.98
    assert ours.strength_ == strength


def test_the_strength_follows_the_noise():
    clean = LogisticHead(WIDTHS).fit(*clouds([40, 40, 40], noise=0.1), 3)
    noisy = LogisticHead(WIDTHS).fit(*clouds([40, 40, 40], noise=6.0), 3)
    assert clean.strength_ == STRENGTHS[-1]
    assert noisy.strength_ == STRENGTHS[0]
    for head in (clean, noisy):
        assert tuple(head.nll_) == STRENGTHS and head.nll_[head.strength_] == min(head.nll_.values())


def test_the_chosen_strength_does_well_on_new_images():
    counts = [30] * 5
    fresh, truth = clouds([200] * 5, noise=1.2, seed=1)
    losses = {}
    for strengths in (STRENGTHS, *((strength,) for strength in STRENGTHS)):
        head = LogisticHead(WIDTHS, strengths=strengths).fit(*clouds(counts, noise=1.2), 5)
        losses[strengths] = -np.log(probabilities(head, fresh)[np.arange(len(truth)), truth]).mean()
    chosen = losses.pop(STRENGTHS)
    assert chosen <= min(losses.values()) * 1.25 < max(losses.values())


def test_an_unseen_class_is_never_predicted():
    features, labels = clouds([20, 20])
    head = LogisticHead(WIDTHS).fit(features, np.where(labels == 1, 3, 0), 5)
    given = probabilities(head, 100 * clouds([50, 50], noise=5, seed=3)[0])
    assert given.shape == (100, 5) and np.isfinite(given).all()
    assert set(given.argmax(1)) == {0, 3} and given[:, [1, 2, 4]].max() < 1e-30


@pytest.mark.parametrize("counts", [[1, 1], [1, 1, 1, 1], [1, 20], [2, 1, 9], [2, 2]])
def test_few_images_a_class(counts):
    features, labels = clouds(counts, noise=0.05)
    head = LogisticHead(WIDTHS).fit(features, labels, len(counts))
    given = probabilities(head, features)
    assert np.isfinite(given).all() and all(np.isfinite(value) for value in head.nll_.values())
    assert given.argmax(1).tolist() == labels.tolist()


def test_a_single_class_is_always_predicted():
    for count in (1, 2, 7):
        features, labels = clouds([count])
        head = LogisticHead(WIDTHS).fit(features, labels + 1, 3)
        assert set(probabilities(head, features).argmax(1)) == {1}


def test_equal_input_gives_equal_heads():
    features, labels = clouds([20, 30, 10])
    heads = [LogisticHead(WIDTHS, seed=4).fit(features.copy(), labels.copy(), 3) for _ in range(2)]
    assert torch.equal(heads[0].head_.linear.weight, heads[1].head_.linear.weight)
    assert torch.equal(heads[0].head_.linear.bias, heads[1].head_.linear.bias)
    assert heads[0].nll_ == heads[1].nll_


def test_fitting_leaves_the_global_random_state():
    np.random.seed(0)
    torch.manual_seed(0)
    before = np.random.get_state()[1].tolist(), torch.get_rng_state()
    LogisticHead(WIDTHS).fit(*clouds([20, 30]), 2)
    assert np.random.get_state()[1].tolist() == before[0] and torch.equal(torch.get_rng_state(), before[1])


def test_balanced_weights_move_the_boundary_to_the_rare_class():
    features, labels = clouds([200, 10], noise=3.0)
    fresh, truth = clouds([200, 200], noise=3.0, seed=5)
    recall = {}
    for balanced in (False, True):
        head = LogisticHead(WIDTHS, balanced=balanced).fit(features, labels, 2)
        recall[balanced] = (probabilities(head, fresh).argmax(1)[truth == 1] == 1).mean()
    assert recall[True] > recall[False] + 0.2


def test_many_images_are_held_out_once():
    """Above the limit one fifth chooses: the summed loss is that of a fifth of the images."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, FOLDED_UP_TO + 1)
    features = generator.normal(0, 1, (len(labels), 3)).astype(np.float32)
    head = LogisticHead((3,), strengths=[0.001, 0.01]).fit(features, labels, 2)
    assert head.nll_[0.001] == pytest.approx(len(labels) / 5 * np.log(2), rel=0.02)


def test_many_classes_of_few_images_are_no_obstacle_in_a_large_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.heads.logistic.FOLDED_UP_TO", 20)
    labels = np.repeat(np.arange(10), 3)  # 30 images, fewer in every class than there are folds
    features = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    head = LogisticHead((4,), strengths=(1.0, 10.0)).fit(features, labels, 10).head_
    assert head.linear.weight.shape == (10, 4)
