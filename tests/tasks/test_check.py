"""`toolkit check`: its exit code, its list of files, and what it refuses; what it finds is held in tests/checks."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

import toolkit
from tests.tasks.small import SMALL, words
from toolkit.cli import main
from toolkit.errors import ToolkitError

NAMES = [
    *("unreadable", "tiny_images", "huge_images", "empty_class", "missing_class", "few_images", "imbalance"),
    *("exact_duplicates", "near_duplicates", "conflicting_labels", "leaks", "label_errors"),
    *("input_statistics", "predict_preprocessing"),
    *("first_loss", "regularized_loss", "gradients", "last_batch", "overfit"),
]


def contents(folder: Path) -> dict[str, str]:
    return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture
def data(photos: Path, tmp_path: Path) -> Path:
    """Return a copy of the photographs that may be changed."""
    return Path(shutil.copytree(photos, tmp_path / "data"))


def test_a_sound_folder_is_0_and_left_as_it_is(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(photos)
    assert main(["check", str(photos), *words(), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [finding["name"] for finding in report["findings"]] == NAMES
    assert all(finding["advice"] for finding in report["findings"] if finding["status"] != "pass")
    assert contents(photos) == before


def test_one_seed_gives_one_report_whatever_is_stored(photos: Path, tmp_path: Path) -> None:
    cold = toolkit.check(str(photos), cache_dir=str(tmp_path / "cache"), **SMALL)
    assert toolkit.check(str(photos), cache_dir=str(tmp_path / "cache"), **SMALL) == cold
    assert toolkit.check(str(photos), cache=False, **SMALL) == cold


def test_a_failure_is_1_and_the_list_names_the_files(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "empty").mkdir()
    first = sorted((data / "cat").iterdir())[0]
    shutil.copy(first, data / "dog" / "copy.png")
    (data / "owl" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    listed = tmp_path / "fix.csv"
    assert main(["check", str(data), *words(), "--fix_list", str(listed)]) == 1
    out = capsys.readouterr().out
    assert "fail  empty class" in out and out.rstrip().endswith("failed")
    with open(listed, newline="", encoding="utf-8") as file:
        rows = {(row["path"], row["finding"]): row for row in csv.DictReader(file)}
    assert rows["owl/broken.png", "unreadable"]["detail"]
    assert first.name in rows["dog/copy.png", "conflicting_labels"]["detail"]
    assert rows["dog/copy.png", "exact_duplicates"]["label"] == "dog"


def test_a_backbone_of_ones_own_is_left_as_it_was(photos: Path) -> None:
    from tests.checks.pictures import random_backbone

    backbone = random_backbone()
    before = [value.clone() for stage in backbone.stages for value in stage.state_dict().values()]
    toolkit.check(str(photos), backbone=backbone, device="cpu", workers=0, cache=False)
    after = [value for stage in backbone.stages for value in stage.state_dict().values()]
    assert all(bool((one == other).all()) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "mpl"}, "mlp"),
        ({"model": "knn"}, "unknown"),
        ({"backbone": "auto"}, "name one"),
        ({"lr": -1.0}, "lr"),
        ({"lr": "auto"}, "lr"),
        ({"fix_list": "/no/such/folder/fix.csv"}, "does not exist"),
    ],
)
def test_what_cannot_be_done_is_one_line(photos: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ToolkitError, match=message) as caught:
        toolkit.check(str(photos), **{**SMALL, **options})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_what_is_no_data_set_is_one_line(tmp_path: Path) -> None:
    for folder in (tmp_path / "nothing", tmp_path):
        with pytest.raises(ToolkitError):
            toolkit.check(str(folder), **SMALL)


def test_a_rate_that_moves_nothing_fails_with_its_own_words(photos: Path) -> None:
    found = toolkit.check(str(photos), strategy="partial", lr=1e-9, **SMALL).finding("overfit")
    assert found.status == "fail" and "too small" in found.seen


@pytest.mark.parametrize("strategy", ["head", "full", "scratch"])
def test_every_strategy_is_tried(photos: Path, strategy: str) -> None:
    report = toolkit.check(str(photos), strategy=strategy, **SMALL)
    for name in ("first_loss", "regularized_loss", "gradients", "last_batch", "overfit"):
        assert report.finding(name).status == "pass", report.finding(name)


@pytest.mark.parametrize("model", ["linear", "svm"])
def test_a_baseline_whose_weights_begin_at_zero_is_sound(photos: Path, model: str) -> None:
    report = toolkit.check(str(photos), model=model, **SMALL)
    assert report.finding("regularized_loss").status == "pass", report.finding("regularized_loss")


def test_a_list_takes_the_place_of_an_older_list_alone(data: Path, tmp_path: Path) -> None:
    before, listed = contents(data), tmp_path / "fix.csv"
    for place in (sorted((data / "cat").iterdir())[0], data, tmp_path / "nowhere" / "fix.csv"):
        with pytest.raises(ToolkitError, match="fix"):
            toolkit.check(str(data), fix_list=str(place), **SMALL)
    assert contents(data) == before
    for _ in range(2):
        toolkit.check(str(data), fix_list=str(listed), **SMALL)
    assert listed.read_text(encoding="utf-8").startswith("path,split,label,finding,detail\n")


def test_many_equal_files_hide_no_changed_copy(photos: Path, tmp_path: Path) -> None:
    split = tmp_path / "data"
    for number, file in enumerate(sorted(file for file in photos.rglob("*") if file.is_file())):
        place = split / ("val" if number % 5 == 0 else "train") / file.parent.name
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    first = sorted((split / "train" / "cat").iterdir())[0]
    for number in range(8):
        shutil.copy(first, first.with_stem(f"copy{number}"))
    Image.open(first).convert("RGB").save(split / "val" / "cat" / "again.jpg", quality=60)
    report = toolkit.check(str(split), **SMALL)
    assert report.finding("leaks").status == "fail", report.finding("leaks")
    assert any(one.finding == "leaks" and one.path == "val/cat/again.jpg" for one in report.suspects)


def test_a_test_split_of_ones_own_is_judged_too(photos: Path, tmp_path: Path) -> None:
    split = tmp_path / "data"
    shutil.copytree(photos, split / "train")
    shutil.copytree(photos, split / "test")
    assert toolkit.check(str(split), **SMALL).finding("leaks").status == "fail"


@pytest.mark.parametrize(
    "options", [{"cut": 3}, {"model": "mlp", "strategy": "partial"}, {"model": "mlp", "strategy": "partial", "cut": 3}]
)
def test_what_would_not_be_used_is_refused(photos: Path, options: dict[str, object]) -> None:
    with pytest.raises(ToolkitError, match="not used"):
        toolkit.check(str(photos), **{**SMALL, **options})  # type: ignore[arg-type]
