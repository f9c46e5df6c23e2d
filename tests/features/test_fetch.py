"""What a fetch gives and what it computes: failures, duplicates, few rows, several callers at once."""

from __future__ import annotations

import os
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.features.small import assert_same, everything, fetch, live, photos
from tests.photos import photo
from tests.training.tiny import WIDTHS, tiny_backbone
from toolkit.data.scan import scan
from toolkit.errors import ArtifactError, WeightsError
from toolkit.features import contents, passes, store
from toolkit.features.contents import Contents
from toolkit.features.index import Index
from toolkit.features.prefix import CHUNK
from toolkit.features.request import Request
from toolkit.features.store import FeatureStore


def request(**settings) -> Request:
    return Request(tiny_backbone(), **{"taps": (1, 3), "cut": 2, "views": 3, **settings})


def test_what_is_stored_is_not_computed_again(cache, manifest, monkeypatch):
    first = fetch(cache, request(), manifest)
    assert first.n_computed == 36 and len(first) == 12 and first.rows.tolist() == list(range(12))
    assert first.pooled().shape == (12, WIDTHS[1] + WIDTHS[3]) and first.pooled()[:].dtype == np.float32
    monkeypatch.setattr(store, "compute", None)
    for settings in ({}, {"views": 2}, {"views": 1}, {"taps": (3,)}, {"cut": None}):
        again = fetch(cache, request(**settings), manifest)
        assert again.n_computed == 0
        wanted = everything(first)
        assert_same(everything(again), {name: wanted[name][:, : again.request.views] for name in again.columns})


def test_only_what_is_missing_is_computed(cache, manifest):
    assert fetch(cache, request(views=1), manifest, range(8)).n_computed == 8
    assert fetch(cache, request(views=1), manifest).n_computed == 4
    assert fetch(cache, request(), manifest, [3, 11]).n_computed == 4, "view 0 is stored"
    assert fetch(cache, request(views=5), manifest, [3, 4]).n_computed == 2 + 4
    assert fetch(cache, request(seed=1), manifest, [3, 4]).n_computed == 4, "the clean view knows no seed"
    assert fetch(cache, request(taps=(0, 1, 3)), manifest, [3]).n_computed == 3
    assert_same(everything(fetch(cache, request(views=5), manifest)), live(request(views=5), manifest, range(12)))


def test_the_numbers_are_read_back_from_the_disk(cache, manifest):
    stored = fetch(cache, request(), manifest)
    for column in stored.columns.values():
        assert all(shard is None or not shard.is_shared() for shard in column.shards)
    before = everything(stored)
    for path in (cache / "models").rglob("*.safetensors"):
        path.unlink()  # as a prune in another process does
    assert_same(everything(stored), before)


@pytest.mark.parametrize("views", [1, 3])
def test_images_of_equal_content_are_computed_once(cache, manifest, views):
    fetch(cache, request(views=views), manifest, [0])
    for copy in range(3):
        shutil.copy(manifest.file(5), manifest.file(5).with_name(f"copy{copy}.jpg"))
    more = scan(manifest.root)
    stored = fetch(cache, request(views=views), more)
    assert len(stored) == 15 and stored.n_computed == 11 * views
    assert_same(everything(stored), live(request(views=views), more, range(15)))
    same = np.flatnonzero((stored.digests == stored.digests[5]).all(axis=1))
    assert len(same) == 4


def test_rows_may_come_twice(cache, manifest):
    rows = [4, 1, 4, 4, 9]
    stored = fetch(cache, request(), manifest, rows)
    assert stored.rows.tolist() == rows
    assert_same(everything(stored), live(request(), manifest, rows))
    manifest.file(4).unlink()
    assert fetch(cache, request(), manifest, rows).rows.tolist() == [1, 9]


@pytest.mark.parametrize("workers", [0, 2])
def test_files_that_fail_are_accounted_for(cache, tmp_path, workers):
    manifest = photos(tmp_path / "many", 70)
    whole = fetch(tmp_path / "other", request(), manifest)
    manifest.file(3).write_bytes(b"no image")
    manifest.file(33).unlink()
    manifest.file(69).write_bytes(manifest.file(68).read_bytes()[:300])
    manifest.file(70 - 3).unlink()
    os.mkfifo(manifest.file(67))
    manifest.file(50).chmod(0)
    bad = [3, 33, 67, 69] + ([50] if os.geteuid() else [])
    kept = [row for row in range(70) if row not in bad]
    for n_computed in (3 * len(kept), 0, 0):
        rest = fetch(cache, request(), manifest, workers=workers)
        assert sorted(row for row, _ in rest.failures) == sorted(bad) and all(reason for _, reason in rest.failures)
        assert rest.rows.tolist() == kept and rest.n_computed == n_computed
        assert_same(everything(rest), {name: part[kept] for name, part in everything(whole).items()})


def test_a_prefix_is_not_made_for_files_that_fail(cache, manifest, monkeypatch):
    manifest.file(3).write_bytes(b"no image")
    fetch(cache, request(), manifest)
    monkeypatch.setattr(Request, "maker", None)
    assert [row for row, _ in fetch(cache, request(), manifest).failures] == [3]


