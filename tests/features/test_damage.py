"""A shard that is not what was written is found, named on stderr, and computed again."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.features.small import assert_same, everything, fetch, files_below, photos
from tests.training.tiny import tiny_backbone
from toolkit.data.manifest import Manifest
from toolkit.errors import ArtifactError
from toolkit.features import passes, store
from toolkit.features import shard as shard_module
from toolkit.features.request import Request
from toolkit.features.shard import BrokenShardError, Shard, write_shard


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Manifest:
    return photos(tmp_path_factory.mktemp("damage") / "photos", 8)


@pytest.fixture(scope="module")
def request_() -> Request:
    return Request(tiny_backbone(), (1, 3), 2, views=3)


@pytest.fixture(scope="module")
def filled(tmp_path_factory, manifest, request_) -> Path:
    """Return a cache of four shards: two of clean views and two of others."""
    folder = tmp_path_factory.mktemp("damage") / "cache"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(passes, "SHARD_IMAGES", 2)
        fetch(folder, request_, manifest)
    assert len(files_below(folder)) == 4
    return folder


@pytest.fixture
def cache(tmp_path, filled, monkeypatch) -> Path:
    monkeypatch.setattr(passes, "SHARD_IMAGES", 2)
    return Path(shutil.copytree(filled, tmp_path / "cache"))


@pytest.fixture(scope="module")
def whole(filled, manifest, request_) -> dict[str, torch.Tensor]:
    return everything(fetch(filled, request_, manifest))


def shards(cache: Path, kind: str = "*") -> list[Path]:
    return sorted(cache.glob(f"models/*/{kind}/*.safetensors"))


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)


def header_length(path: Path) -> int:
    return int.from_bytes(path.read_bytes()[:8], "little")


def offset_of(path: Path, name: str) -> int:
    """Return where a tensor's bytes begin."""
    length = header_length(path)
    return 8 + length + int(json.loads(path.read_bytes()[8 : 8 + length])[name]["data_offsets"][0])


def at_text(path: Path, text: bytes) -> int:
    return path.read_bytes().index(text) + len(text) - 1


def swap_rows(path: Path) -> None:
    """Put two rows of an output in each other's place."""
    content = bytearray(path.read_bytes())
    start, width = offset_of(path, "pool.3"), 4 * 16
    first, second = content[start : start + width], content[start + width : start + 2 * width]
    content[start : start + 2 * width] = second + first
    path.write_bytes(content)


def same_name_other_sums(path: Path) -> None:
    """Write other values with fitting sums, as another backbone would: only the place tells."""
    shard = Shard(path)
    other = path.parent.parent.with_name("f" * 24) / path.parent.name
    outputs = {name: torch.zeros_like(shard.tensor(name)) for name in shard.names}
    os.replace(write_shard(other, shard.digests.copy(), shard.views.copy(), outputs), path)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "first byte": lambda path: flip(path, 0),
    "length of the header": lambda path: flip(path, 7),
    "header": lambda path: flip(path, 9),
    "name of a column": lambda path: flip(path, at_text(path, b'"pool.3":{')),
    "digit of a column's name": lambda path: path.write_bytes(path.read_bytes().replace(b'"pool.3":{', b'"pool.2":{')),
    "type": lambda path: path.write_bytes(path.read_bytes().replace(b'"F32"', b'"I32"', 1)),
    "checksum": lambda path: flip(path, at_text(path, b'"stage.1":"') + 3),
    "name of a checksum": lambda path: path.write_bytes(path.read_bytes().replace(b'"stage.1":"', b'"stage.0":"')),
    "no metadata": lambda path: path.write_bytes(path.read_bytes().replace(b"__metadata__", b"__metabata__")),
    "end of the header": lambda path: flip(path, 7 + header_length(path)),
    "digests": lambda path: flip(path, offset_of(path, "digests")),
    "view numbers": lambda path: flip(path, offset_of(path, "views")),
    "values at the cut": lambda path: flip(path, offset_of(path, "stage.1") + 5),
    "pooled values": lambda path: flip(path, offset_of(path, "pool.1")),
    "last byte": lambda path: flip(path, -1),
    "rows swapped": swap_rows,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "cut in the header": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
    "text": lambda path: path.write_text("not a shard"),
    "another shard": lambda path: shutil.copy(next(p for p in path.parent.glob("*") if p != path), path),
    "another backbone's": same_name_other_sums,
}


