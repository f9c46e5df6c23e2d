"""Several views with one decoding: the same pixels as one at a time, in the order that was asked for."""

from __future__ import annotations

import collections
import os
import signal

import numpy as np
import pytest
import torch

from tests.photos import make_photos
from tests.training.tiny import SMALL
from toolkit.data import view_stream
from toolkit.data.decode import decode, read_image
from toolkit.data.loading import ViewDataset
from toolkit.data.manifest import Manifest
from toolkit.data.scan import scan
from toolkit.data.view_stream import stream_views
from toolkit.data.views import AUGMENTATIONS, source_of, source_px
from toolkit.errors import ToolkitError

STANDARD = AUGMENTATIONS["standard"]
BATCHES = [[(3, (0, 1, 5))], [(0, (2,)), (9, (0,))], [], [(3, (7, 0))], [(11, (0, 1)), (4, (300,)), (5, (0,))]]


@pytest.fixture
def manifest(tmp_path) -> Manifest:
    return scan(make_photos(tmp_path / "photos", {"cat": 6, "dog": 6}))


def streamed(manifest: Manifest, batches=BATCHES, **settings):
    keys = {"seed": 4, "workers": 0, "max_pixels": 10**6, **settings}
    return list(stream_views(manifest, batches, SMALL, STANDARD, **keys))


def test_views_equal_those_of_the_plain_dataset(manifest):
    plain = ViewDataset(manifest, SMALL, STANDARD, seed=4, max_pixels=10**6)
    for views, batch in zip(streamed(manifest), BATCHES, strict=True):
        keys = [(row, number) for row, numbers in batch for number in numbers]
        assert list(zip(views.rows.tolist(), views.numbers.tolist(), strict=True)) == keys
        assert views.pixels.shape == (len(keys), 3, 32, 32) and views.pixels.dtype == torch.uint8
        assert views.digests.shape == (len(keys), 16) and views.failures == ()
        for key, pixels, digest in zip(keys, views.pixels, views.digests, strict=True):
            assert np.array_equal(pixels.numpy(), plain[key][1])
            assert digest.tobytes() == read_image(manifest.file(key[0]))[0]


def test_an_image_is_decoded_once_a_batch(manifest, monkeypatch):
    decoded = collections.Counter()

    def counted(content, *settings):
        decoded[content] += 1
        return decode(content, *settings)

    monkeypatch.setattr(view_stream, "decode", counted)
    streamed(manifest)
    assert decoded == {manifest.file(row).read_bytes(): 2 if row == 3 else 1 for row in (0, 3, 4, 5, 9, 11)}


def test_workers_change_nothing(manifest):
    for one, two in zip(streamed(manifest), streamed(manifest, workers=2), strict=True):
        assert torch.equal(one.pixels, two.pixels) and one.failures == two.failures
        for name in ("rows", "numbers", "digests", "sizes"):
            assert np.array_equal(getattr(one, name), getattr(two, name))


@pytest.mark.parametrize("workers", [0, 2])
def test_files_that_fail_are_named_and_left_out(manifest, workers):
    manifest.file(3).write_bytes(b"no image")
    manifest.file(4).unlink()
    found = streamed(manifest, workers=workers)
    assert [[row for row, _ in views.failures] for views in found] == [[3], [], [], [3], [4]]
    assert all(reason and "\n" not in reason for views in found for _, reason in views.failures)
    assert [views.rows.tolist() for views in found] == [[], [0, 9], [], [], [11, 11, 5]]
    assert found[0].pixels.shape == (0, 3, 32, 32) and found[0].digests.shape == (0, 16)


def test_batches_are_asked_for_as_they_are_needed(manifest):
    """What is to be read may be said bit by bit; only a little of it is asked for ahead."""
    asked = []

    def batches():
        for row in range(12):
            asked.append(row)
            yield [(row, (0,))]

    stream = stream_views(manifest, batches(), SMALL, STANDARD, seed=0, workers=0, max_pixels=10**6)
    assert next(stream).rows.tolist() == [0] and len(asked) == 1
    assert [views.rows.tolist() for views in stream] == [[row] for row in range(1, 12)]


def test_images_that_are_too_large_fail(manifest):
    (views,) = streamed(manifest, [[(0, (0,))]], max_pixels=100)
    assert "max_pixels" in views.failures[0][1]


@pytest.mark.slow
def test_a_lost_process_ends_in_one_line(manifest, monkeypatch):
    def deadly(path, *settings):
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("still alive")

    monkeypatch.setattr(view_stream, "LOST_AFTER_S", 5.0)
    monkeypatch.setattr(view_stream, "read_content", deadly)
    with pytest.raises(ToolkitError, match=r"a decoding process was lost .* --workers 0"):
        streamed(manifest, workers=1)


def test_the_random_state_is_not_touched(manifest):
    state = torch.get_rng_state()
    streamed(manifest)
    assert torch.equal(torch.get_rng_state(), state)


def test_sources_come_with_the_size_of_their_image(manifest):
    (views,) = streamed(manifest, [[(2, (0,)), (7, (0,))]], source=True)
    side = source_px(SMALL)
    assert views.pixels.shape == (2, 3, side, side) and views.sizes.tolist() == [[48, 40]] * 2
    for row, pixels in zip((2, 7), views.pixels, strict=True):
        assert np.array_equal(pixels.numpy(), source_of(read_image(manifest.file(row))[1], SMALL))
    manifest.file(2).unlink()
    (views,) = streamed(manifest, [[(2, (0,))]], source=True)
    assert views.pixels.shape == (0, 3, side, side) and views.sizes.shape == (0, 2)