def test_copies_of_a_file_that_fails_fail_too(cache, manifest):
    for row in (2, 5, 7, 9):
        manifest.file(row).write_bytes(b"\xff\xd8\xff no image")
    fetch(cache, request(), manifest, [0])
    stored = fetch(cache, request(), manifest)
    assert sorted(row for row, _ in stored.failures) == [2, 5, 7, 9] and len(stored) == 8


def test_nothing_readable_gives_no_rows(cache, manifest):
    for row in range(12):
        manifest.file(row).unlink()
    nothing = fetch(cache, request(), manifest)
    assert len(nothing) == nothing.n_computed == 0 and len(nothing.failures) == 12
    assert nothing.pooled()[:].shape == (0, WIDTHS[1] + WIDTHS[3])
    inputs = nothing.inputs(np.empty(0, np.int64))
    assert inputs.at_cut.shape == (0, *request().shapes["stage.1"]) and inputs.pooled[0].shape == (0, WIDTHS[1])


@pytest.mark.parametrize("before", [0, 4], ids=["empty cache", "filled cache"])
def test_no_rows_at_all(cache, manifest, before):
    fetch(cache, request(), manifest, range(before))
    nothing = fetch(cache, request(), manifest, np.empty(0, np.int64))
    assert len(nothing) == nothing.n_computed == 0 and nothing.failures == ()
    assert {name: tuple(part.shape) for name, part in everything(nothing).items()} == {
        name: (0, 3, *shape) for name, shape in request().shapes.items()
    }
    pixels = fetch(cache, request(cut=0, taps=(), dtype=torch.bfloat16), manifest, np.empty(0, np.int64))
    assert pixels.inputs(np.empty(0, np.int64)).dtype == torch.uint8
    half = fetch(cache, request(dtype=torch.bfloat16), manifest, np.empty(0, np.int64))
    assert everything(half)["stage.1"].dtype == torch.bfloat16 and everything(half)["pool.1"].dtype == torch.float32


def test_a_single_image(cache, manifest):
    stored = fetch(cache, request(), manifest, [7])
    assert_same(everything(stored), live(request(), manifest, [7]))


def test_positions_and_views_are_those_that_were_asked_for(cache, manifest):
    stored = fetch(cache, request(), manifest, [5, 2, 9, 0])
    wanted = everything(stored)
    positions, views = np.array([3, 0, 3]), np.array([2, 1, 0])
    pooled = torch.cat([wanted["pool.1"], wanted["pool.3"]], dim=2).numpy()
    assert np.array_equal(stored.pooled(positions, views)[:], pooled[positions, views])
    assert np.array_equal(stored.pooled()[1:3], pooled[1:3, 0])
    assert np.array_equal(np.asarray(stored.pooled(views=1)), pooled[:, 1])
    inputs = stored.inputs(positions, view=2)
    assert torch.equal(inputs.at_cut, wanted["stage.1"][positions, 2])
    assert len(inputs.pooled) == 1 and torch.equal(inputs.pooled[0], wanted["pool.1"][positions, 2])


def test_a_file_that_changes_between_hashing_and_decoding(cache, manifest, monkeypatch):
    """Some of its views are stored, for what it was; all of them are wanted, of what it is."""
    fetch(cache, request(views=1), manifest)
    digests = Contents.digests

    def change_behind(self, paths):
        found = digests(self, paths)
        if changes:
            photo(99, changes.pop()).save(manifest.file(6))
        return found

    for changes in ([1], [2, 3]):
        with monkeypatch.context() as patched:
            patched.setattr(Contents, "digests", change_behind)
            stored = fetch(cache, request(seed=len(changes)), manifest)
        wanted = live(request(seed=stored.request.seed), manifest, range(12))
        assert_same(everything(stored), wanted)
        assert fetch(cache, stored.request, manifest).n_computed == 0


def test_a_file_that_is_spoilt_between_hashing_and_decoding(cache, manifest, monkeypatch):
    """It must not be remembered for the image that it was."""
    monkeypatch.setattr(contents, "SETTLED_AFTER_NS", -1)
    fetch(cache, request(views=1), manifest)
    digests = Contents.digests

    def spoil_behind(self, paths):
        found = digests(self, paths)
        manifest.file(6).write_bytes(b"no image")
        return found

    with monkeypatch.context() as patched:
        patched.setattr(Contents, "digests", spoil_behind)
        assert [row for row, _ in fetch(cache, request(), manifest).failures] == [6]
    assert [row for row, _ in fetch(cache, request(views=1), manifest).failures] == [6]


def test_shards_that_go_as_soon_as_they_come_end_in_one_line(cache, manifest, monkeypatch):
    publish = passes.write_shard
    monkeypatch.setattr(passes, "write_shard", lambda *arguments: publish(*arguments).unlink())
    with pytest.raises(ArtifactError, match="gone before it can be read") as caught:
        fetch(cache, request(), manifest)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cut", [1, 2])
