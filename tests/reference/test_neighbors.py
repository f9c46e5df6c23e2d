"""NearestNeighbors: a brute-force search in NumPy, ties and all, whatever the shapes and blocks."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from toolkit.reference import neighbors
from toolkit.reference.neighbors import METRICS, NearestNeighbors, majority


def distances_of(queries: np.ndarray, x: np.ndarray, metric: str) -> np.ndarray:
    """Return (Q, N) in float64, from the definition; squared for l2, which keeps the order and is exact."""
    a, b = queries[:, None].astype(np.float64), x[None].astype(np.float64)
    if metric == "l1":
        return np.abs(a - b).sum(-1)
    if metric == "l2":
        return ((a - b) ** 2).sum(-1)
    lengths = np.sqrt((a**2).sum(-1)) * np.sqrt((b**2).sum(-1))
    return 1 - (a * b).sum(-1) / np.where(lengths > 0, lengths, 1)


def brute_force(queries, x, labels, k, metric):
    """Return distances, rows and labels, one query at a time, by the rules of the docstring."""
    rows, near, chosen = [], [], []
    for one in distances_of(queries, x, metric):
        order = sorted(range(len(x)), key=lambda row: (one[row], row))[:k]
        votes = {label: sum(labels[row] == label for row in order) for label in labels[order]}
        nearest = {label: min(one[row] for row in order if labels[row] == label) for label in votes}
        chosen.append(min(votes, key=lambda label: (-votes[label], nearest[label], label)))
        rows.append(order)
        near.append(one[order])
    near = np.sqrt(near) if metric == "l2" else np.array(near)
    return near, np.array(rows), np.array(chosen)


def small_problem(n, n_queries, width, levels, seed):
    """Return rows of few values, so that many distances are equal."""
    random = np.random.default_rng(seed)
    x = random.choice(levels, size=(n, width)).astype(np.uint8)
    return x, random.choice(levels, size=(n_queries, width)).astype(np.uint8), random.integers(0, 3, n)


@given(
    n=st.integers(1, 40),
    n_queries=st.integers(1, 9),
    width=st.integers(1, 300),
    k=st.integers(1, 7),
    kind=st.sampled_from(  # not l2 of floats: the centre is rounded, and with it the ties
        [("l1", torch.uint8), ("l1", torch.float32), ("l1", torch.float64), ("l2", torch.uint8)]
    ),
    levels=st.sampled_from([(0, 1), (0, 255), (254, 255), tuple(range(256))]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=150, deadline=None)
def test_equals_brute_force_with_ties(n, n_queries, width, k, kind, levels, seed):
    k, (metric, dtype) = min(k, n), kind
    x, queries, labels = small_problem(n, n_queries, width, levels, seed)
    # Blocks this small have borders everywhere.
    before = neighbors.TRAIN_ROWS, neighbors.QUERY_ROWS
    neighbors.TRAIN_ROWS, neighbors.QUERY_ROWS = 7, 2
    try:
        scale = 1 if dtype == torch.uint8 else 0.25  # quarters sum without rounding in float32 too
        model = NearestNeighbors(k, metric).fit(torch.from_numpy(x).to(dtype) * scale, torch.from_numpy(labels))
        given_queries = torch.from_numpy(queries).to(dtype) * scale
        near, rows = model.neighbors(given_queries)
        predicted = model.predict(given_queries)
    finally:
        neighbors.TRAIN_ROWS, neighbors.QUERY_ROWS = before
    expected_near, expected_rows, expected = brute_force(queries * scale, x * scale, labels, k, metric)
    assert rows.numpy().tolist() == expected_rows.tolist()
    assert near.numpy() == pytest.approx(expected_near, rel=1e-12)
    assert predicted.tolist() == expected.tolist()


@pytest.mark.parametrize("metric", ["l1", "l2"])
@pytest.mark.parametrize("seed", range(8))
def test_distances_of_bytes_are_exact(metric, seed):
    """So no tie is lost to rounding; the root itself may be rounded to either side."""
    x, queries, labels = small_problem(40, 9, 100, (0, 1), seed)
    model = NearestNeighbors(7, metric).fit(torch.from_numpy(x), torch.from_numpy(labels))
    near, rows = model.neighbors(torch.from_numpy(queries))
    expected, expected_rows, _ = brute_force(queries, x, labels, 7, metric)
    assert near.numpy() == pytest.approx(expected, rel=1e-15, abs=0) and np.array_equal(rows.numpy(), expected_rows)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_of_equals_the_earlier_rows_are_taken_wherever_they_stand(k):
    query = torch.zeros(1, 1, dtype=torch.uint8)
    for values in itertools.product((0, 1, 2), repeat=5):
        x = torch.tensor(values, dtype=torch.uint8)[:, None]
        near, rows = NearestNeighbors(k, "l2").fit(x, torch.arange(5)).neighbors(query)
        expected = sorted(range(5), key=lambda row: (values[row], row))[:k]
        assert rows.tolist() == [expected] and near.tolist() == [[values[row] for row in expected]]


def test_rows_far_from_zero_keep_their_distances():
    """‖a‖² + ‖b‖² − 2 a·b is 10¹⁷ here, of which float64 keeps 16 digits."""
    x = 1e8 + torch.randn(30, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    near, rows = NearestNeighbors(5, "l2").fit(x, torch.arange(30)).neighbors(x[:9] + 0.5)
    expected, expected_rows, _ = brute_force((x[:9] + 0.5).numpy(), x.numpy(), np.arange(30), 5, "l2")
    assert near.numpy() == pytest.approx(expected, rel=1e-8) and np.array_equal(rows.numpy(), expected_rows)


def test_sums_that_a_small_dtype_cannot_hold():
    half = torch.tensor([[0.0] * 100, [1000.0] * 100], dtype=torch.float16)  # whose largest number is 65,504
    near, _ = NearestNeighbors(2, "l1").fit(half, torch.arange(2)).neighbors(half[:1])
    assert near.tolist() == [[0.0, 100_000.0]]
    wide = torch.tensor([[255] * 65_794 + [1]], dtype=torch.uint8)  # the sum is odd and over 2²⁴: no float32
    near, _ = NearestNeighbors(1, "l1").fit(wide, torch.arange(1)).neighbors(torch.zeros_like(wide))
    assert near.tolist() == [[16_777_471.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("metric", METRICS)
def test_floating_rows_equal_brute_force(metric, dtype, monkeypatch):
    monkeypatch.setattr(neighbors, "TRAIN_ROWS", 33)
    generator = torch.Generator().manual_seed(0)
    x = (100 + torch.randn(100, 12, generator=generator)).to(dtype)  # far from 0, where a² + b² − 2ab loses digits
    x -= 100 * (metric == "cosine")
    queries, labels = x[:20] + 0.5 * torch.randn(20, 12, generator=generator).to(dtype), torch.arange(100) % 4
    model = NearestNeighbors(5, metric).fit(x, labels)
    near, rows = model.neighbors(queries)
    expected_near, expected_rows, expected = brute_force(queries.numpy(), x.numpy(), labels.numpy(), 5, metric)
    assert rows.tolist() == expected_rows.tolist()
    assert near.numpy() == pytest.approx(expected_near, rel=1e-5 if dtype == torch.float32 else 1e-9)
    assert model.predict(queries).tolist() == expected.tolist()


@pytest.mark.parametrize(("metric", "sklearns"), [("l1", "manhattan"), ("l2", "euclidean"), ("cosine", "cosine")])
def test_one_neighbour_is_scikit_learns_on_images(metric, sklearns):
    """More rows than one block, images of uint8."""
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (4500, 3, 4, 4), dtype=np.uint8), random.integers(0, 10, 4500)
    queries = random.integers(0, 256, (70, 3, 4, 4), dtype=np.uint8)
    theirs = KNeighborsClassifier(1, metric=sklearns, algorithm="brute")
    theirs.fit(images.reshape(4500, -1).astype(np.float64), labels)
    far, rows = theirs.kneighbors(queries.reshape(70, -1).astype(np.float64))
    model = NearestNeighbors(1, metric).fit(torch.from_numpy(images), torch.from_numpy(labels))
    near, mine = model.neighbors(torch.from_numpy(queries))
    assert near.numpy() == pytest.approx(far, rel=1e-9)
    assert (mine.numpy() == rows).mean() > 0.98  # scikit-learn does not say which of equals it takes
    assert mine.max() >= neighbors.TRAIN_ROWS


def test_the_largest_distance_of_wide_rows_does_not_overflow():
    x = torch.tensor([[0] * 10_000, [255] * 10_000], dtype=torch.uint8)
    near, _ = NearestNeighbors(2, "l1").fit(x, torch.tensor([0, 1])).neighbors(x)
    assert near.tolist() == [[0.0, 2_550_000.0]] * 2
    near, _ = NearestNeighbors(2, "l2").fit(x, torch.tensor([0, 1])).neighbors(x)
    assert near.tolist() == [[0.0, 25_500.0]] * 2


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_two_threads_find_what_one_finds_and_torchs_threads_stay(dtype, monkeypatch):
    monkeypatch.setattr(neighbors, "TRAIN_ROWS", 50)
    x = torch.randint(0, 4, (300, 9), generator=torch.Generator().manual_seed(0)).to(dtype)
    model = NearestNeighbors(3, "l1").fit(x, torch.arange(300))
    alone = model.neighbors(x)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        together = model.neighbors(x)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


@pytest.mark.parametrize(("own", "n_threads", "apart"), [(True, 2, True), (True, 1, False), (False, 2, False)])
def test_own_threads_have_one_of_torchs_each(own, n_threads, apart):
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    found = []
    try:
        with neighbors._workers(own) as run:
            run(lambda i: found.append((i, threading.current_thread() is not threading.main_thread())), range(5))
            assert torch.get_num_threads() == (1 if apart else n_threads)
    finally:
        torch.set_num_threads(before)
    assert sorted(found) == [(i, apart) for i in range(5)]


def test_only_l1_asks_for_threads_of_its_own(monkeypatch):
    asked, workers = [], neighbors._workers
    monkeypatch.setattr(neighbors, "_workers", lambda own: asked.append(own) or workers(own))
    for metric in METRICS:
        NearestNeighbors(1, metric).fit(torch.ones(3, 2), torch.arange(3)).predict(torch.ones(1, 2))
    assert asked == [True, False, False]


def test_votes():
    labels = torch.tensor([[2, 0, 0, 2], [2, 0, 0, 2], [2, 1, 0, 0], [5, 5, 1, 1], [9, 7, 3, 1], [7, 7, 7, 1]])
    inf = torch.inf
    distances = torch.tensor(
        [[1.0, 2, 3, 4], [1, 1, 2, 2], [0, 1, 2, 3], [1, 2, 3, inf], [3, 3, 3, 3], [inf, inf, inf, inf]]
    )
    assert majority(labels, distances).tolist() == [2, 0, 0, 5, 1, 7]


def test_the_defaults_are_the_notes_nearest_neighbour():
    model = NearestNeighbors().fit(torch.tensor([[0.0, 0.0], [3.0, 0.0], [2.0, 2.0]]), torch.tensor([4, 5, 6]))
    near, rows = model.neighbors(torch.tensor([[0.0, 3.5]]))
    assert (near.tolist(), rows.tolist()) == ([[3.5]], [[0]])  # or, by Σ (a − b)², the last one


def test_the_cosine_of_short_and_of_long_rows():
    x = torch.tensor([[0.125, 0.0], [0.0, 0.25], [300.0, 400.0]], dtype=torch.float64)
    near, rows = NearestNeighbors(3, "cosine").fit(x, torch.arange(3)).neighbors(x[2:] / 1000)
    assert near[0].tolist() == pytest.approx([0.0, 0.2, 0.4], abs=1e-12) and rows.tolist() == [[2, 1, 0]]


def test_nothing_to_predict_and_rows_of_zeros():
    x = torch.zeros(3, 4)
    model = NearestNeighbors(2, "cosine").fit(x, torch.tensor([4, 4, 1]))
    assert model.predict(x[:0]).tolist() == []
    near, rows = model.neighbors(x[:1])
    assert near.tolist() == [[1.0, 1.0]] and rows.tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: NearestNeighbors(0), "k ≥ 1, got 0"),
        (lambda: NearestNeighbors(1, "hamming"), "l1, l2, cosine, got 'hamming'"),
        (lambda: NearestNeighbors(4).fit(torch.zeros(3, 2), torch.zeros(3).long()), "at least k = 4 rows, got 3"),
        (lambda: NearestNeighbors().fit(torch.zeros(3, 2), torch.zeros(2).long()), "3 whole-number labels"),
        (lambda: NearestNeighbors().fit(torch.zeros(3, 2), torch.zeros(3)), "whole-number labels, got torch.float32"),
        (lambda: NearestNeighbors().fit(torch.zeros(3, 2).int(), torch.zeros(3).long()), "uint8 or floating"),
        (lambda: NearestNeighbors().predict(torch.zeros(3, 2)), "fit before predict"),
        (lambda: NearestNeighbors().fit(torch.full((3, 2), torch.inf), torch.arange(3)), "got 6 that are not"),
        (lambda: fitted().predict(torch.full((1, 2), torch.nan)), "finite numbers, got 2 that are not"),
        (lambda: fitted().predict(torch.zeros(3, 5)), r"\(Q, \*\(2,\)\), got torch.float32 \(3, 5\)"),
        (lambda: fitted().predict(torch.zeros(3, 2).double()), "torch.float32 .* got torch.float64"),
    ],
)
def test_what_does_not_fit_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def fitted():
    return NearestNeighbors().fit(torch.zeros(3, 2), torch.zeros(3).long())
