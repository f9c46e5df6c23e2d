"""Neighbours: exact, the same by every way of searching, ties as stated."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from toolkit.baselines import neighbours as module
from toolkit.baselines.neighbours import METRICS, Neighbours
from toolkit.errors import SettingError
from toolkit.reference.neighbors import NearestNeighbors


def pixels(n: int, side: int = 12, levels: int = 256, seed: int = 0) -> torch.Tensor:
    values = np.random.default_rng(seed).integers(0, levels, (n, side * side)) * (255 // (levels - 1))
    return torch.from_numpy(values.astype(np.uint8))


def by_hand(rows: torch.Tensor, references: torch.Tensor, metric: str, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return distances and row numbers, one by one in double precision, equals by row number."""
    ours, theirs = references.double().numpy(), rows.double().numpy()
    distances = np.empty((len(rows), k))
    numbers = np.empty((len(rows), k), np.int64)
    for i, row in enumerate(theirs):
        if metric == "l1":
            d = np.abs(ours - row).sum(1)
        elif metric == "l2":
            d = np.sqrt(((ours - row) ** 2).sum(1))
        else:
            d = 1 - ours @ row / np.maximum(np.linalg.norm(ours, axis=1) * np.linalg.norm(row), 1e-300)
        order = np.lexsort((np.arange(len(d)), np.round(d, 9)))[:k]
        distances[i], numbers[i] = d[order], order
    return distances, numbers


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("levels", "side"), [(256, 12), (2, 12), (2, 4)], ids=["distinct", "ties", "few numbers"])
def test_it_finds_what_one_finds_by_hand(metric: str, levels: int, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_DISTANCES", 700)  # several blocks
    monkeypatch.setattr(module, "PAIR_NUMBERS", 1000)
    references, rows = pixels(100, side, levels), pixels(30, side, levels, seed=1)
    search = Neighbours(references, torch.zeros(100, dtype=torch.int64), 2, k=7, metric=metric)
    distances, numbers = search.nearest(rows)
    expected, order = by_hand(rows, references, metric, 7)
    assert np.allclose(distances.numpy(), expected, rtol=0, atol=1e-6 if metric == "l2" else 1e-9)
    if metric != "cosine" or levels > 2:  # equal cosines of 0-1 rows differ in their last bits
        assert (numbers.numpy() == order).all()


@pytest.mark.parametrize("metric", METRICS)
def test_it_predicts_what_the_reference_predicts(metric: str) -> None:
    references, rows, labels = pixels(120, 12, 5), pixels(40, 12, 5, seed=1), torch.arange(120) % 4
    ours = Neighbours(references, labels, 4, k=5, metric=metric)(rows).argmax(1)
    assert torch.equal(ours, NearestNeighbors(k=5, metric=metric).fit(references, labels).predict(rows))


def test_bounds_spare_distances_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    references, rows = pixels(300, 13), pixels(40, 13, seed=1)
    search = Neighbours(references, torch.zeros(300, dtype=torch.int64), 2, k=3)
    assert search._prunes()
    pruned = search.nearest(rows)
    whole = search._whole(rows)
    assert all(torch.equal(one, other) for one, other in zip(pruned, whole, strict=True))


def test_colour_images_and_rows_of_odd_length_are_found_too() -> None:
    for n_numbers in (3 * 64, 151):
        references = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (60, n_numbers), np.uint8))
        search = Neighbours(references, torch.zeros(60, dtype=torch.int64), 2, k=4)
        assert search._prunes()
        assert (search.nearest(references[:9])[1][:, 0] == torch.arange(9)).all()
        assert torch.equal(search.nearest(references[:9])[1], search._whole(references[:9])[1])


def test_float_features_are_searched_in_double_precision() -> None:
    generator = np.random.default_rng(0)
    references = torch.from_numpy(generator.normal(size=(50, 20)).astype(np.float32))
    rows = torch.from_numpy(generator.normal(size=(9, 20)).astype(np.float32))
    for metric in METRICS:
        search = Neighbours(references, torch.zeros(50, dtype=torch.int64), 2, k=5, metric=metric)
        distances, numbers = search.nearest(rows)
        expected, order = by_hand(rows, references, metric, 5)
        assert distances.dtype == torch.float64 and np.allclose(distances.numpy(), expected, atol=1e-9)
        assert (numbers.numpy() == order).all()


