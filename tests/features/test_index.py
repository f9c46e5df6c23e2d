"""Locating views in shards, and taking rows out of them."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.features.index import Column, Index
from toolkit.features.shard import write_shard

# Few and awkward: equal beginnings, zero bytes within and at the end.
DIGESTS = [b"\1" + bytes(15), b"\1" * 16, b"\1" * 15 + b"\0", bytes(15) + b"\1", b"\xff" * 16, b"\0\1" * 8, b"\1\0" * 8]
UNKNOWN = bytes(16)


def as_digests(numbers: list[int]) -> np.ndarray:
    return np.frombuffer(b"".join([*DIGESTS, UNKNOWN][number] for number in numbers), np.uint8).reshape(-1, 16).copy()


class Known:
    """Stands for an open shard."""

    def __init__(self, rows: list[tuple[int, int]], names: set[str]) -> None:
        self.digests = as_digests([digest for digest, _ in rows])
        self.views = np.array([view for _, view in rows], np.int32)
        self.names = frozenset(names)


row = st.tuples(st.integers(0, len(DIGESTS)), st.integers(0, 5))
shard = st.tuples(st.lists(row, max_size=12), st.sets(st.sampled_from(["a", "b"]), min_size=1))


@given(
    shards=st.lists(shard, max_size=4),
    wanted=st.lists(st.integers(0, len(DIGESTS)), max_size=8),
    n_views=st.integers(1, 4),
    side_by_side=st.booleans(),
)
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
def test_locate_finds_what_a_search_through_all_rows_finds(shards, wanted, n_views, side_by_side):
    if side_by_side:
        shards = [(sorted(rows), names) for rows, names in shards]
    index = Index([])
    index.shards = [Known(rows, names) for rows, names in shards]
    places = index.locate(["a", "b"], as_digests(wanted), n_views)
    for name, place in places.items():
        assert place.shape == (len(wanted), n_views, 2) and place.dtype == np.int32
        for image, digest in enumerate(wanted):
            for view in range(n_views):
                number, at = place[image, view].tolist()
                holders = [i for i, (rows, names) in enumerate(shards) if name in names and (digest, view) in rows]
                if holders and digest < len(DIGESTS):
                    assert number == holders[0] and shards[number][0][at] == (digest, view)
                else:
                    assert number == -1


def test_views_beyond_the_first_256_and_the_first_byte(tmp_path):
    digests = as_digests([1, 1, 1, 2])
    write_shard(
        tmp_path / "m" / "v", digests, np.array([1, 256, 257, 256], np.int32), {"a": torch.arange(4.0)[:, None]}
    )
    index = Index([tmp_path / "m" / "v"])
    index.refresh()
    place = index.locate(["a"], as_digests([1, 2]), 258)["a"]
    assert [place[0, view].tolist() for view in (0, 1, 256, 257)] == [[-1, -1], [0, 0], [0, 1], [0, 2]]
    assert place[1, 256].tolist() == [0, 3] and (place[1, :256] == -1).all()


def test_new_shards_are_seen_and_missing_folders_are_empty(tmp_path):
    index = Index([tmp_path / "m" / "clean", tmp_path / "m" / "others"])
    index.refresh()
    assert index.shards == [] and index.open(index.locate(["a"], as_digests([0]), 1)) == {"a": []}
    for number in range(3):
        folder = tmp_path / "m" / ("clean" if number % 2 else "others")
        write_shard(folder, as_digests([number]), np.zeros(1, np.int32), {"a": torch.full((1, 2), float(number))})
        index.refresh()
        assert len(index.shards) == number + 1
        place = index.locate(["a"], as_digests([0, 1, 2]), 1)
        assert (place["a"][:, 0, 0] >= 0).tolist() == [number >= 0, number >= 1, number >= 2]
    column = Column(index.open(place)["a"], place["a"].reshape(-1, 2), (2,), torch.float32)
    assert column.take(np.array([2, 0, 1]))[:, 0].tolist() == [2.0, 0.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=str)
def test_rows_are_taken_in_the_order_in_which_they_are_asked_for(dtype):
    generator = random.Random(0)
    tensors = [torch.randint(0, 200, (size, 3, 2)).to(dtype) for size in (4, 1, 7)]
    place = [(shard, at) for shard, tensor in enumerate(tensors) for at in range(len(tensor))]
    generator.shuffle(place)
    column = Column([*tensors, None], np.array(place, np.int32), (3, 2), dtype)
    for count in (0, 1, 5, 40):
        positions = np.array([generator.randrange(12) for _ in range(count)], np.int64)
        taken = column.take(positions)
        assert taken.shape == (count, 3, 2) and taken.dtype == dtype
        for row, position in zip(taken, positions, strict=True):
            number, at = place[position]
            assert torch.equal(row, tensors[number][at])
    taken[:] = 0
    assert any(tensor.float().sum() > 0 for tensor in tensors), "what is taken is a copy"


@pytest.mark.parametrize("order", ["as stored", "shuffled"])
def test_rows_are_taken_into_columns_of_a_larger_table(order):
    """Whether they lie side by side, in shards of any order, or are scattered."""
    tensors = [torch.randn(40, 2), torch.randn(30, 2), torch.randn(20, 2)]
    place = np.array([(shard, row) for shard in (1, 0, 2) for row in range(len(tensors[shard]))], np.int32)
    positions = np.flatnonzero(np.arange(90) % 5 > 0)
    if order == "shuffled":
        positions = np.random.default_rng(0).permutation(positions)
    table = torch.full((len(positions), 5), -1.0)
    part = table[:, 1:3]
    assert Column(tensors, place, (2,), torch.float32).take(positions, part) is part
    expected = torch.stack([tensors[number][at] for number, at in place[positions]])
    assert torch.equal(table[:, 1:3], expected)
    assert (table[:, [0, 3, 4]] == -1).all(), "its neighbours are left alone"


def test_an_empty_column_knows_its_shape():
    column = Column([], np.empty((0, 2), np.int32), (3, 4), torch.bfloat16)
    assert column.take(np.empty(0, np.int64)).shape == (0, 3, 4)
    assert column.take(np.empty(0, np.int64)).dtype == torch.bfloat16


def test_a_view_that_is_not_stored_cannot_be_taken():
    """Rather an error than the last row of the last shard."""
    column = Column([torch.ones(2, 1)], np.array([[0, 1], [-1, -1]], np.int32), (1,), torch.float32)
    with pytest.raises(AssertionError, match="not stored"):
        column.take(np.array([0, 1]))
