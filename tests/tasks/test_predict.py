"""predict: files, folders and patterns; one record an image whatever is wrong with some of them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.photos import make_photos, photo
from tests.tasks.conftest import Runs
from tests.tasks.small import run
from toolkit.cli import main
from toolkit.errors import DataError, SettingError
from toolkit.tasks.predict import image_files, predict

LABELS = ("cat", "dog", "owl")


def records(model: Path, *paths: object) -> list[dict[str, Any]]:
    return list(predict(str(model), [str(path) for path in paths], device="cpu", workers=0))


def test_files_folders_and_patterns_each_image_once_in_order(photos: Path, runs: Runs) -> None:
    given = (photos / "owl/003.jpg", photos / "cat", photos / "*/000.jpg", photos / "owl/003.jpg")
    found = [record["path"] for record in records(runs("head").path, *given)]
    expected = [photos / "owl/003.jpg", *sorted((photos / "cat").iterdir()), photos / "dog/000.jpg"]
    assert found == [str(path) for path in [*expected, photos / "owl/000.jpg"]]


def test_a_record_says_label_probability_and_top(photos: Path, runs: Runs) -> None:
    (record,) = records(runs("head").path, photos / "cat/000.jpg")
    assert list(record) == ["path", "label", "probability", "top"]
    assert [item["label"] for item in record["top"]].count(record["label"]) == 1
    assert record["top"][0] == {"label": record["label"], "probability": record["probability"]}
    chances = [item["probability"] for item in record["top"]]
    assert len(chances) == 3 and chances == sorted(chances, reverse=True)
    assert sum(chances) == pytest.approx(1, abs=1e-6)


def test_no_more_than_five_are_listed(tmp_path: Path) -> None:
    data = make_photos(tmp_path / "data", dict.fromkeys("abcdef", 2))
    (record,) = records(run(data, tmp_path / "run").path, data / "a/000.jpg")
    assert len(record["top"]) == 5


def test_one_broken_file_spoils_nothing(photos: Path, runs: Runs, tmp_path: Path) -> None:
    good = (photos / "cat/000.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(good[: len(good) // 2])
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "good.jpg").write_bytes(good)
    names = ["cut.jpg", "notes.txt", "gone.jpg", "good.jpg"]
    found = records(runs("head").path, *(tmp_path / name for name in names))
    assert [Path(record["path"]).name for record in found] == names
    assert [list(record) for record in found[:3]] == [["path", "error"]] * 3
    assert all(record["error"] for record in found[:3]) and "No such file" in found[2]["error"]
    alone = records(runs("head").path, tmp_path / "good.jpg")
    assert found[3] == alone[0]


def test_of_a_folder_the_images_are_taken(runs: Runs, tmp_path: Path) -> None:
    make_photos(tmp_path / "deep", {"a": 1})
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / ".hidden.jpg").write_bytes((tmp_path / "deep/a/000.jpg").read_bytes())
    (tmp_path / "broken.png").write_bytes(b"")
    found = records(runs("head").path, tmp_path)
    assert [os.path.relpath(record["path"], tmp_path) for record in found] == ["broken.png", "deep/a/000.jpg"]
    assert "error" in found[0] and "label" in found[1]


def test_company_changes_nothing(photos: Path, runs: Runs, tmp_path: Path) -> None:
    for number in range(40):
        photo(number % 3, number).save(tmp_path / f"{number:02}.png")
    together = records(runs("head").path, tmp_path)
    assert len(together) == 40
    for number in (0, 31, 32, 39):
        assert records(runs("head").path, tmp_path / f"{number:02}.png") == [together[number]]


def test_names_of_every_kind(
    photos: Path, runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [
        "Größe ü.jpg",
        "猫.jpg",
        "a[1].jpg",
        "with\nnewline.jpg",
        "quo\"te'.jpg",
        "-dash.jpg",
        os.fsdecode(b"\xff.jpg"),
    ]
    for name in names:
        shutil.copy(photos / "cat/000.jpg", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert main(["predict", str(runs("head").path), *(f"./{name}" for name in names), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["path"] for line in lines] == [f"./{name}" for name in names]
    assert all(json.loads(line)["label"] == json.loads(lines[0])["label"] for line in lines)
    assert "猫" in lines[1]


def test_a_name_in_a_folder_that_is_no_utf_8_is_told(photos: Path, runs: Runs, tmp_path: Path) -> None:
    good = photos / "cat/000.jpg"
    shutil.copy(good, tmp_path / "a.jpg")
    (tmp_path / "z.jpg").write_bytes(b"")
    for name in (b"\xff.jpg", b"\xfe/x.jpg"):
        file = tmp_path / os.fsdecode(name)
        file.parent.mkdir(exist_ok=True)
        shutil.copy(good, file)
    told = {os.path.relpath(record["path"], tmp_path): record for record in records(runs("head").path, tmp_path)}
    assert list(told) == ["\\udcfe/x.jpg", "\\udcff.jpg", "a.jpg", "z.jpg"]
    reason = "the name of the file or of its folder is not valid UTF-8; rename it"
    assert [record.get("error") for record in told.values()][:3] == [reason, reason, None]
    assert "error" in told["z.jpg"] and told["z.jpg"]["error"] != reason
    for name in ("a.jpg", "z.jpg"):
        (tmp_path / name).unlink()
    assert [record["error"] for record in records(runs("head").path, tmp_path)] == [reason, reason]


def test_paths_at_which_there_is_nothing(tmp_path: Path) -> None:
    for paths, wanted in (
        ([str(tmp_path / "none.jpg")], "none.jpg does not exist"),
        ([str(tmp_path / "*.jpg")], "no file fits this pattern"),
        ([str(tmp_path)], "no image file in it or below"),
        ([], "which images"),
    ):
        with pytest.raises(DataError, match=wanted):
            image_files(paths)


def test_the_home_folder_is_known_unless_something_has_the_very_name(
    photos: Path, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    shutil.copytree(photos, home / "photos")
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.chdir(here)
    cat = home / "photos/cat"
    assert list(image_files(["~/photos/cat"])) == [str(cat / f"{number:03}.jpg") for number in range(10)]
    assert list(image_files(["~/photos/*/000.jpg"])) == [str(home / f"photos/{name}/000.jpg") for name in LABELS]
    assert image_files("~/photos/cat/000.jpg") == {str(cat / "000.jpg"): None}
    (record,) = records(runs("head").path, "~/photos/cat/000.jpg")
    assert record["label"] in LABELS
    with pytest.raises(DataError, match="home/none does not exist"):
        image_files("~/none")
    shutil.copytree(photos / "owl", here / "~/photos/cat")
    (here / "~/photos/cat/001.jpg").rename(here / "~/photos/cat/mine.jpg")
    assert str(Path("~/photos/cat/mine.jpg")) in image_files(["~/photos/cat"])
    assert list(image_files(["~/photos/*/mine.*"])) == ["~/photos/cat/mine.jpg"]


def test_a_single_path_is_taken_for_a_list_of_one(photos: Path) -> None:
    assert image_files(str(photos / "cat/000.jpg")) == {str(photos / "cat/000.jpg"): None}
    assert image_files([photos / "cat/000.jpg"]) == {str(photos / "cat/000.jpg"): None}  # type: ignore[list-item]


def test_a_model_that_is_none_is_one_line(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(tmp_path), str(photos)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} holds no finished model")


def test_decoding_is_that_of_the_training(photos: Path, runs: Runs, tmp_path: Path) -> None:
    image = Image.open(photos / "cat/000.jpg").convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    image.save(tmp_path / "upright.png")
    turned, upright = records(runs("head").path, tmp_path / "turned.png", tmp_path / "upright.png")
    assert {**turned, "path": ""} == {**upright, "path": ""}


def test_a_path_a_device_and_a_single_model_are_taken_as_they_come_in_python(photos: Path, runs: Runs) -> None:
    import torch

    model, image = runs("head").path, photos / "cat/000.jpg"
    (expected,) = records(model, image)
    taken: Any = {"model": model, "paths": image, "ensemble": model, "device": torch.device("cpu")}
    (record,) = predict(**taken, workers=0)
    assert record == {**expected, "spread": 0.0}
    wrong: Any = "2"
    with pytest.raises(SettingError, match="workers: 0 to 1024 processes expected, got '2'"):
        predict(str(model), [str(image)], workers=wrong)