def test_weights_that_give_no_numbers_are_refused(cache, manifest, cut):
    backbone = tiny_backbone()
    with torch.no_grad():
        backbone.stages[0][0].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(WeightsError, match=r"not finite numbers; the weights are damaged$"):
        fetch(cache, Request(backbone, (), cut), manifest)
    assert not list((cache / "models").rglob("*.safetensors"))


def test_numbers_too_large_for_half_precision_are_refused(cache, manifest):
    backbone = tiny_backbone()
    with torch.no_grad():
        backbone.stages[0][1].weight.fill_(1e6)
    fetch(cache, Request(backbone, (0,), 1), manifest)
    with pytest.raises(WeightsError, match="take --precision 32-true"):
        fetch(cache, Request(backbone, (0,), 1, dtype=torch.float16), manifest)


def test_missing_bytes_are_what_a_fetch_writes(cache, manifest):
    store, wanted = FeatureStore(cache), request()
    predicted = store.missing_bytes(wanted, manifest, np.arange(10))
    assert predicted == 10 * 3 * wanted.bytes_per_view
    assert store.missing_bytes(wanted, manifest, np.arange(10)) == predicted, "nothing was written"
    store.fetch(wanted, manifest, np.arange(10))
    written = sum(path.stat().st_size for path in (cache / "models").rglob("*.safetensors"))
    assert predicted < written < predicted + 4096
    assert store.missing_bytes(wanted, manifest, np.arange(10)) == 0
    assert store.missing_bytes(replace(wanted, views=4), manifest) == (10 * 1 + 2 * 4) * wanted.bytes_per_view


def test_an_empty_cache_is_filled_in_one_reading(cache, manifest, monkeypatch):
    """Nothing can be found in it: files are hashed as they are decoded, and known from then on."""
    monkeypatch.setattr(contents, "SETTLED_AFTER_NS", -1)
    with monkeypatch.context() as patched:
        patched.setattr(Contents, "digests", None)
        fetch(cache, request(), manifest)
    with monkeypatch.context() as patched:
        patched.setattr(Contents, "_digest", None)
        assert fetch(cache, request(), manifest).n_computed == 0
        assert fetch(cache, request(seed=1), manifest).n_computed == 24


def test_few_missing_images_share_forward_passes(cache, manifest, monkeypatch):
    """One image in each of many shards: not a padded pass for every one of them."""
    monkeypatch.setattr(passes, "SHARD_IMAGES", 2)
    fetch(cache, request(views=1), manifest, [row for row in range(12) if row % 2])
    sizes = []
    maker = Request.maker

    def counted(self):
        make = maker(self)
        return lambda pixels: sizes.append(len(pixels)) or make(pixels)

    monkeypatch.setattr(Request, "maker", counted)
    assert fetch(cache, request(views=1), manifest).n_computed == 6
    assert sizes == [4, 2], "shards of 4 images, of which 2 were missing each"


def test_shards_hold_whole_forward_passes(monkeypatch):
    for views in (1, 3, 8, 16):
        for n_bytes in (100, 10_000, 3_000_000, 90_000_000):
            monkeypatch.setattr(Request, "bytes_per_view", n_bytes)
            size = passes._images_a_shard(request(views=views))
            assert 1 <= size <= 1024 and size * views * n_bytes <= max(2 * passes.SHARD_BYTES, views * n_bytes)
            n_passes = -(-size * views // CHUNK)
            if n_bytes <= 3_000_000:
                assert size * views >= 0.75 * n_passes * CHUNK, "less than a quarter of the work is padding"


def test_threads_may_fetch_at_once(cache, manifest):
    answers: dict[int, object] = {}
    wanted = request()

    def work(number: int) -> None:
        try:
            answers[number] = fetch(cache, wanted, manifest)
        except BaseException as error:  # shown below
            answers[number] = error

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sum(answer.n_computed for answer in answers.values()) == 36
    for answer in answers.values():
        assert_same(everything(answer), everything(answers[0]))


def test_a_fetch_leaves_alone_what_another_process_is_writing(cache, manifest):
    """Fetches that find everything hold no lock: a file of somebody who writes at this moment is not theirs."""
    fetch(cache, request(), manifest, range(6))
    place = next(path for path in (cache / "models").rglob("clean"))
    unfinished = place / ".publishing-0123456789ab-0123.safetensors"
    unfinished.write_bytes(b"half a sha")
    assert fetch(cache, request(), manifest, range(6)).n_computed == 0
    assert unfinished.exists()
    fetch(cache, request(), manifest)
    assert not unfinished.exists(), "whoever holds the lock knows that nobody writes"


def test_an_index_opens_a_shard_once(cache, manifest, monkeypatch):
    monkeypatch.setattr(passes, "SHARD_IMAGES", 2)
    fetch(cache, request(), manifest)
    opened = []
    refresh = Index.refresh
    monkeypatch.setattr(Index, "refresh", lambda self: (refresh(self), opened.append(len(self.shards)))[0])
    fetch(cache, request(), manifest)
    assert len(opened) == 1
