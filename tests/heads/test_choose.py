"""choose_head: the simpler of equals, the better one where it is clear, and nothing out of nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.heads.rows import OnDisk, clouds, with_views
from toolkit.errors import DataError, SettingError
from toolkit.heads import choose
from toolkit.heads.choose import KINDS, checked_tap_sets, choose_head
from toolkit.heads.linear import LinearHead
from toolkit.heads.logistic import LogisticHead
from toolkit.heads.neighbours import NeighbourHead
from toolkit.heads.ridge import RidgeHead
from toolkit.heads.votes import NeighbourVotes

SIX = (6, 6)
HEADS = {"ridge": RidgeHead, "logistic": LogisticHead, "knn": NeighbourHead}


def on_taps(*informative: bool, n: int = 60, noise: float = 1.2) -> tuple[np.ndarray, np.ndarray]:
    """Return features of taps of width 6, each with or without information about 3 classes, and labels."""
    labels = np.repeat(np.arange(3), n)
    generator = np.random.default_rng(3)
    parts = [
        generator.normal(0, 1, (3, 6))[labels] * knows + generator.normal(0, noise, (3 * n, 6)) for knows in informative
    ]
    return np.concatenate(parts, axis=1).astype(np.float32), labels


def ring(n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Return directions on a circle, of which every eighth part changes class: no linear head can tell them apart."""
    angle = np.random.default_rng(0).uniform(0, 2 * np.pi, n)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32), (angle / (np.pi / 4)).astype(int) % 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_tap_without_information_is_left_out(kind):
    chosen = choose_head(*on_taps(False, True), 3, SIX, kind=kind)
    assert chosen.taps == (1,) and chosen.kind == kind
    assert [one.taps for one in chosen.candidates] == [(1,), (0, 1)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_tap_that_helps_clearly_is_taken(kind):
    chosen = choose_head(*on_taps(True, True, noise=2.5, n=100), 3, SIX, kind=kind)
    alone, both = chosen.candidates
    assert chosen.taps == (0, 1) and both.accuracy > alone.accuracy and both.nll < alone.nll


def test_ridge_wins_where_all_are_equal():
    chosen = choose_head(*clouds([40, 40, 40], noise=0.05), 3, (6, 10))
    assert (chosen.kind, chosen.taps) == ("ridge", (1,))
    assert [one.kind for one in chosen.candidates] == ["ridge", "ridge", "logistic", "knn"]
    assert isinstance(chosen.head, LinearHead)


def test_neighbours_win_where_no_plane_can_tell():
    features, labels = ring()
    chosen = choose_head(features, labels, 2, (2,))
    assert chosen.kind == "knn" and chosen.candidate.accuracy > 0.9 > 0.7 > chosen.candidates[0].accuracy
    assert isinstance(chosen.head, NeighbourVotes)
    assert (chosen.head(torch.from_numpy(features)).argmax(1).numpy() == labels).mean() > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_the_temperature_is_in_the_head(kind):
    features, labels = on_taps(True, noise=1.5, n=200)
    chosen = choose_head(features[::2], labels[::2], 3, (6,), kind=kind)
    alone = HEADS[kind]((6,)).fit(features[::2], labels[::2], 3)
    fresh, truth = torch.from_numpy(features[1::2]), torch.from_numpy(labels[1::2])
    assert chosen.strength == alone.strength_
    assert torch.allclose(chosen.head(fresh), alone.head_(fresh) / chosen.temperature, atol=1e-4)
    calibrated, raw = (torch.nn.functional.cross_entropy(head(fresh), truth) for head in (chosen.head, alone.head_))
    assert calibrated.item() == pytest.approx(chosen.candidate.nll, abs=0.1), "what was promised out of fold"
    assert calibrated < raw + 0.01 and (kind != "ridge" or calibrated < raw - 0.03)


@pytest.mark.parametrize("kind", ["auto", *KINDS])
def test_random_features_promise_no_more_than_chance(kind):
    generator = np.random.default_rng(0)
    features, labels = generator.normal(size=(400, 12)).astype(np.float32), generator.integers(0, 4, 400)
    chosen = choose_head(features, labels, 4, SIX, kind=kind)
    for one in chosen.candidates:
        assert abs(one.accuracy - 0.25) < 4 * 0.0217 and one.nll == pytest.approx(np.log(4), abs=0.03)


def test_of_taps_that_know_nothing_more_few_are_taken():
    taken = []
    for seed in range(30):
        generator = np.random.default_rng(seed)
        last, labels = clouds([60, 60, 60], widths=(6,), noise=2.0, seed=seed)
        noise = generator.normal(size=(len(last), 6)).astype(np.float32)
        taken.append(choose_head(np.hstack([noise, last]), labels, 3, SIX, kind="ridge").taps)
    assert taken.count((1,)) >= 20, "another tap wins by chance alone, and seldom"


@pytest.mark.parametrize("kind", ["auto", *KINDS])
def test_views_of_an_image_do_not_vouch_for_it(kind):
    """Random images with three nearly equal views each: without their numbers all would look right."""
    generator = np.random.default_rng(1)
    features, labels = generator.normal(size=(150, 120)).astype(np.float32), generator.integers(0, 3, 150)
    features, labels, images = with_views(features, labels, 3)
    chosen = choose_head(features, labels, 3, (120,), kind=kind, images=images)
    assert all(one.accuracy < 0.5 for one in chosen.candidates)
    leaking = choose_head(features, labels, 3, (120,), kind=kind)
    assert max(one.accuracy for one in leaking.candidates) > 0.6


@pytest.mark.parametrize("kind", ["auto", *KINDS])
def test_features_on_disk_are_never_read_whole(kind, monkeypatch):
    monkeypatch.setattr(choose, "NEIGHBOURS_UP_TO", 10_000)
    features, labels = clouds([2500, 2000, 1500], noise=3.0)
    stored, whole = (choose_head(rows, labels, 3, (6, 10), kind=kind) for rows in (OnDisk(features), features))
    assert stored.candidates == whole.candidates
    fresh = torch.from_numpy(features[:9, -6 - 10 :] if stored.taps == (0, 1) else features[:9, 6:])
    assert torch.equal(stored.head(fresh), whole.head(fresh))


def test_a_mapped_file_is_taken(tmp_path):
    features, labels = clouds([50, 40, 30])
    np.save(tmp_path / "x.npy", features)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    from_file, from_memory = (choose_head(rows, labels, 3, (6, 10)).candidates for rows in (mapped, features))
    assert [one.nll for one in from_file] == pytest.approx([one.nll for one in from_memory], rel=1e-5)
    # what may not be written to is multiplied by another library, whose last bits differ on some CPUs
    assert [replace(one, nll=0.0) for one in from_file] == [replace(one, nll=0.0) for one in from_memory]


@pytest.mark.parametrize("kind", ["auto", *KINDS])
def test_equal_input_gives_equal_heads(kind):
    features, labels = clouds([30, 20, 25], noise=2.0)
    one, other = (choose_head(features.copy(), labels.copy(), 3, (6, 10), kind=kind, seed=4) for _ in range(2))
    assert one.candidates == other.candidates and str(one) == str(other)
    state, again = one.head.state_dict(), other.head.state_dict()
    assert all(torch.equal(state[key], again[key]) for key in state)


def test_above_the_limit_ridge_chooses_the_taps(monkeypatch):
    monkeypatch.setattr(choose, "OWN_TAPS_UP_TO", 100)
    chosen = choose_head(*on_taps(False, True), 3, SIX, kind="logistic")
    assert [(one.kind, one.taps) for one in chosen.candidates] == [
        ("ridge", (1,)),
        ("ridge", (0, 1)),
        ("logistic", (1,)),
    ]
    assert chosen.kind == "logistic"


def test_auto_leaves_out_what_would_take_too_long(monkeypatch):
    monkeypatch.setattr(choose, "LOGISTIC_UP_TO", 1)
    monkeypatch.setattr(choose, "NEIGHBOURS_UP_TO", 1)
    assert {one.kind for one in choose_head(*on_taps(True), 3, (6,)).candidates} == {"ridge"}


def test_it_prints_a_line_a_candidate():
    text = str(choose_head(*on_taps(False, True), 3, SIX))
    assert len(text.splitlines()) == 4 and text.count("→") == 1
    assert "→ ridge on tap 1: accuracy 0." in text and "knn on tap 1" in text


def test_tap_sets_are_put_in_order():
    assert checked_tap_sets(None, 3) == [(2,), (1, 2), (0, 1, 2)]
    assert checked_tap_sets([(2, 0), (1,), (0, 2), (1, 1)], 3) == [(1,), (0, 2)]


@pytest.mark.parametrize("settings", [{"kind": "svm"}, {"tap_sets": [(2,)]}, {"tap_sets": []}, {"tap_sets": [()]}])
def test_what_does_not_exist_is_refused(settings):
    with pytest.raises(SettingError):
        choose_head(*on_taps(True, True), 3, SIX, **settings)


@pytest.mark.parametrize("kind", ["auto", "ridge", "logistic", "knn"])
def test_features_that_are_no_numbers_are_refused(kind):
    features, labels = on_taps(True, True)
    features[5, 3] = np.nan
    with pytest.raises(DataError, match="not finite"):
        choose_head(features, labels, 3, SIX, kind=kind)


@pytest.mark.parametrize(
    ("shape", "labels"), [((4, 6), [0, 1, 0]), ((3, 7), [0, 1, 0]), ((3, 6), [0, 3, 0]), ((0, 6), [])]
)
def test_shapes_and_labels_that_do_not_fit_are_refused(shape, labels):
    with pytest.raises(ValueError, match="expected"):
        choose_head(np.zeros(shape, np.float32), np.array(labels, dtype=np.int64), 3, (6,))
