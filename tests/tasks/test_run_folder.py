"""The run folder: its files, what is in them, and that they give the run again."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from tests.photos import make_photos, photo
from tests.tasks.conftest import Runs
from tests.tasks.small import run, words
from toolkit.cli import main
from toolkit.options import Options

ALWAYS = {
    "config.yaml",
    "plan.json",
    "metrics.json",
    "predictions.csv",
    "quarantine.csv",
    "trained_on.csv",
    "per_class.csv",
    "confusion.csv",
    "mistakes.csv",
    "model",
}
SCORES = ["n", "accuracy", "accuracy_ci95", "balanced_accuracy", "macro_f1", "nll", "ece"]


def strict(file: Path) -> Any:
    """Return the content of a JSON file, which must not name NaN or Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{file} holds {name}")

    return json.loads(file.read_text(encoding="utf-8"), parse_constant=refuse)


def table(file: Path) -> list[dict[str, str]]:
    with open(file, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("strategy", ["head", "partial"])
def test_the_files_are_these(runs: Runs, strategy: str) -> None:
    folder = runs(strategy).path
    expected = ALWAYS if strategy == "head" else ALWAYS | {"history.csv"}
    assert {entry.name for entry in folder.iterdir()} == expected
    assert {entry.name for entry in (folder / "model").iterdir()} == {"model.safetensors", "model.json"}


def test_metrics_have_their_keys_and_null_for_what_is_missing(runs: Runs) -> None:
    metrics = strict(runs("head").path / "metrics.json")
    assert list(metrics) == [
        "strategy",
        "backbone",
        "classes",
        "train",
        "val",
        "test",
        "scanned",
        "used",
        "quarantined",
        "skipped",
        "seconds",
        "val_chose",
        "folds",
        "diagnosis",
    ]
    assert (metrics["val_chose"], metrics["folds"], metrics["diagnosis"]) == ("nothing", None, None)
    assert (metrics["strategy"], metrics["backbone"]) == ("head", "efficientnet_lite0")
    assert metrics["classes"] == ["cat", "dog", "owl"]
    assert metrics["train"] == {"n": 24}
    assert list(metrics["val"]) == SCORES and metrics["val"]["n"] == 6
    assert metrics["test"] is None
    assert list(metrics["seconds"]) == ["total", "scan", "extract", "plan", "fit", "evaluate"]
    parts = [value for key, value in metrics["seconds"].items() if key != "total"]
    assert all(value >= 0 for value in parts) and sum(parts) <= metrics["seconds"]["total"] + 0.01


def test_the_plan_has_its_keys(runs: Runs) -> None:
    plan = strict(runs("partial").path / "plan.json")
    expected = "strategy backbone cut taps head recipe multipliers epochs views augmentation image_size "
    expected += "similarity facts probes ways reasons runner_up predicted overridden verdict rate_test"
    assert set(plan) == set(expected.split())
    assert plan["multipliers"] == [0, 0, 0, 0, 0, 0.01, 0.01, 0.1, 1]
    assert (plan["cut"], plan["taps"], plan["image_size"], plan["epochs"]) == (5, [4, 5, 6, 7], 32, 2)
    assert plan["similarity"] is None and plan["runner_up"] is None and plan["predicted"] is None


def test_the_config_is_complete(runs: Runs, photos: Path) -> None:
    config = yaml.safe_load((runs("head").path / "config.yaml").read_text(encoding="utf-8"))
    assert list(config) == ["data", "out", *Options.__annotations__]
    assert (config["data"], config["out"]) == (str(photos), str(runs("head").path))
    assert (config["strategy"], config["image_size"], config["workers"], config["seed"]) == ("head", 32, 0, 0)


@pytest.mark.parametrize("strategy", ["head", "partial"])
def test_the_config_gives_the_run_again(
    runs: Runs, strategy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = runs(strategy).path
    assert main(["finetune", "--config", str(before / "config.yaml"), "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again/predictions.csv").read_bytes() == (before / "predictions.csv").read_bytes()
    assert (tmp_path / "again/plan.json").read_bytes() == (before / "plan.json").read_bytes()
    assert f"run folder: {tmp_path / 'again'}" in capsys.readouterr().out


def test_predictions_are_val_rows_by_path(runs: Runs) -> None:
    rows = table(runs("head").path / "predictions.csv")
    assert list(rows[0]) == ["path", "split", "label", "prediction", "probability"]
    assert len(rows) == 6 and {row["split"] for row in rows} == {"val"}
    assert [row["path"] for row in rows] == sorted(row["path"] for row in rows)
    for row in rows:
        assert row["path"].split("/")[0] == row["label"]
        assert row["prediction"] in ("cat", "dog", "owl")
        assert 1 / 3 <= float(row["probability"]) <= 1 and len(row["probability"]) == 8


def test_the_scores_are_those_of_the_predictions(runs: Runs) -> None:
    for strategy in ("head", "scratch"):
        rows = table(runs(strategy).path / "predictions.csv")
        hits = sum(row["label"] == row["prediction"] for row in rows)
        assert runs(strategy).metrics["val"]["accuracy"] == pytest.approx(hits / len(rows))
        mistakes = table(runs(strategy).path / "mistakes.csv")
        assert len(mistakes) == len(rows) - hits


def digests(root: Path) -> dict[str, tuple[str, int]]:
    return {
        str(file.relative_to(root)): (hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_mtime_ns)
        for file in root.rglob("*")
        if file.is_file()
    }


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    """Return 2 classes of 6 good photographs, 4 broken ones, and 5 files that are none."""
    root = make_photos(tmp_path / "messy", {"cat": 6, "dog": 6})
    good = (root / "cat/000.jpg").read_bytes()
    (root / "cat/cut.jpg").write_bytes(good[: len(good) // 2])  # a sound header
    (root / "cat/empty.png").write_bytes(b"")
    (root / "dog/noise.jpg").write_bytes(b"no image at all" * 20)
    Image.new("RGB", (30, 20)).save(root / "stray.png")
    (root / "cat/notes.txt").write_text("about cats")
    (root / "cat/.DS_Store").write_bytes(b"x")
    (root / "dog/Thumbs.db").write_bytes(b"x")
    (root / ".git").mkdir()
    (root / ".git/hidden.jpg").write_bytes(good)
    (root / "readme.md").write_text("hello")
    return root


@pytest.mark.parametrize("strategy", ["head", "partial", "scratch"])
def test_every_file_is_accounted_for_and_none_is_touched(messy: Path, tmp_path: Path, strategy: str) -> None:
    before = digests(messy)
    result = run(messy, tmp_path / "run", strategy, **({} if strategy == "head" else {"epochs": 1}))
    metrics = result.metrics
    assert (metrics["scanned"], metrics["used"], metrics["quarantined"], metrics["skipped"]) == (21, 12, 4, 5)
    assert len(before) == 21
    quarantined = table(result.path / "quarantine.csv")
    assert [row["path"] for row in quarantined] == ["cat/cut.jpg", "cat/empty.png", "dog/noise.jpg", "stray.png"]
    assert all(row["reason"] for row in quarantined)
    assert quarantined[-1]["reason"] == "not in a class folder"
    assert digests(messy) == before


def test_a_labelled_test_split_is_scored_and_listed_after_val(tmp_path: Path) -> None:
    root = make_photos(tmp_path / "data/train", {"cat": 6, "dog": 6}).parent
    make_photos(root / "valid", {"cat": 2, "dog": 2}, seed=1)
    make_photos(root / "test", {"cat": 3, "dog": 2}, seed=2)
    result = run(root, tmp_path / "run")
    assert result.metrics["val"]["n"] == 4 and result.metrics["test"]["n"] == 5
    rows = table(result.path / "predictions.csv")
    assert [row["split"] for row in rows] == ["val"] * 4 + ["test"] * 5
    assert "\ntest: accuracy" in str(result)


def test_a_flat_test_split_is_predicted_and_not_scored(tmp_path: Path) -> None:
    root = make_photos(tmp_path / "data/train", {"cat": 6, "dog": 6}).parent
    (root / "test").mkdir()
    for number in range(3):
        photo(5, number).save(root / f"test/{number}.png")
    result = run(root, tmp_path / "run")
    assert result.metrics["test"] is None and result.metrics["used"] == 15
    rows = [row for row in table(result.path / "predictions.csv") if row["split"] == "test"]
    assert [(row["path"], row["label"]) for row in rows] == [(f"test/{n}.png", "") for n in range(3)]
    assert all(row["prediction"] in ("cat", "dog") for row in rows)


def test_a_csv_is_as_good_as_a_folder(photos: Path, tmp_path: Path) -> None:
    listing = tmp_path / "list.csv"
    lines = [f"{file},{file.parent.name}" for file in sorted(photos.rglob("*.jpg"))]
    listing.write_text("\n".join(["path,label", *lines]), encoding="utf-8")
    result = run(listing, tmp_path / "run")
    assert result.metrics["used"] == 30 and result.metrics["val"]["n"] == 6
    assert result.metrics["classes"] == ["cat", "dog", "owl"]


def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not(runs: Runs, photos: Path, tmp_path: Path) -> None:
    for strategy in ("head", "partial"):
        first = (runs(strategy).path / "predictions.csv").read_bytes()
        again = run(photos, tmp_path / f"{strategy}-again", strategy)
        assert (again.path / "predictions.csv").read_bytes() == first
        other = run(photos, tmp_path / f"{strategy}-other", strategy, seed=1)
        assert (other.path / "predictions.csv").read_bytes() != first


def test_dropout_is_seeded_too(photos: Path, tmp_path: Path) -> None:
    def layers() -> list[nn.Module]:
        torch.manual_seed(0)
        last = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(4, 8, 3, 4))
        return [nn.Conv2d(3, 4, 3, 4), nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3, 4)), last]

    def predictions(name: str) -> bytes:
        torch.manual_seed(ord(name))  # what went on before is of no matter
        result = run(photos, tmp_path / name, "partial", image_size=None, backbone=layers(), lr=0.1)
        return (result.path / "predictions.csv").read_bytes()

    assert predictions("a") == predictions("b")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["head", "partial"])
def test_the_number_of_workers_changes_nothing(runs: Runs, photos: Path, tmp_path: Path, strategy: str) -> None:
    result = run(photos, tmp_path / "run", strategy, workers=2)
    assert (result.path / "predictions.csv").read_bytes() == (runs(strategy).path / "predictions.csv").read_bytes()


def test_a_run_prints_well(runs: Runs) -> None:
    lines = str(runs("head")).splitlines()
    assert lines[0].startswith("head on efficientnet_lite0: 24 training images, ")
    assert lines[1].startswith("val: accuracy ")
    assert lines[2].startswith("     nothing was chosen by these images")
    assert lines[3] == "files: 0 quarantined (quarantine.csv), 0 others skipped"
    assert lines[4] == f"run folder: {runs('head').path}"


def test_results_go_to_stdout_and_the_rest_to_stderr(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert (
        main(
            [
                "finetune",
                str(photos),
                "--out",
                str(out),
                *words(strategy="partial", mixing=1, epochs=1, cache_dir=tmp_path),
            ]
        )
        == 0
    )
    captured = capsys.readouterr()
    assert captured.out.startswith("partial on efficientnet_lite0") and len(captured.out.splitlines()) == 6
    for progress in ("features: 30 images", "plan: partial", "multiplier", "epoch 0: val loss", "epoch 1: train loss"):
        assert progress in captured.err and progress not in captured.out
