"""features: pooled features of every image that can be read, with labels where there are any."""

from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from tests.photos import make_photos, photo
from tests.tasks.small import SMALL, words
from tests.training.tiny import WIDTHS, tiny_backbone
from toolkit.cli import main
from toolkit.data.decode import read_image
from toolkit.data.manifest import Manifest
from toolkit.data.views import AUGMENTATIONS, view
from toolkit.errors import ArtifactError, DataError, SettingError
from toolkit.features.prefix import FrozenPrefix
from toolkit.features.shard import SUFFIX, Shard
from toolkit.features.stored import PooledRows
from toolkit.tasks import feature_table
from toolkit.tasks.features import extract_features

TINY: dict[str, Any] = {"backbone": tiny_backbone(), "workers": 0, "device": "cpu", "precision": "32-true"}


def by_hand(file: Path, number: int = 0, seed: int = 0, augment: str = "standard") -> NDArray[np.float32]:
    """Return the last stage's pooled features of one view, without any store."""
    backbone = tiny_backbone()
    digest, image = read_image(file)
    pixels = view(image, backbone.preprocessing, AUGMENTATIONS[augment], digest=digest, number=number, seed=seed)
    prefix = FrozenPrefix(backbone, cut=None, taps=(len(backbone) - 1,))
    return prefix(torch.from_numpy(pixels[None])).pooled[0][0].numpy()


def n_stored(cache: Path) -> int:
    """Return how many views of images a cache holds, each as often as it was computed."""
    return sum(len(Shard(path).views) for path in cache.rglob(f"*/*/*{SUFFIX}") if "contents" not in path.parts)


@pytest.fixture
def work_must_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr("toolkit.tasks.features._scan_any", refuse)


