"""Full disks, folders that cannot be written, odd places: one line that says what to do, and nothing lost."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.features.small import assert_same, everything, fetch, photos
from tests.training.tiny import tiny_backbone
from toolkit.data.manifest import Manifest
from toolkit.errors import ArtifactError, ToolkitError
from toolkit.features import passes
from toolkit.features.passes import NoRoomError
from toolkit.features.request import Request
from toolkit.features.store import SPARE_BYTES, FeatureStore


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Manifest:
    return photos(tmp_path_factory.mktemp("room") / "photos", 40)


@pytest.fixture(scope="module")
def wanted() -> Request:
    """Return a Request for 40 kB an image."""
    return Request(tiny_backbone(), (3,), 1, views=5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, manifest, wanted) -> dict[str, torch.Tensor]:
    return everything(fetch(tmp_path_factory.mktemp("room") / "cache", wanted, manifest))


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """Return a folder on a disk of 3 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def one_line(error: BaseException) -> str:
    text = str(error)
    assert isinstance(error, ToolkitError) and text and "\n" not in text
    return text


def unfinished(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.startswith((".publishing", ".tmp"))]


def test_too_little_room_is_said_before_the_work(small_disk, manifest, wanted, monkeypatch):
    (small_disk / "ballast").write_bytes(bytes(1 << 20))
    store = FeatureStore(small_disk / "cache")
    assert store.missing_bytes(wanted, manifest) > store.free_bytes() > 0
    monkeypatch.setattr(passes, "stream_views", None)  # nothing is read
    with pytest.raises(NoRoomError, match="MB are needed for the features of 200 views") as caught:
        store.fetch(wanted, manifest)
    assert "--cache_dir" in one_line(caught.value)


def test_a_disk_that_fills_up_keeps_what_was_computed(small_disk, manifest, wanted, whole, monkeypatch):
    monkeypatch.setattr(passes, "SHARD_IMAGES", 8)
    cache, ballast = small_disk / "cache", small_disk / "ballast"
    fetch(cache, wanted, manifest, range(8))
    ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - 700_000))
    with monkeypatch.context() as patched:
        patched.setattr(FeatureStore, "free_bytes", lambda self: 10**9)  # it was free when it was asked for
        with pytest.raises(NoRoomError, match="the disk is full; what was computed is kept") as caught:
            fetch(cache, wanted, manifest)
    assert "make room" in one_line(caught.value)
    assert not unfinished(cache)
    ballast.unlink()
    rest = fetch(cache, wanted, manifest)
    assert 0 < rest.n_computed < 32 * 5
    assert_same(everything(rest), whole)
    assert fetch(cache, wanted, manifest).n_computed == 0


def test_a_disk_without_a_byte_left(small_disk, manifest, wanted, whole):
    FeatureStore(small_disk / "cache")
    ballast = small_disk / "ballast"
    with pytest.raises(OSError, match="No space"), open(ballast, "wb") as file:
        while True:
            file.write(bytes(4096))
    for room in (False, True):
        with pytest.MonkeyPatch.context() as patched:
            if room:
                patched.setattr(FeatureStore, "free_bytes", lambda self: 10**9)
            with pytest.raises(NoRoomError) as caught:
                fetch(small_disk / "cache", wanted, manifest)
        one_line(caught.value)
    ballast.unlink()
    assert_same(everything(fetch(small_disk / "cache", wanted, manifest)), whole)


