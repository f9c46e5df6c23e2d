"""What the cache holds is counted whole, and made smaller: the longest unused first, digests at need."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from filelock import FileLock

from tests.features.small import fetch, photos
from tests.training.tiny import tiny_backbone
from toolkit.data.manifest import Manifest
from toolkit.features import contents
from toolkit.features.prune import digests_in, kept_in, prune
from toolkit.features.request import Request
from toolkit.features.store import FeatureStore
from toolkit.storage import as_size
from toolkit.tasks.cache import cache


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Return images that are old enough for their digests to be remembered."""
    manifest = photos(tmp_path / "photos", 6)
    for row in range(len(manifest)):
        os.utime(manifest.file(row), (1e9, 1e9))
    return manifest


@pytest.fixture
def filled(tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(contents, "SETTLED_AFTER_NS", -1)
    fetch(tmp_path / "cache", Request(tiny_backbone(), (3,)), manifest)
    return tmp_path / "cache"


def test_digests_are_shown_and_counted(filled: Path) -> None:
    shown = cache(cache_dir=str(filled))
    digests = sum(path.stat().st_size for path in (filled / "contents").iterdir())
    assert shown.digests_bytes == digests > 0
    assert shown.to_dict()["digests_bytes"] == digests
    assert shown.to_dict()["bytes"] == shown.bytes == digests + shown.kept[0].bytes
    assert str(shown).splitlines()[1:] == [
        f"{as_size(digests):>9}  digests of files",
        f"{as_size(shown.bytes):>9}  in {filled}",
    ]


def test_digests_stay_where_the_limit_is_met_without(filled: Path) -> None:
    digests = digests_in(filled)
    report = cache(limit=str(digests), cache_dir=str(filled))
    assert report.bytes == report.digests_bytes == digests and not report.kept[0].bytes
    assert "nothing" not in str(report)


def test_digests_go_first_where_they_alone_are_too_much(filled: Path) -> None:
    (stray := filled / "contents" / ".publishing-x").write_bytes(bytes(100_000))
    before, shards = cache(cache_dir=str(filled)).bytes, kept_in(filled)[0].bytes
    report = cache(limit="99000", cache_dir=str(filled))
    assert report.bytes == shards == before - report.removed_bytes and report.digests_bytes == 0
    assert not stray.exists()


def test_digests_go_where_shards_are_in_use(filled: Path) -> None:
    (kept,) = kept_in(filled)
    digests = digests_in(filled)
    with FileLock(kept.folder / "lock"):
        gone, busy = prune(filled, max(kept.bytes, digests))
    assert (gone, [one.folder for one in busy]) == (digests, [kept.folder])
    assert digests_in(filled) == 0 and kept_in(filled)[0].bytes == kept.bytes


def test_an_emptied_cache_is_filled_again(filled: Path, manifest: Manifest) -> None:
    report = cache(limit="0", cache_dir=str(filled))
    assert report.bytes == 0 < report.removed_bytes and str(report).startswith("  nothing")
    assert fetch(filled, Request(tiny_backbone(), (3,)), manifest).n_computed == 6
    assert digests_in(filled) > 0


def test_within_a_backbone_what_is_read_stays_and_what_nobody_reads_goes(tmp_path: Path, manifest: Manifest) -> None:
    request, store = Request(tiny_backbone(), (3,)), FeatureStore(tmp_path / "cache")
    other = photos(tmp_path / "other", 5, seed=1)
    fetch(store.folder, request, manifest)
    store.remembered(request, {"images": "of manifest"}, lambda: ({"value": 1}, True))
    fetch(store.folder, request, other)
    written = sorted(store.folder.glob("models/*/*/*"), key=lambda path: path.stat().st_mtime_ns)
    for number, path in enumerate(written):  # all long ago; what nobody will use again last
        os.utime(path, (1e9 + number, 1e9 + number))
    assert fetch(store.folder, request, manifest).n_computed == 0
    assert store.remembered(request, {"images": "of manifest"}, lambda: ({"value": 2}, False)) == {"value": 1}
    (kept,) = kept_in(store.folder)
    assert prune(store.folder, kept.bytes + digests_in(store.folder) - 1)[0] > 1
    assert fetch(store.folder, request, manifest).n_computed == 0
    assert store.remembered(request, {"images": "of manifest"}, lambda: ({"value": 2}, False)) == {"value": 1}
    assert fetch(store.folder, request, other).n_computed == 5


def test_a_shard_that_cannot_be_marked_is_read_all_the_same(
    filled: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def barred(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "utime", barred)
    assert fetch(filled, Request(tiny_backbone(), (3,)), manifest).n_computed == 0


def test_a_pass_that_was_cut_short_is_named_and_as_young_as_its_last_shard(filled: Path, manifest: Manifest) -> None:
    (old,) = kept_in(filled)
    fetch(filled, Request(another := tiny_backbone(seed=1), (3,)), manifest)
    (cut_short,) = (kept for kept in kept_in(filled) if kept.folder != old.folder)
    (cut_short.folder / "used").unlink()  # it is marked by the first use, which comes after the pass
    for path in (*old.folder.rglob("*"), cut_short.folder / "about.json"):
        os.utime(path, (1e9, 1e9))
    first, last = kept_in(filled)
    assert (first.folder, last.folder) == (old.folder, cut_short.folder)
    assert (last.backbone, last.image_size_px) == (another.name, another.preprocessing.crop_px)
    assert last.unused_s < 3600 < first.unused_s and "unused for    0 min" in str(last)
    prune(filled, last.bytes + digests_in(filled))
    assert [kept.bytes for kept in kept_in(filled)] == [0, last.bytes]


def test_what_cannot_tell_what_it_is_goes_by_its_use_too(filled: Path) -> None:
    (kept,) = kept_in(filled)
    (kept.folder / "about.json").write_text("[]")
    (unknown,) = kept_in(filled)
    assert unknown.unused_s < 3600 and (unknown.n_shards, unknown.bytes) == (kept.n_shards, kept.bytes)
    assert "unknown (1 shards)" in str(unknown) and "None" not in str(unknown)


def test_a_persons_own_files_stay_whatever_their_folders_are_called(filled: Path, tmp_path: Path) -> None:
    (kept,) = kept_in(filled)
    digests = digests_in(filled)
    (aside := tmp_path / "aside").mkdir()
    own = ["contents/thesis.txt", "contents/notes.safetensors", "contents/chapter/1.txt", "contents/.hidden"]
    own += ["models/bert/lock", "models/bert/base/model.safetensors", f"models/{'0' * 24}/base/{'1' * 24}.safetensors"]
    own += [f"{kept.folder.relative_to(filled)}/{name}" for name in ("clean/model.safetensors", "mine/table.json")]
    for name in own:
        (filled / name).parent.mkdir(parents=True, exist_ok=True)
        (filled / name).write_bytes(bytes(50_000))
    elsewhere = [aside / "base" / f"{'2' * 24}.safetensors", aside / "lock", aside / f"{'3' * 24}.safetensors"]
    for file in elsewhere:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(bytes(50_000))
    (filled / "models" / ("4" * 24)).symlink_to(aside)
    (kept.folder / "linked").symlink_to(aside)
    (link := filled / "contents" / f"{'5' * 24}.safetensors").symlink_to(elsewhere[0])
    report = cache(limit="0", cache_dir=str(filled))
    assert (report.bytes, report.removed_bytes) == (0, kept.bytes + digests)
    assert all((filled / name).stat().st_size == 50_000 for name in own)
    assert all(file.stat().st_size == 50_000 for file in elsewhere) and link.is_symlink()