def test_votes_and_their_ties() -> None:
    labels = torch.tensor([0, 1, 1, 2, 2, 0])
    search = Neighbours(torch.zeros(6, 4), labels, 4, k=4)

    def winner(*numbers: int) -> int:
        return int(search.votes(torch.arange(4.0)[None], torch.tensor([numbers])).argmax())

    assert winner(0, 1, 2, 3) == 1  # two votes against one and one
    assert winner(0, 1, 2, 5) == 0  # two each: the nearest of all is of class 0
    assert winner(3, 1, 2, 4) == 2 and winner(1, 3, 4, 2) == 1
    assert winner(0, 1, 3, 4) == 2  # two votes beat the nearest one
    alike = torch.ones(1, 4)
    assert int(search.votes(alike, torch.tensor([[3, 1, 2, 4]])).argmax()) == 1  # equally near: the first class
    scores = search.votes(alike, torch.tensor([[0, 1, 2, 5]]))
    shares = scores.double().softmax(1)[0]
    assert shares.tolist() == pytest.approx([x / 5.01 for x in (2.26, 2.25, 0.25, 0.25)], rel=1e-6)


def test_the_winner_is_the_majority_by_hand() -> None:
    references, rows = pixels(80, 5, 3), pixels(50, 5, 3, seed=2)
    labels = torch.arange(80) % 4
    search = Neighbours(references, labels, 4, k=6)
    for found, far, nearest in zip(search(rows).argmax(1).tolist(), *by_hand(rows, references, "l1", 6), strict=True):
        names = [int(labels[n]) for n in nearest]
        counts = Counter(names)
        voters = zip(far, names, strict=True)
        assert found == min(voter for voter in voters if counts[voter[1]] == max(counts.values()))[1]


def test_one_nearest_neighbour_of_a_training_image_is_itself() -> None:
    references = pixels(40)
    search = Neighbours(references, torch.arange(40) % 3, 3, k=1)
    assert torch.equal(search(references).argmax(1), torch.arange(40) % 3)


def test_the_company_of_an_image_changes_nothing() -> None:
    references, rows = pixels(90, 9, 4), pixels(20, 9, 4, seed=3)
    for metric in METRICS:
        search = Neighbours(references, torch.arange(90) % 3, 3, k=5, metric=metric)
        alone = torch.cat([search(row[None]) for row in rows])
        assert torch.equal(search(rows).argmax(1), alone.argmax(1))


def test_a_saved_one_is_rebuilt(tmp_path: object) -> None:
    search = Neighbours(pixels(30), torch.arange(30) % 3, 3, k=5, metric="l2")
    again = Neighbours.from_dict(search.to_dict(), 3)
    again(pixels(2))  # what was prepared for the zeros must not be used for what is loaded now
    again.load_state_dict(search.state_dict())
    assert torch.equal(again(pixels(5, seed=4)), search(pixels(5, seed=4)))


def test_no_rows_give_no_scores() -> None:
    assert Neighbours(pixels(5), torch.zeros(5, dtype=torch.int64), 3, k=2)(pixels(0)).shape == (0, 3)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"k": 0}, "k: 1 to 5 expected, as many as there are training images, got 0"),
        ({"k": 6}, "k: 1 to 5 expected"),
        ({"k": 1, "metric": "l3"}, "unknown metric 'l3'"),
        ({"k": 1, "search": "fast"}, "unknown search 'fast'"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, object], text: str) -> None:
    with pytest.raises(SettingError, match=text):
        Neighbours(pixels(5), torch.zeros(5, dtype=torch.int64), 2, **settings)
    with pytest.raises(SettingError, match="rows of 144 numbers expected, got 9"):
        Neighbours(pixels(5), torch.zeros(5, dtype=torch.int64), 2, k=1)(torch.zeros(2, 9))


@pytest.mark.parametrize("metric", METRICS)
def test_an_approximate_index_finds_nearly_all(metric: str) -> None:
    pytest.importorskip("faiss")
    references, rows = pixels(500, 8), pixels(50, 8, seed=5)
    labels = torch.arange(500) % 5
    exact = Neighbours(references, labels, 5, k=5, metric=metric).nearest(rows)
    found = Neighbours(references, labels, 5, k=5, metric=metric, search="approximate").nearest(rows)
    shared = [len(set(a) & set(b)) for a, b in zip(exact[1].tolist(), found[1].tolist(), strict=True)]
    assert sum(shared) > 0.9 * 5 * 50
    assert torch.allclose(exact[0][:, 0], found[0][:, 0], rtol=1e-4) or metric == "cosine"


def test_without_faiss_the_approximate_index_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "faiss", None)
    search = Neighbours(pixels(5), torch.zeros(5, dtype=torch.int64), 2, k=1, search="approximate")
    with pytest.raises(SettingError, match=r"pip install 'transfer-toolkit\[ann\]'"):
        search(pixels(1))
