"""By turns: the same batches in the same order, and nothing is decoded while the caller works."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

from tests.photos import make_photos
from tests.training.tiny import SMALL
from toolkit.data.loading import clean_batches
from toolkit.data.scan import scan
from toolkit.data.turns import AT_ONCE, by_turns
from toolkit.data.view_stream import stream_views
from toolkit.data.views import AUGMENTATIONS


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("sizes", [[], [0], [1], [3, 0, 2], [16] * 9, [1] * 100, [100, 1, 0, 0, 40]], ids=str)
def test_batches_come_as_they_were_asked_for(threads: int, sizes: list[int]) -> None:
    keys = iter(range(1000))
    batches = [[next(keys) for _ in range(size)] for size in sizes]
    assert list(by_turns(lambda key: key * 2, iter(batches), list, threads)) == [[2 * k for k in b] for b in batches]


def test_threads_share_the_work_and_rest_while_the_caller_works() -> None:
    working, names = [], set()

    def sample(key: int) -> int:
        assert not working
        names.add(threading.current_thread().name)
        time.sleep(0.002)
        return key

    for batch in by_turns(sample, [[key] for key in range(60)], list, 3):
        working.append(batch)
        time.sleep(0.002)
        working.clear()
    assert len(names) == 3 and not any(name in {t.name for t in threading.enumerate()} for name in names)


def test_no_more_is_asked_for_than_is_decoded_in_one_go() -> None:
    asked = []

    def batches():
        for key in range(1000):
            asked.append(key)
            yield [key]

    stream = by_turns(lambda key: key, batches(), list, 2)
    assert next(stream) == [0] and len(asked) == 2 * AT_ONCE
    stream.close()


def test_what_is_decoded_in_one_go_is_bounded_by_the_views() -> None:
    asked = []

    def batches():
        for key in range(1000):
            asked.append(key)
            yield [key, key]

    stream = by_turns(lambda key: key, batches(), list, 64, size=lambda batch: 50 * len(batch))
    assert next(stream) == [0, 0] and len(asked) == 3
    stream.close()


def test_an_error_reaches_the_caller() -> None:
    def sample(key: int) -> int:
        if key == 5:
            raise MemoryError("no room")
        return key

    with pytest.raises(MemoryError, match="no room"):
        list(by_turns(sample, [[1, 2], [5]], list, 2))


@pytest.mark.parametrize("name", ["none", "standard", "trivial", "rand"])
def test_views_are_those_that_come_without_threads(tmp_path, name: str) -> None:
    manifest = scan(make_photos(tmp_path / "photos", {"cat": 9, "dog": 8}))
    (tmp_path / "photos" / "cat" / "00001.jpg").write_bytes(b"no image any more")
    batches = [[(row, (0, 1, 2)) for row in range(i, min(i + 4, 17))] for i in range(0, 17, 4)]
    how = {"seed": 3, "max_pixels": 10**6}
    state = torch.get_rng_state()
    made = [
        list(stream_views(manifest, batches, SMALL, AUGMENTATIONS[name], workers=n, turns=True, **how)) for n in (0, 4)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    for one, other in zip(*made, strict=True):
        assert torch.equal(one.pixels, other.pixels) and one.failures == other.failures
        assert all(np.array_equal(one[i], other[i]) for i in (1, 2, 3, 4))


def test_clean_batches_are_those_that_come_without_threads(tmp_path) -> None:
    manifest = scan(make_photos(tmp_path / "photos", {"cat": 30, "dog": 41}))
    rows = np.arange(71)[::-1].copy()
    how = {"batch_size": 16, "max_pixels": 10**6}
    made = [list(clean_batches(manifest, rows, SMALL, workers=n, turns=True, **how)) for n in (0, 3)]
    assert len(made[1]) == 5
    for one, other in zip(*made, strict=True):
        assert torch.equal(one.inputs, other.inputs) and torch.equal(one.rows, other.rows)
        assert torch.equal(one.labels, other.labels)
