"""evaluate: a saved model on labelled data, never on an image that it was trained on unless asked to."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.photos import make_photos
from tests.tasks.conftest import Runs
from tests.tasks.small import run
from toolkit.cli import main
from toolkit.errors import ArtifactError, DataError, SettingError
from toolkit.storage import digest
from toolkit.tasks.evaluate import Evaluation, evaluate


def score(model: Path, data: Path, **more: Any) -> Evaluation:
    return evaluate(str(model), str(data), device="cpu", workers=0, **more)


@pytest.mark.parametrize("strategy", ["head", "partial"])
def test_on_its_own_folder_a_run_is_scored_on_its_own_val(
    runs: Runs, photos: Path, strategy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for model in (runs(strategy).path, runs(strategy).model_path):
        found = score(model, photos)
        assert found.split == "val"
        expected = runs(strategy).metrics["val"]
        assert found.scores.n == expected["n"] and found.scores.accuracy == expected["accuracy"]
        assert found.scores.nll == pytest.approx(expected["nll"], abs=1e-4)
    assert "its own split is used again" in capsys.readouterr().err


def test_no_training_image_is_scored_though_files_proved_broken(tmp_path: Path) -> None:
    data = make_photos(tmp_path / "data", {"cat": 10, "dog": 10})
    validated = {row["path"] for row in table(run(data, tmp_path / "first").path / "predictions.csv")}
    for path in sorted(validated)[:3]:
        (data / path).write_bytes((data / path).read_bytes()[:700])
    result = run(data, tmp_path / "run")
    rows = table(result.path / "predictions.csv")
    assert {row["path"] for row in rows} != validated and result.metrics["quarantined"] == 3
    score(result.path, data, out=str(tmp_path / "scores"))
    assert table(tmp_path / "scores/predictions.csv") == rows


def test_what_was_trained_on_is_known_wherever_it_lies(
    runs: Runs, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = runs("head").path
    validated = {row["path"] for row in table(model / "predictions.csv")}
    moved = tmp_path / "moved"
    for path in sorted(file.relative_to(photos) for file in photos.rglob("*.jpg")):
        target = moved / path.parent / f"renamed {path.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(photos / path, target)
    found = score(model, moved)
    assert found.scores.n == len(validated) and found.split == "val"
    assert f"{30 - len(validated)} of these images are copies of images that were trained on; 6 are new" in (
        capsys.readouterr().err
    )
    assert score(model, moved, split="all").scores.n == 30
    learned = tmp_path / "learned"
    for path in sorted({str(file.relative_to(photos)) for file in photos.rglob("*.jpg")} - validated):
        (learned / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(photos / path, learned / path)
    assert score(model, learned).scores.n == 30 - len(validated)
    assert "say nothing of new ones" in capsys.readouterr().err


def test_images_that_came_since_are_scored_and_not_taken_for_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_photos(tmp_path / "data", {"cat": 10, "dog": 10})
    result = run(data, tmp_path / "run")
    rows = table(result.path / "trained_on.csv")
    assert len(rows) == result.metrics["train"]["n"] and list(rows[0]) == ["path", "fingerprint"]
    for number in range(4):
        file = data / "cat" / f"{number:03}.jpg"
        (data / "cat" / f"new{number}.jpg").write_bytes(file.read_bytes() + b"\0")
    found = score(result.path, data)
    assert found.scores.n == result.metrics["val"]["n"] + 4
    assert "its own split is used again; 4 images are new since" in capsys.readouterr().err
    (result.path / "trained_on.csv").unlink()  # of a run that an earlier version wrote
    assert score(result.path, data).scores.n == result.metrics["val"]["n"]


def test_a_table_that_is_there_is_replaced_only_if_asked(
    runs: Runs, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores"
    out.mkdir()
    for name in ("predictions.csv", "confusion.csv", "per_class.csv", "mistakes.csv"):
        (out / name).write_text("mine")
        with pytest.raises(ArtifactError, match=f"{name} is there already; .* or replace it by --overwrite"):
            score(runs("head").path, photos, out=str(out))
        assert [(file.name, file.read_text()) for file in out.iterdir()] == [(name, "mine")]
        (out / name).unlink()
    (out / "predictions.csv").write_text("mine")
    capsys.readouterr()
    words = [str(runs("head").path), str(photos), "--out", str(out), "--workers", "0"]
    assert main(["evaluate", *words, "--overwrite"]) == 0
    assert len(table(out / "predictions.csv")) == 6 and "note: not of" not in capsys.readouterr().err
    (out / "mistakes.csv").unlink()
    (out / "mistakes.csv").mkdir()
    with pytest.raises(ArtifactError, match=r"mistakes\.csv: cannot be written"):
        score(runs("head").path, photos, out=str(out), overwrite=True)
    with pytest.raises(SettingError, match="overwrite is not used where nothing is written"):
        score(runs("head").path, photos, overwrite=True)


def test_what_is_not_written_now_is_left_as_it_is_and_named(
    runs: Runs, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures"
    out.mkdir()
    (out / "robustness.png").write_bytes(b"mine")
    score(runs("head").path, photos, out=str(out))
    assert f"note: not of this evaluation, and left as it is in {out}: robustness.png\n" in capsys.readouterr().err
    for name in ("predictions.csv", "confusion.csv", "per_class.csv", "mistakes.csv"):
        (out / name).unlink()
    with pytest.raises(ArtifactError, match=r"robustness\.png is there already; .* or replace it by --overwrite"):
        score(runs("head").path, photos, robustness=True, out=str(out))
    assert [file.read_bytes() for file in out.iterdir()] == [b"mine"]
    score(runs("head").path, photos, robustness=True, overwrite=True, out=str(out))
    assert (out / "robustness.png").read_bytes() != b"mine" and (out / "robustness.csv").exists()


def test_uncompressed_images_with_one_margin_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def scans(folder: Path, seed: int) -> Path:
        """Return a folder of grey BMPs whose first and last 100 kB are black."""
        drawn = np.random.default_rng(seed)
        for name in [f"{kind}/{number}.bmp" for kind in ("cat", "dog") for number in range(8)]:
            pixels = np.zeros((600, 400), np.uint8)
            pixels[260:340] = drawn.integers(0, 255, (80, 400))
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / name)
        return folder

    result = run(scans(tmp_path / "data", 0), tmp_path / "run")
    found = score(result.path, scans(tmp_path / "new", 1))
    assert (found.split, found.scores.n) == ("all", 16)
    assert "copies" not in capsys.readouterr().err
    shutil.copytree(tmp_path / "data", tmp_path / "moved")
    assert score(result.path, tmp_path / "moved").scores.n == result.metrics["val"]["n"]


def test_a_run_of_an_earlier_version_knows_its_images_by_the_ends_of_their_files(tmp_path: Path) -> None:
    data = make_photos(tmp_path / "data", {"cat": 10, "dog": 10})
    for file in data.rglob("*.jpg"):
        file.write_bytes(file.read_bytes() + bytes(200_000))  # what follows a JPEG's end is no part of it
    result = run(data, tmp_path / "run")
    rows = table(result.path / "trained_on.csv")
    old = ["path,fingerprint"]
    for row in rows:
        content = (data / row["path"]).read_bytes()
        old.append(f"{row['path']},{len(content)}-{digest(content[:65536] + content[-65536:]).hex()}")
    (result.path / "trained_on.csv").write_text("\n".join(old) + "\n")
    shutil.copytree(data, tmp_path / "moved")
    assert score(result.path, tmp_path / "moved").scores.n == result.metrics["val"]["n"] == 20 - len(rows)


def table(file: Path) -> list[dict[str, str]]:
    with open(file, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_splits(runs: Runs, photos: Path, tmp_path: Path) -> None:
    model = runs("head").path
    assert {split: score(model, photos, split=split).scores.n for split in ("val", "train", "all")} == {
        "val": 6,
        "train": 24,
        "all": 30,
    }
    with pytest.raises(DataError, match="there are no labelled images in test"):
        score(model, photos, split="test")
    with pytest.raises(SettingError, match="unknown split 'valid'; did you mean one of: val"):
        score(model, photos, split="valid")
    data = make_photos(tmp_path / "data/train", {"cat": 3, "dog": 3}).parent
    make_photos(data / "val", {"cat": 2})
    assert (score(model, data).split, score(model, data).scores.n) == ("val", 2)
    make_photos(data / "test", {"dog": 1})
    assert (score(model, data).split, score(model, data).scores.n) == ("test", 1)
    shutil.move(data / "test/dog/000.jpg", data / "test/000.jpg")
    shutil.rmtree(data / "test/dog")
    assert score(model, data).split == "val"


def test_new_photographs_are_scored_all(runs: Runs, tmp_path: Path) -> None:
    data = make_photos(tmp_path / "new", {"cat": 3, "owl": 2}, seed=5)
    found = score(runs("head").path, data)
    assert (found.split, found.scores.n, found.quarantined) == ("all", 5, 0)
    one_class = make_photos(tmp_path / "one", {"owl": 3}, seed=6)
    assert score(runs("head").path, one_class).scores.n == 3


def test_a_class_that_the_model_does_not_know_is_named(runs: Runs, tmp_path: Path) -> None:
    data = make_photos(tmp_path / "new", {"cat": 2, "yak": 2})
    with pytest.raises(DataError, match="class 'yak' is unknown to the model, which has: cat, dog, owl"):
        score(runs("head").path, data)


def test_files_that_cannot_be_read_are_counted(runs: Runs, tmp_path: Path) -> None:
    data = make_photos(tmp_path / "new", {"cat": 3, "owl": 2})
    (data / "cat/000.jpg").write_bytes((data / "cat/000.jpg").read_bytes()[:700])
    (data / "cat/001.jpg").write_bytes(b"")
    found = score(runs("head").path, data, split="all")  # of which three are copies of what it was trained on
    assert (found.scores.n, found.quarantined) == (3, 2)
    assert str(found).startswith("all: accuracy ") and str(found).endswith("; 2 files quarantined")
    for file in data.rglob("*.jpg"):
        file.write_bytes(file.read_bytes()[:700])
    with pytest.raises(DataError, match=r"none of the \d images can be read; the first: "):
        score(runs("head").path, data)


def test_tables_and_json(runs: Runs, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep/scores"
    words = [str(runs("head").path), str(photos), "--out", str(out), "--json", "--workers", "0", "--split", "all"]
    assert main(["evaluate", *words]) == 0
    scores = json.loads(capsys.readouterr().out)
    expected = ["split", "n", "accuracy", "accuracy_ci95", "balanced_accuracy", "macro_f1", "nll", "ece", "quarantined"]
    assert list(scores) == expected and (scores["split"], scores["n"]) == ("all", 30)
    names = {"predictions.csv", "per_class.csv", "confusion.csv", "mistakes.csv"}
    assert {file.name for file in out.iterdir()} == names
    rows = table(out / "predictions.csv")
    assert len(rows) == 30 and sum(row["label"] == row["prediction"] for row in rows) / 30 == scores["accuracy"]


def test_an_output_that_cannot_be_is_refused_before_the_work(runs: Runs, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="file: cannot be written"):
        score(runs("head").path, photos, out=str(tmp_path / "file"))
    shutil.copytree(runs("head").path, tmp_path / "run")
    with pytest.raises(ArtifactError, match="holds a run, whose tables would be replaced"):
        score(tmp_path / "run", photos, split="all", out=str(tmp_path / "run"))
    assert len(table(tmp_path / "run/predictions.csv")) == 6


def test_a_run_whose_predictions_are_gone_cannot_say_what_was_trained_on(
    runs: Runs, photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(runs("head").path, tmp_path / "run")
    (tmp_path / "run/predictions.csv").unlink()
    with pytest.raises(DataError, match="only it says which images were not trained on"):
        score(tmp_path / "run", photos)
    shutil.copytree(tmp_path / "run/model", tmp_path / "alone")
    assert score(tmp_path / "alone", photos).split == "all"
