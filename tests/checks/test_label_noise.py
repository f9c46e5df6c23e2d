"""How many labels are random: known noise is found again, and none where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from toolkit.checks.finding import PASS, WARN
from toolkit.checks.label_errors import label_findings
from toolkit.checks.label_noise import label_noise, probabilities
from toolkit.data.manifest import TRAIN, VAL, Manifest

N, C = 600, 5


def scored(rate: float, seed: int = 0, sharpness: float = 4.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return scores whose softmax is the truth, labels drawn from it, and which of them were drawn anew."""
    random = np.random.default_rng(seed)
    scores = sharpness * random.standard_normal((N, C))
    cumulated = probabilities(scores, 1.0).cumsum(axis=1)
    labels = (random.random((N, 1)) > cumulated).sum(axis=1).clip(0, C - 1)
    redrawn = random.random(N) < rate
    labels[redrawn] = random.integers(0, C, int(redrawn.sum()))
    return scores, labels, redrawn


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_model_that_knows_its_doubts_has_no_noise(scale: float) -> None:
    scores, labels, _ = scored(0.0)
    found = label_noise(scale * scores, labels)
    assert not found.is_there and found.rate <= 0.02
    assert found.temperature == pytest.approx(scale, rel=0.2)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rate", [0.05, 0.15])
def test_noise_is_found_again_with_the_temperature_of_the_others(rate: float, seed: int) -> None:
    scores, labels, _ = scored(rate, seed)
    found = label_noise(scores, labels)
    assert found.is_there
    assert found.rate == pytest.approx(rate, rel=0.8)
    assert found.temperature == pytest.approx(1.0, rel=0.4)


def test_scores_that_say_nothing_have_no_noise() -> None:
    found = label_noise(np.zeros((10, 3)), np.zeros(10, np.int64))
    assert (found.rate, found.evidence) == (0.0, 0.0)


def manifest_of(labels: np.ndarray, splits: np.ndarray | None = None) -> Manifest:
    splits = np.full(len(labels), TRAIN, np.int8) if splits is None else splits
    names = tuple(f"{row}.png" for row in range(len(labels)))
    return Manifest(Path("/none"), tuple("abcde"), names, labels, splits)


def test_suspects_are_ordered_by_how_much_the_others_contradict_them() -> None:
    scores, labels, redrawn = scored(0.1)
    finding, suspects = label_findings(manifest_of(labels), np.arange(N), scores)
    assert finding.status == WARN
    assert suspects == sorted(suspects, key=lambda one: -one.suspicion)
    wrong = redrawn & (scores.argmax(1) != labels)
    named = [int(one.path.removesuffix(".png")) for one in suspects]
    assert np.isin(np.flatnonzero(wrong), named).mean() > 0.6
    assert wrong[named].mean() > 0.6


def test_a_val_split_that_the_others_contradict_is_seen() -> None:
    scores, labels, _ = scored(0.0, sharpness=12.0)
    splits = np.where(np.arange(N) < 40, VAL, TRAIN).astype(np.int8)
    assert label_findings(manifest_of(labels, splits), np.arange(N), scores)[0].status == PASS
    labels[:40] = (labels[:40] + 1) % C
    finding, _ = label_findings(manifest_of(labels, splits), np.arange(N), scores)
    assert finding.status == WARN and "of val" in finding.seen


def test_labels_without_any_connection_are_seen() -> None:
    scores, labels, _ = scored(0.0)
    finding, _ = label_findings(manifest_of(np.random.default_rng(1).permutation(labels)), np.arange(N), scores)
    assert finding.status == WARN and "nothing to do" in finding.seen


def test_a_handful_of_images_is_not_judged() -> None:
    scores, labels, _ = scored(0.5)
    finding, suspects = label_findings(manifest_of(labels[:10]), np.arange(10), scores[:10])
    assert finding.status == PASS and suspects == []