def test_a_labelled_folder(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep/features.npz"
    table = extract_features(str(photos), out=str(out), **TINY)
    assert str(table) == "30 images × 16 features, 3 classes; 0 files quarantined"
    with np.load(out, allow_pickle=False) as stored:
        assert list(stored) == ["paths", "X", "y", "classes", "split"]
        assert stored["X"].dtype == np.float32 and stored["X"].shape == (30, 16)
        assert stored["y"].dtype == np.int64 and stored["classes"].tolist() == ["cat", "dog", "owl"]
        names = stored["classes"][stored["y"]]
        assert all(path.startswith(f"{name}/") for path, name in zip(stored["paths"], names, strict=True))
        assert stored["paths"].tolist() == sorted(stored["paths"].tolist())
        assert set(stored["split"]) == {""}
        for name in stored:
            np.testing.assert_array_equal(stored[name], getattr(table, name))
        np.testing.assert_array_equal(stored["X"][0], by_hand(photos / "cat/000.jpg"))
    assert set(table.view) == {0}
    assert np.isfinite(table.X).all() and len(np.unique(table.X, axis=0)) == 30
    assert [file.name for file in out.parent.iterdir()] == ["features.npz"]


def test_in_memory_it_is_the_same(photos: Path, tmp_path: Path) -> None:
    written = extract_features(str(photos), out=str(tmp_path / "x.npz"), **TINY)
    held = extract_features(str(photos), **TINY)
    assert str(written) == str(held)
    for name in ("paths", "X", "y", "classes", "split", "view"):
        np.testing.assert_array_equal(getattr(written, name), getattr(held, name))
    (tmp_path / "x.npz").unlink()
    np.testing.assert_array_equal(written.X, held.X)  # read before
    again = extract_features(str(photos), out=str(tmp_path / "x.npz"), **TINY)
    (tmp_path / "x.npz").unlink()
    with pytest.raises(ArtifactError, match=r"x\.npz: its features cannot be read"):
        _ = again.X


def test_taps_lie_side_by_side(photos: Path) -> None:
    last, first, both, all_of_them = (
        extract_features(str(photos), taps=taps, **TINY) for taps in ([3], [0], [3, 1], [0, 1, 2, 3])
    )
    assert both.X.shape[1] == WIDTHS[1] + WIDTHS[3] and all_of_them.X.shape[1] == sum(WIDTHS)
    np.testing.assert_array_equal(both.X[:, -WIDTHS[3] :], last.X)
    np.testing.assert_array_equal(all_of_them.X[:, : WIDTHS[0]], first.X)
    np.testing.assert_array_equal(both.X[:, : WIDTHS[1]], all_of_them.X[:, WIDTHS[0] : WIDTHS[0] + WIDTHS[1]])


def test_views_are_seeded_and_the_first_is_the_clean_one(photos: Path, tmp_path: Path) -> None:
    some = {**TINY, "views": 3, "augment": "crop"}
    clean, three = extract_features(str(photos), **TINY), extract_features(str(photos), seed=5, **some)
    assert str(three) == "30 images × 3 views × 16 features, 3 classes; 0 files quarantined"
    assert three.X.shape == (90, 16) and three.view.tolist() == [0, 1, 2] * 30
    np.testing.assert_array_equal(three.X[::3], clean.X)
    for name in ("paths", "y", "split"):
        np.testing.assert_array_equal(getattr(three, name), np.repeat(getattr(clean, name), 3))
    for row in (4, 89):
        file = photos / three.paths[row]
        np.testing.assert_array_equal(three.X[row], by_hand(file, int(three.view[row]), 5, "crop"))
    np.testing.assert_array_equal(extract_features(str(photos), seed=5, **some).X, three.X)
    other = extract_features(str(photos), seed=6, **some)
    assert not (other.X == three.X).all(axis=1)[three.view > 0].any()
    extract_features(str(photos), seed=5, out=str(tmp_path / "x.npz"), **some)
    with np.load(tmp_path / "x.npz") as stored:
        assert list(stored) == ["paths", "X", "y", "classes", "split", "view"]
        for name in stored:
            np.testing.assert_array_equal(stored[name], getattr(three, name))


@pytest.mark.parametrize("views", [1, 2])
def test_a_parquet_file(tmp_path: Path, views: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_table, "BLOCK_BYTES", 5 * 16 * 4)  # 5 rows
    data = make_photos(tmp_path / "data/train", {"cat": 4, "böse": 3}).parent
    make_photos(data / "val", {"cat": 2})
    (data / "test").mkdir()
    photo(0, 0).save(data / "test/x.png")
    out = tmp_path / "x.parquet"
    table = extract_features(str(data), out=str(out), views=views, **TINY)
    file = pq.ParquetFile(out)
    assert file.num_row_groups == -(-10 * views // 5)
    read = file.read()
    assert read.schema.names == ["path", "split", "label", "y", "view", "X"]
    assert read.schema.field("X").type == pa.list_(pa.float32(), 16)
    assert json.loads(read.schema.metadata[b"classes"]) == ["böse", "cat"] == table.classes.tolist()
    columns = read.drop(["X"]).to_pydict()
    assert columns["path"] == table.paths.tolist() and columns["y"] == table.y.tolist()
    assert columns["view"] == list(range(views)) * 10
    assert columns["label"] == [None if y < 0 else table.classes[y] for y in table.y] and columns["label"][0] is None
    assert columns["split"] == table.split.tolist() and set(columns["split"]) == {"train", "val", "test"}
    np.testing.assert_array_equal(np.array(read["X"].to_pylist(), np.float32), table.X)
    np.testing.assert_array_equal(table.X, extract_features(str(data), views=views, **TINY).X)


def test_splits_that_a_folder_does_not_say_are_null_in_parquet(photos: Path, tmp_path: Path) -> None:
    extract_features(str(photos), out=str(tmp_path / "x.parquet"), **TINY)
    assert set(pq.read_table(tmp_path / "x.parquet")["split"].to_pylist()) == {None}


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / ".hidden").mkdir(parents=True)
    for number in range(3):
        photo(0, number).save(data / f"{number}.png")
    (data / "broken.png").write_bytes(b"")
    table = extract_features(str(data), out=str(tmp_path / "x.parquet"), **TINY)
    assert table.y.tolist() == [-1, -1, -1] and table.classes.tolist() == []
    assert [path for path, _ in table.quarantined] == ["broken.png"]
    assert table.X.shape == (3, 16)
    read = pq.read_table(tmp_path / "x.parquet")
    assert read["label"].to_pylist() == [None] * 3 and read["y"].to_pylist() == [-1] * 3


def test_folders_that_make_no_data_set_are_taken_without_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_photos(tmp_path / "all", {"holiday": 3})
    table = extract_features(str(tmp_path / "all"), **TINY)
    assert table.y.tolist() == [-1] * 3
    assert "note: the images are taken without labels: " in capsys.readouterr().err


def test_splits_are_named(tmp_path: Path) -> None:
    data = make_photos(tmp_path / "train", {"cat": 2, "dog": 2}).parent
    make_photos(data / "val", {"cat": 1})
    (data / "test").mkdir()
    photo(0, 0).save(data / "test/x.png")
    table = extract_features(str(data), **TINY)
    assert table.split.tolist() == ["test", "train", "train", "train", "train", "val"]
    assert table.y.tolist() == [-1, 0, 0, 1, 1, 0]


def test_a_csv_names_the_images(photos: Path, tmp_path: Path) -> None:
    listing = tmp_path / "list.csv"
    listing.write_text(f"path,label\n{photos}/cat/000.jpg,x\n{photos}/dog/000.jpg,y\n")
    table = extract_features(str(listing), **TINY)
    assert table.classes.tolist() == ["x", "y"] and table.y.tolist() == [0, 1]
    listing.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="the first line must be path,label"):
        extract_features(str(listing), **TINY)


