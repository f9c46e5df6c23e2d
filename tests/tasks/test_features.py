"""features: pooled features of every image that can be read, with labels where there are any."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.photos import make_photos, photo
from tests.tasks.small import SMALL
from toolkit.cli import main
from toolkit.errors import ArtifactError, DataError, SettingError
from toolkit.tasks.features import extract_features


def test_a_labelled_folder(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep/features.npz"
    table = extract_features(str(photos), out=str(out), **SMALL)
    assert str(table) == "30 images × 1280 features, 3 classes; 0 files quarantined"
    with np.load(out, allow_pickle=False) as stored:
        assert set(stored) == {"paths", "X", "y", "classes", "split"}
        assert stored["X"].dtype == np.float32 and stored["X"].shape == (30, 1280)
        assert stored["y"].dtype == np.int64 and stored["classes"].tolist() == ["cat", "dog", "owl"]
        names = stored["classes"][stored["y"]]
        assert all(path.startswith(f"{name}/") for path, name in zip(stored["paths"], names, strict=True))
        assert stored["paths"].tolist() == sorted(stored["paths"].tolist())
        assert set(stored["split"]) == {""}
        np.testing.assert_array_equal(stored["X"], table.X)
    assert np.isfinite(table.X).all() and len(np.unique(table.X, axis=0)) == 30


def test_taps_lie_side_by_side(photos: Path) -> None:
    last, both = (extract_features(str(photos), taps=taps, **SMALL) for taps in ([7], [6, 7]))
    assert both.X.shape[1] > last.X.shape[1] == 1280
    np.testing.assert_array_equal(both.X[:, -1280:], last.X)


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    for number in range(3):
        photo(0, number).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes(b"")
    (tmp_path / ".hidden").mkdir()
    table = extract_features(str(tmp_path), **SMALL)
    assert table.y.tolist() == [-1, -1, -1] and table.classes.tolist() == []
    assert [path for path, _ in table.quarantined] == ["broken.png"]
    assert table.X.shape == (3, 1280)


def test_folders_that_make_no_data_set_are_taken_without_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_photos(tmp_path / "all", {"holiday": 3})
    table = extract_features(str(tmp_path / "all"), **SMALL)
    assert table.y.tolist() == [-1] * 3
    assert "note: the images are taken without labels: " in capsys.readouterr().err


def test_splits_are_named(tmp_path: Path) -> None:
    data = make_photos(tmp_path / "train", {"cat": 2, "dog": 2}).parent
    make_photos(data / "val", {"cat": 1})
    (data / "test").mkdir()
    photo(0, 0).save(data / "test/x.png")
    table = extract_features(str(data), **SMALL)
    assert table.split.tolist() == ["test", "train", "train", "train", "train", "val"]
    assert table.y.tolist() == [-1, 0, 0, 1, 1, 0]


def test_a_csv_names_the_images(photos: Path, tmp_path: Path) -> None:
    listing = tmp_path / "list.csv"
    listing.write_text(f"path,label\n{photos}/cat/000.jpg,x\n{photos}/dog/000.jpg,y\n")
    table = extract_features(str(listing), **SMALL)
    assert table.classes.tolist() == ["x", "y"] and table.y.tolist() == [0, 1]
    listing.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="the first line must be path,label"):
        extract_features(str(listing), **SMALL)


def test_features_equal_those_of_the_main_job(photos: Path, tmp_path: Path) -> None:
    alone = make_photos(tmp_path / "some", {"cat": 2, "dog": 2})
    few, all_of_them = extract_features(str(alone), **SMALL), extract_features(str(photos), **SMALL)
    np.testing.assert_array_equal(few.X[0], all_of_them.X[0])


def test_an_output_that_cannot_be_is_refused_before_the_work(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr("toolkit.features.extract.extract", refuse)
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(SettingError, match=r"out: a file name that ends in \.npz expected, got 'x\.csv'"):
        extract_features(str(photos), out="x.csv", **SMALL)
    for out in ("file/x.npz", "folder.npz"):
        with pytest.raises(ArtifactError, match="cannot be written"):
            extract_features(str(photos), out=str(tmp_path / out), **SMALL)


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    data = make_photos(tmp_path / "data", {"cat": 2, "dog": 2})
    for file in data.rglob("*.jpg"):
        file.write_bytes(file.read_bytes()[:700])
    with pytest.raises(DataError, match=r"none of the 4 images can be used; the first: cat/000\.jpg: "):
        extract_features(str(data), out=str(tmp_path / "x.npz"), **SMALL)
    assert not (tmp_path / "x.npz").exists()


def test_the_command(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "x.npz")
    assert main(["features", str(photos), "--out", out, "--image-size", "32", "--taps", "6,7", "--workers", "0"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "30 images × 1600 features, 3 classes; 0 files quarantined\n"
    assert "features: 30 images in" in captured.err
