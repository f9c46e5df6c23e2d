"""Probes of every depth: the leave-one-out scores of the heads themselves, on a sample where there are many images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.heads.choose import choose_head
from toolkit.planning import probes as room
from toolkit.planning.probes import probe_stages, stratified

WIDTHS, TAPS = (3, 4, 5), (1, 4, 6)


def rows(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Features whose last part tells the classes apart, whose first knows nothing."""
    generator = np.random.default_rng(0)
    labels = np.arange(n) % 3
    features = generator.normal(size=(n, sum(WIDTHS))).astype(np.float32) + 2
    features[:, 3:7] += 0.7 * np.eye(4, dtype=np.float32)[labels]
    features[:, 7:] += 4 * np.eye(5, dtype=np.float32)[labels]
    return features, labels


def test_every_stage_alone_and_the_last_ones_together() -> None:
    features, labels = rows(120)
    found = probe_stages(features, labels, 3, WIDTHS, TAPS)
    assert [probe.taps for probe in found] == [(1,), (4,), (6,), (4, 6), (1, 4, 6)]
    first, middle, last = (probe.accuracy for probe in found[:3])
    assert first < 0.55 and first < middle < last and last > 0.9
    assert all(probe.n == 120 and 0 <= probe.se < 0.05 for probe in found)
    assert found[0].to_dict()["taps"] == [1] and found[0].to_dict()["head"] == "ridge"


def test_they_are_what_the_choice_of_a_head_sees() -> None:
    features, labels = rows(90)
    found = {probe.taps: probe for probe in probe_stages(features, labels, 3, WIDTHS, TAPS)}
    chosen = choose_head(features, labels, 3, WIDTHS, kind="ridge")
    for candidate in chosen.candidates:
        probe = found[tuple(TAPS[place] for place in candidate.taps)]
        assert (probe.accuracy, probe.se) == (candidate.accuracy, candidate.se)
        assert probe.nll == pytest.approx(candidate.nll)


def test_a_single_stage_is_one_probe() -> None:
    features, labels = rows(30)
    assert [probe.taps for probe in probe_stages(features[:, :3], labels, 3, (3,), (5,))] == [(5,)]


def test_of_many_images_a_sample_is_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "PROBED_AT_MOST", 60)
    features, labels = rows(200)
    assert {probe.n for probe in probe_stages(features, labels, 3, WIDTHS, TAPS)} == {60}


@pytest.mark.parametrize(
    ("n_images", "n_classes", "probed"),
    [
        (700, 5, 700),
        (60_000, 10, 1_000),
        (60_000, 50, 1_000),
        (60_000, 200, 4_000),
        (6_000, 200, 4_000),
        (9_000, 1_500, 9_000),
        (1_300_000, 1_000, 20_000),
        (1_300_000, 30_000, 20_000),
    ],
)
def test_the_sample_grows_with_the_classes(n_images: int, n_classes: int, probed: int) -> None:
    assert room.probed_images(n_images, n_classes) == probed


def test_many_classes_of_a_few_images_are_told_apart() -> None:
    labels = np.repeat(np.arange(1_100), 2)
    features = np.random.default_rng(0).normal(size=(1_100, 64)).astype(np.float32)[labels]
    features += 0.1 * np.random.default_rng(1).normal(size=features.shape).astype(np.float32)
    (found,) = probe_stages(features, labels, 1_100, (64,), (0,))
    assert found.n == 2_200 and found.accuracy > 0.9


def test_classes_of_a_single_image_are_not_measured_rather_than_always_wrong() -> None:
    features, _ = rows(90)
    assert probe_stages(features, np.arange(90), 90, WIDTHS, TAPS) == ()
    assert probe_stages(features, np.minimum(np.arange(90), 50), 90, WIDTHS, TAPS) == ()
    assert len(probe_stages(features, np.minimum(np.arange(90), 40), 90, WIDTHS, TAPS)) == 5


@given(st.lists(st.integers(0, 4), min_size=1, max_size=200), st.integers(1, 100), st.integers(0, 5))
def test_a_sample_has_its_share_of_every_class(labels: list[int], most: int, seed: int) -> None:
    values = np.array(labels)
    picked = stratified(values, most, seed)
    assert len(picked) == min(most, len(values)) == len(set(picked.tolist()))
    assert (np.diff(picked) > 0).all()
    for label in set(labels):
        share = (values == label).sum() * len(picked) / len(values)
        assert abs((values[picked] == label).sum() - share) <= 1