def test_features_do_not_depend_on_the_other_images(photos: Path, tmp_path: Path) -> None:
    alone = make_photos(tmp_path / "some", {"cat": 2, "dog": 2})
    few, all_of_them = (extract_features(str(data), cache=False, **TINY) for data in (alone, photos))
    np.testing.assert_array_equal(few.X[0], all_of_them.X[0])


def test_a_second_call_computes_nothing(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**TINY, "cache_dir": str(tmp_path / "cache"), "views": 2}
    first = extract_features(str(photos), **settings)
    monkeypatch.setattr("toolkit.features.store.compute", None)
    second = extract_features(str(photos), out=str(tmp_path / "x.npz"), **settings)
    np.testing.assert_array_equal(first.X, second.X)
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        extract_features(str(photos), **{**settings, "views": 3})


def test_only_what_is_missing_is_computed(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    extract_features(str(photos), cache_dir=str(cache), **TINY)
    assert n_stored(cache) == 30
    extract_features(str(photos), cache_dir=str(cache), views=3, **TINY)
    assert n_stored(cache) == 90
    extract_features(str(photos), cache_dir=str(cache), taps=[1, 2], **TINY)  # computed with the last, at no cost
    assert n_stored(cache) == 90
    moved = make_photos(tmp_path / "moved", {"cat": 10, "dog": 10, "owl": 11})  # the same content and one more
    extract_features(str(moved), cache_dir=str(cache), **TINY)
    assert n_stored(cache) == 91


def test_without_the_cache_nothing_is_left(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("home", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    kept = extract_features(str(photos), cache_dir=str(tmp_path / "cache"), **TINY)
    table = extract_features(str(photos), cache=False, out=str(tmp_path / "x.npz"), **TINY)
    np.testing.assert_array_equal(kept.X, table.X)
    assert not list((tmp_path / "home").iterdir()) and not list((tmp_path / "temporary").iterdir())


@pytest.mark.usefixtures("work_must_not_begin")
def test_an_output_that_cannot_be_is_refused_before_the_work(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.npz").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for name in ("x.csv", "x", ".npz", "x.NPZ"):
        with pytest.raises(SettingError, match=r"out: a file name that ends in \.npz or \.parquet expected, got '"):
            extract_features(str(photos), out=str(tmp_path / name), **TINY)
    for out in ("file/x.npz", "file/deep/x.parquet", "folder.npz"):
        with pytest.raises(ArtifactError, match=r"(file|folder).*: cannot be written \((Not a|Is a) directory\)"):
            extract_features(str(photos), out=str(tmp_path / out), **TINY)

    def refuse(**place: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("toolkit.tasks.feature_table.tempfile.TemporaryFile", refuse)
    with pytest.raises(ArtifactError, match=r"x\.npz: cannot be written \(Permission denied\)"):
        extract_features(str(photos), out=str(tmp_path / "new/folder/x.npz"), **TINY)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SettingError, match=r'needs pyarrow; run: pip install "\.\[parquet\]"'):
        extract_features(str(photos), out=str(tmp_path / "x.parquet"), **TINY)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("work_must_not_begin")
def test_nothing_is_written_among_the_photos(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(photos)
    monkeypatch.chdir(photos)
    for out in (photos / "x.npz", photos / "cat/deep/x.parquet", tmp_path / "link/x.npz", Path("x.npz")):
        with pytest.raises(ArtifactError, match=r"x\.\w+ lies inside the folder of photos.*choose another --out"):
            extract_features(str(photos), out=str(out), **TINY)
    assert not list(photos.rglob("x.*"))


def test_a_file_that_is_there_is_replaced_only_if_asked(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.npz"
    out.write_text("before")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("toolkit.tasks.features._scan_any", None)
        assert main(["features", str(photos), "--out", str(out), *words()]) == 1
    told = capsys.readouterr().err
    assert told == f"error: {out} is there already; choose another --out, or replace it by --overwrite\n"
    assert out.read_text() == "before"
    assert main(["features", str(photos), "--out", str(out), "--overwrite", *words()]) == 0
    with np.load(out) as stored:
        assert stored["X"].shape == (30, 1280)


def test_npz_needs_no_pyarrow(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert extract_features(str(photos), out=str(tmp_path / "x.npz"), **TINY).X.shape == (30, 16)


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_a_file_is_whole_or_as_it_was(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    out = tmp_path / f"x.{suffix}"
    out.write_text("before")
    monkeypatch.setattr(feature_table, "BLOCK_ROWS", 4)
    calls = []

    def fail_later(self: PooledRows, rows: slice) -> NDArray[np.float32]:
        calls.append(rows)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return np.zeros((4, 16), np.float32)

    monkeypatch.setattr(PooledRows, "__getitem__", fail_later)
    with pytest.raises(ArtifactError, match=r"cannot be written \(No space left on device\); choose another --out"):
        extract_features(str(photos), out=str(out), overwrite=True, **TINY)
    assert out.read_text() == "before" and list(tmp_path.iterdir()) == [out]


class Rows:
    """Rows that are made up when they are asked for; notes how much Arrow holds then."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape
        self.dtype = np.dtype(np.float32)
        self.held: list[int] = []

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        self.held.append(pa.total_allocated_bytes())
        return np.full((rows.stop - rows.start, self.shape[1]), rows.start, np.float32)


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.setattr(feature_table, "BLOCK_BYTES", 1 << 20)
    n, width = 24_000, 512  # 49 MB of features
    paths = tuple(f"{number:06}.jpg" for number in range(n))
    manifest = Manifest(tmp_path, ("a",), paths, np.zeros(n, np.int64), np.zeros(n, np.int8))
    table, rows = feature_table.FeatureTable(manifest, 1, (n, width), str(tmp_path / "x")), Rows((n, width))
    feature_table.write_table(str(tmp_path / f"first.{suffix}"), table, rows)  # type: ignore[arg-type]  # imports
    rows.held.clear()
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        feature_table.write_table(str(tmp_path / f"x.{suffix}"), table, rows)  # type: ignore[arg-type]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8e6 and max(rows.held) - before < 8e6
    read = feature_table._read_values(str(tmp_path / f"x.{suffix}"))
    assert read.shape == (n, width) and read[-1, 0] == read[-1, -1] == (n - 1) // 512 * 512


def test_files_that_cannot_be_read_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_photos(tmp_path / "data", {"cat": 3, "dog": 3})
    (data / "cat/001.jpg").write_bytes((data / "cat/001.jpg").read_bytes()[:700])  # its header is whole
    (data / "dog/no.png").write_text("text")
    for _ in range(2):  # what failed is not stored, so it fails again
        table = extract_features(str(data), views=2, **TINY)
        assert table.X.shape == (10, 16) and "cat/001.jpg" not in table.paths
        assert [path for path, _ in table.quarantined] == ["cat/001.jpg", "dog/no.png"]
        np.testing.assert_array_equal(table.X[2], by_hand(data / "cat/002.jpg"))
    assert main(["features", str(data), *words()]) == 0
    captured = capsys.readouterr()
    assert captured.out == "5 images × 1280 features, 2 classes; 2 files quarantined\n"
    assert "nothing was written" in captured.err


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    data = make_photos(tmp_path / "data", {"cat": 2, "dog": 2})
    for file in data.rglob("*.jpg"):
        file.write_bytes(file.read_bytes()[:700])
    with pytest.raises(DataError, match=r"none of the 4 images can be used; the first: cat/000\.jpg: "):
        extract_features(str(data), out=str(tmp_path / "deep/x.npz"), **TINY)
    assert [file.name for file in tmp_path.iterdir()] == ["data"]


def test_a_key_that_is_not_used_is_refused(photos: Path) -> None:
    for more in ({"augment": "crop"}, {"augment": "none", "views": 1}):
        with pytest.raises(SettingError, match="augment is not used with views 1"):
            extract_features(str(photos), **TINY, **more)
    with pytest.raises(SettingError, match="views: 1 to 100000 expected, got 0"):
        extract_features(str(photos), views=0, **TINY)
    with pytest.raises(SettingError, match="taps: distinct stages from 0 to 3 expected"):
        extract_features(str(photos), taps=[4], **TINY)
    with pytest.raises(SettingError, match="precision '16-mixed' needs a GPU"):
        extract_features(str(photos), **{**TINY, "precision": "16-mixed"})


def test_the_command(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    npz, parquet = str(tmp_path / "x.npz"), str(tmp_path / "x.parquet")
    first = ["--image-size", "32", "--taps", "6,7", "--workers", "0", "--cache-dir", str(tmp_path / "cache")]
    assert main(["features", str(photos), "--out", npz, *first]) == 0
    captured = capsys.readouterr()
    assert captured.out == "30 images × 1600 features, 3 classes; 0 files quarantined\n"
    assert "features: 30 images in" in captured.err
    more = ["--views", "2", "--augment", "crop", "--seed", "3", "--cache", "false"]
    assert main(["features", str(photos), "--out", parquet, *words(), *more]) == 0
    captured = capsys.readouterr()
    assert captured.out == "30 images × 2 views × 1280 features, 3 classes; 0 files quarantined\n"
    in_python = extract_features(str(photos), views=2, augment="crop", seed=3, **SMALL)
    X = pq.read_table(parquet)["X"].combine_chunks().flatten().to_numpy().reshape(60, 1280)
    np.testing.assert_array_equal(X, in_python.X)
    with np.load(npz) as stored:
        np.testing.assert_array_equal(X[::2], stored["X"][:, -1280:])


def test_there_is_nothing_to_replace_without_a_file(photos: Path) -> None:
    with pytest.raises(SettingError, match="overwrite is not used where nothing is written"):
        extract_features(str(photos), overwrite=True)