@pytest.mark.parametrize("kind", ["clean", "others"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_mended(cache, whole, manifest, request_, capsys, damage, kind):
    before = files_below(cache)
    path = next(path for path in shards(cache) if (path.parent.name == "clean") == (kind == "clean"))
    DAMAGES[damage](path)
    assert files_below(cache) != before
    capsys.readouterr()
    stored = fetch(cache, request_, manifest)
    assert_same(everything(stored), whole)
    assert stored.n_computed == (4 if kind == "clean" else 8), "the rows of that shard alone"
    assert files_below(cache) == before, "the file is as it was"
    notes = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("features:")]
    assert notes == [f"note: {path} was damaged; what it held is computed again"]
    assert fetch(cache, request_, manifest).n_computed == 0
    assert "damaged" not in capsys.readouterr().err


def test_every_flipped_byte_is_found(cache):
    """Wherever it is: no byte of a shard may change without its being noticed."""
    path = shards(cache, "clean")[0]
    content = path.read_bytes()
    for at in range(0, len(content), max(1, len(content) // 150)):
        flip(path, at)
        with pytest.raises(BrokenShardError):
            shard = Shard(path)
            for name in ("pool.1", "pool.3", "stage.1"):
                shard.tensor(name)
        path.write_bytes(content)


def test_all_shards_damaged(cache, filled, whole, manifest, request_):
    for number, path in enumerate(shards(cache)):
        flip(path, [3, -1][number % 2])
    stored = fetch(cache, request_, manifest)
    assert stored.n_computed == 24 and files_below(cache) == files_below(filled)
    assert_same(everything(stored), whole)


def test_a_damaged_shard_goes_whatever_is_wanted_of_it(cache, manifest, request_, capsys):
    """One of its rows is wanted: the others are computed when they are."""
    path = shards(cache, "clean")[0]
    flip(path, -1)
    capsys.readouterr()
    assert fetch(cache, request_, manifest, [1]).n_computed in (0, 1)
    again = fetch(cache, request_, manifest, [5])
    assert again.n_computed in (0, 1) and not path.exists()
    assert capsys.readouterr().err.count("was damaged") == 1


def test_other_views_of_another_recipe_are_not_taken(cache, whole, manifest, request_):
    """A folder that was renamed or mixed up by hand holds the numbers of another seed."""
    other = Request(request_.backbone, (1, 3), 2, views=3, seed=1)
    wanted = everything(fetch(cache, other, manifest))
    folders = [path for path in cache.glob("models/*/*") if path.is_dir() and path.name != "clean"]
    assert len(folders) == 2
    for path in [*folders[0].iterdir()]:
        path.rename(folders[1] / path.name)
    for request in (request_, other):
        expected = wanted if request is other else whole
        assert_same(everything(fetch(cache, request, manifest)), expected)


def test_a_damaged_shard_that_another_process_has_mended_stays(cache, manifest, request_, capsys, monkeypatch):
    """Between the look that finds it and the lock that allows to remove it, it was replaced by a good one."""
    path = shards(cache)[0]
    content = path.read_bytes()
    flip(path, 0)
    alone = store.Place.alone

    def mended_meanwhile(self):
        path.write_bytes(content)
        return alone(self)

    monkeypatch.setattr(store.Place, "alone", mended_meanwhile)
    fetch(cache, request_, manifest)
    assert path.read_bytes() == content and "damaged" not in capsys.readouterr().err


def test_foreign_files_among_the_shards_are_left_alone(cache, whole, manifest, request_, capsys):
    place = shards(cache, "clean")[0].parent
    (place / "notes.txt").write_text("mine")
    (place / "folder.safetensors").mkdir()
    os.mkfifo(place / "pipe.safetensors")
    (place / "dangling.safetensors").symlink_to(place / "nothing")
    assert fetch(cache, request_, manifest).n_computed == 0
    assert_same(everything(fetch(cache, request_, manifest)), whole)
    assert (place / "notes.txt").read_text() == "mine" and capsys.readouterr().err == ""


def test_the_same_rows_give_the_same_bytes(tmp_path):
    generator = np.random.default_rng(0)
    digests = generator.integers(0, 256, (5, 16), np.uint8)
    views = np.array([0, 0, 256, 1, 7], np.int32)
    outputs = {
        "a": torch.randn(5, 3, 2),
        "b": torch.randn(5, 3).to(torch.bfloat16),
        "c": torch.randint(0, 256, (5, 3, 2, 2), dtype=torch.uint8),
        "d": torch.randn(5, 2, 3).to(torch.float16).transpose(1, 2),
        "e": torch.empty(5, 0),
    }
    one = write_shard(tmp_path / "a" / "clean", digests, views, outputs)
    two = write_shard(tmp_path / "x" / "a" / "clean", digests, views, dict(reversed(outputs.items())))
    assert one.name == two.name and one.read_bytes() == two.read_bytes()
    shard = Shard(one)
    assert np.array_equal(shard.digests, digests) and np.array_equal(shard.views, views)
    assert shard.names == set(outputs)
    for name, tensor in outputs.items():
        assert shard.tensor(name).dtype == tensor.dtype and torch.equal(shard.tensor(name), tensor)
    assert [path.name for path in (tmp_path / "a" / "clean").iterdir()] == [one.name]


def test_a_shard_can_be_read_by_whoever_may_read_the_folder(tmp_path):
    before = os.umask(0o022)
    try:
        path = write_shard(tmp_path / "a" / "b", np.ones((1, 16), np.uint8), np.zeros(1, np.int32), {})
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE, errno.EIO])
def test_a_shard_that_cannot_be_opened_is_not_taken_for_a_damaged_one(
    cache, filled, manifest, request_, monkeypatch, number
):
    """Too many open files, or a disk that fails for a moment, must not cost what is stored."""

    open_path = Path.open

    def barred(self, *arguments, **settings):
        if self.suffix == ".safetensors":
            raise OSError(number, os.strerror(number), str(self))
        return open_path(self, *arguments, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", barred)
        with pytest.raises(ArtifactError, match=os.strerror(number)) as caught:
            fetch(cache, request_, manifest)
    assert "\n" not in str(caught.value)
    assert files_below(cache) == files_below(filled)


def test_memory_that_is_short_is_not_taken_for_damage(cache, filled, manifest, request_, monkeypatch):
    """As where a limit on memory, or on the number of mapped files, is met."""

    def short(*arguments, **settings):
        raise RuntimeError("unable to mmap 5 bytes from file </a>: Cannot allocate memory (12)")

    with monkeypatch.context() as patched:
        patched.setattr(shard_module, "safe_open", short)
        with pytest.raises(ArtifactError, match="cannot be mapped into memory"):
            fetch(cache, request_, manifest)
    assert files_below(cache) == files_below(filled)


def test_what_says_what_is_stored_is_mended(cache, manifest, request_):
    (about,) = cache.glob("models/*/about.json")
    right = about.read_text()
    assert json.loads(right)["backbone"] == request_.backbone.name
    for damage in ("", "{", "[1]", right.replace("torch", "t0rch")):
        about.write_text(damage)
        assert fetch(cache, request_, manifest).n_computed == 0
        next(iter(shards(cache))).unlink()
        assert fetch(cache, request_, manifest).n_computed > 0
        assert about.read_text() == right
    about.unlink()
    assert fetch(cache, request_, manifest).n_computed == 0