def test_files_that_may_not_grow(tmp_path, manifest, wanted, whole):
    """A limit on the size of files, as a shell or a batch system sets it, is an error of the system too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(ArtifactError, match="File too large") as caught:
            fetch(tmp_path / "cache", wanted, manifest)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    one_line(caught.value)
    assert not unfinished(tmp_path / "cache")
    assert_same(everything(fetch(tmp_path / "cache", wanted, manifest)), whole)


def test_predicted_and_free_bytes_decide(tmp_path, manifest, wanted, monkeypatch):
    store = FeatureStore(tmp_path / "cache")
    needed = store.missing_bytes(wanted, manifest)
    usage = shutil.disk_usage(tmp_path)
    for free, fits in ((needed + SPARE_BYTES - 1, False), (needed + SPARE_BYTES, True), (0, True)):
        with monkeypatch.context() as patched:
            patched.setattr(shutil, "disk_usage", lambda path, free=free: usage._replace(free=free))
            assert store.free_bytes() == max(0, free - SPARE_BYTES)
            if fits:  # for the last: all is stored, and nothing more is needed
                store.fetch(wanted, manifest)
            else:
                with pytest.raises(NoRoomError):
                    store.fetch(wanted, manifest)


@pytest.mark.parametrize("place", ["file", "file/below", "models is a file", "nul\0byte", "~nobody_of_that_name/cache"])
def test_places_where_no_cache_can_be(tmp_path, place, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way")
    if place == "models is a file":
        (tmp_path / place).mkdir()
        (tmp_path / place / "models").write_text("in the way")
    if place.startswith("~"):
        FeatureStore(place)  # an odd name, no more
        assert (tmp_path / place / "models").is_dir()
        return
    with pytest.raises(ArtifactError, match="no cache can be kept here") as caught:
        FeatureStore(tmp_path / place)
    assert "--cache_dir" in one_line(caught.value)


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    FeatureStore(tmp_path / "cache")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ArtifactError, match="not writable"):
        FeatureStore(tmp_path / "cache")


def test_a_disk_that_is_read_only(small_disk, manifest, wanted):
    fetch(small_disk / "cache", wanted, manifest, range(3))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(ArtifactError, match=r"not writable|Read-only") as caught:
        FeatureStore(small_disk / "cache")
    one_line(caught.value)


def test_a_disk_that_becomes_read_only(small_disk, manifest, wanted):
    store = FeatureStore(small_disk / "cache")
    before = everything(store.fetch(wanted, manifest, np.arange(3)))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert_same(everything(store.fetch(wanted, manifest, np.arange(3))), before)
    with pytest.raises(ArtifactError, match="Read-only file system") as caught:
        store.fetch(wanted, manifest, np.arange(4))
    one_line(caught.value)


@pytest.mark.parametrize("barred", ["models/KEY", "models/KEY/clean", "models/KEY/lock"])
def test_parts_of_the_cache_that_are_in_the_way(tmp_path, manifest, wanted, barred):
    """Something else has the name that the store wants."""
    store = FeatureStore(tmp_path / "cache")
    store.fetch(wanted, manifest, np.arange(2))
    (model,) = (tmp_path / "cache" / "models").iterdir()
    path = tmp_path / "cache" / barred.replace("KEY", model.name)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if barred.endswith("lock"):
        path.mkdir()
    else:
        path.write_text("in the way")
    with pytest.raises(ArtifactError, match="the cache cannot be used") as caught:
        store.fetch(wanted, manifest)
    one_line(caught.value)


@pytest.mark.parametrize(
    "name", ["with space", "ünïcödé ツ", "a%b{c}", "-x", "." * 3 + "dots", "n" * 200, "deep/er/still"]
)
def test_odd_names_of_the_cache_folder_work(tmp_path, manifest, wanted, whole, name):
    first = fetch(tmp_path / name, wanted, manifest)
    assert_same(everything(first), whole)
    assert fetch(tmp_path / name, wanted, manifest).n_computed == 0


def test_a_relative_folder_stays_where_it_was(tmp_path, manifest, wanted, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = FeatureStore("cache")
    monkeypatch.chdir("/")
    store.fetch(wanted, manifest, np.arange(2))
    assert (tmp_path / "cache" / "models").is_dir()


def test_a_cache_that_is_emptied_is_filled_again(tmp_path, manifest, wanted, whole):
    store = FeatureStore(tmp_path / "cache")
    store.fetch(wanted, manifest)
    shutil.rmtree(tmp_path / "cache")
    assert store.missing_bytes(wanted, manifest) == 200 * wanted.bytes_per_view < store.free_bytes()
    again = store.fetch(wanted, manifest)
    assert again.n_computed == 200
    assert_same(everything(again), whole)


def test_the_room_for_what_is_missing_is_asked_for_before_the_work(tmp_path, manifest, wanted, monkeypatch):
    store = FeatureStore(tmp_path / "cache")
    monkeypatch.setattr(FeatureStore, "free_bytes", lambda self: room)
    a_view, room = wanted.bytes_per_view, 200 * wanted.bytes_per_view
    assert store.room_for(wanted, manifest) == room == store.missing_bytes(wanted, manifest)
    assert store.room_for(wanted, manifest, np.arange(10)) == 50 * a_view
    assert store.room_for(wanted, manifest, np.arange(10), clean_there=True, after=160 * a_view) == 40 * a_view
    for more in ({"after": 1}, {"after": 40 * a_view + 1, "clean_there": True}):
        with pytest.raises(NoRoomError, match="are needed for the features of"):
            store.room_for(wanted, manifest, **more)
    store.fetch(wanted, manifest, np.arange(10))
    room = 150 * a_view
    assert store.room_for(wanted, manifest) == room
    assert store.room_for(wanted, manifest, np.arange(10), after=10**9) == 0


def test_the_room_for_the_stages_on_the_way_counts_where_they_are_stored(tmp_path, manifest, monkeypatch):
    store = FeatureStore(tmp_path / "cache")
    pooled = Request(replace(tiny_backbone(), weights="random"), (3,))
    whole = pooled.with_stages_on_the_way()
    assert whole.bytes_per_view > pooled.bytes_per_view
    for room, stored in ((80 * whole.bytes_per_view, whole), (80 * whole.bytes_per_view - 1, pooled)):
        monkeypatch.setattr(FeatureStore, "free_bytes", lambda self, room=room: room)
        assert store.room_for(pooled, manifest) == 40 * stored.bytes_per_view
