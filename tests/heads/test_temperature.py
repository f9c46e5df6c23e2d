"""Temperature scaling: the known temperature comes back, likelihood improves, nothing runs away."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from toolkit.heads.examples import UNSEEN_BIAS
from toolkit.heads.linear import LinearHead
from toolkit.heads.temperature import among_seen, best_temperature, fold_temperature, negative_log_likelihoods


def drawn(n: int, n_classes: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return scores, and labels drawn from their softmax at that temperature."""
    generator = np.random.default_rng(seed)
    scores = generator.normal(0, 3, (n, n_classes))
    noise = generator.gumbel(size=scores.shape)
    return scores.astype(np.float32), (scores / temperature + noise).argmax(axis=1)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("n_classes", [2, 10])
def test_a_known_temperature_is_recovered(temperature, n_classes):
    scores, labels = drawn(50_000, n_classes, temperature)
    assert best_temperature(scores, labels) == pytest.approx(temperature, rel=0.07)


def test_it_has_the_smallest_likelihood_loss():
    scores, labels = drawn(2000, 5, 2.5)
    best = best_temperature(scores, labels)
    losses = [negative_log_likelihoods(scores, labels, factor * best).mean() for factor in (0.5, 0.9, 1.0, 1.1, 2.0)]
    assert losses.index(min(losses)) == 2
    reference = torch.nn.functional.cross_entropy(torch.from_numpy(scores / best), torch.from_numpy(labels))
    assert losses[2] == pytest.approx(float(reference), rel=1e-5)


def test_one_more_image_with_a_bit_of_every_class_counts():
    """The loss that is minimised, written out: few images, so that the one more matters."""
    scores, labels = drawn(8, 4, 0.3)
    factors = np.geomspace(0.01, 100, 4001)
    own = scores[np.arange(8), labels].astype(np.float64)
    logs = np.log(np.exp(factors[:, None, None] * scores.astype(np.float64)).sum(axis=2))
    losses = (logs - factors[:, None] * own).sum(axis=1) + (logs - factors[:, None] * scores.mean(axis=1)).mean(axis=1)
    assert best_temperature(scores, labels) == pytest.approx(1 / factors[losses.argmin()], rel=0.01)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_perfect_separation_is_confident_within_bounds(scale):
    labels = np.arange(40) % 4
    scores = scale * np.eye(4)[labels]
    temperature = best_temperature(scores, labels)
    chance = np.exp(-negative_log_likelihoods(scores, labels, temperature))
    assert (chance > 0.9).all() and (chance < 1).all(), "40 right answers do not make certainty"
    many = np.tile(scores, (100, 1)), np.tile(labels, 100)
    assert best_temperature(*many) < temperature


def test_scores_that_are_always_wrong_become_even():
    labels = np.arange(40) % 4
    temperature = best_temperature(np.eye(4)[labels], (labels + 1) % 4)
    assert np.isfinite(temperature)
    assert negative_log_likelihoods(np.eye(4)[labels], labels, temperature) == pytest.approx(np.log(4), abs=0.02)


@pytest.mark.parametrize("scores", [np.zeros((0, 3)), np.zeros((5, 1)), np.full((5, 3), 7.0)])
def test_scores_that_say_nothing_keep_a_temperature_of_one(scores):
    assert best_temperature(scores, np.zeros(len(scores), dtype=np.int64)) == 1.0


def test_a_class_never_seen_has_no_say():
    scores, labels = drawn(40, 4, 1.0)
    seen = np.array([True, True, False, True, True])
    more, among = np.insert(scores, 2, UNSEEN_BIAS, axis=1), np.flatnonzero(seen)[labels]
    alone, positions = among_seen(more, among, seen)
    assert (alone == scores).all() and (positions == labels).all()
    temperature = best_temperature(scores, labels)
    assert best_temperature(alone, positions) == temperature
    assert best_temperature(more, among) > 1.3 * temperature, "the average of its scores counts"


def test_it_is_folded_into_a_head_but_for_classes_never_seen():
    head = LinearHead((4,), 3)
    torch.nn.init.normal_(head.linear.weight)
    with torch.no_grad():
        head.linear.weight[1] = 0
        head.linear.bias.copy_(torch.tensor([1.0, UNSEEN_BIAS, -1.0]))
    features = torch.randn(5, 4)
    before = head(features)
    after = fold_temperature(head, 5.0, np.array([True, False, True]))(features)
    assert torch.allclose(after[:, [0, 2]], before[:, [0, 2]] / 5) and (after[:, 1] == UNSEEN_BIAS).all()
