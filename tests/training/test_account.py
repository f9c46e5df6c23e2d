"""Files that fail while a run trains: left out of their batch, and in the run's account at the end."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from safetensors.torch import load_file

from tests.photos import make_photos
from tests.training.tiny import tiny_backbone
from toolkit.data.scan import scan
from toolkit.data.split import assign_splits
from toolkit.options import Options
from toolkit.tasks.run import start_run
from toolkit.training.module import TransferModule


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("strategy", ["partial", "scratch"])
def test_a_file_that_vanishes_while_training_ends_in_the_quarantine(tmp_path, monkeypatch, strategy, cache):
    photos = make_photos(tmp_path / "photos", {"cat": 9, "dog": 8, "owl": 10})
    (photos / "owl" / "empty.jpg").touch()
    (photos / "owl" / "notes.txt").write_text("no image")
    manifest = assign_splits(scan(photos))
    lost = [str(manifest.paths[manifest.rows(split)[2]]) for split in (0, 1)]
    before = {path: path.stat().st_mtime_ns for path in photos.rglob("*.jpg")}

    def vanish(self: TransferModule) -> None:
        for path in lost:
            (photos / path).unlink()

    monkeypatch.setattr(TransferModule, "on_train_start", vanish)
    cut = {"cut": 2} if strategy == "partial" else {}
    options = Options(
        backbone=tiny_backbone(),
        strategy=strategy,
        epochs=2,
        batch_size=4,
        device="cpu",
        precision="32-true",
        workers=0,
        cache=cache,
        cache_dir=str(tmp_path / "cache") if cache else None,
        **cut,
    )
    run = start_run(str(photos), str(tmp_path / "run"), options)
    if cache:  # what was stored of the lost files was used as if they were there
        lost.clear()
    metrics = json.loads((run.path / "metrics.json").read_text())
    with open(run.path / "quarantine.csv", newline="") as file:
        quarantined = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    assert set(quarantined) == {*lost, "owl/empty.jpg"} and all(quarantined.values())
    n, n_lost = metrics["used"], len(lost)
    assert (metrics["quarantined"], metrics["skipped"], n, metrics["scanned"]) == (1 + n_lost, 1, 27 - n_lost, 29)
    assert metrics["train"]["n"] == n - metrics["val"]["n"] and metrics["val"]["n"] == 6 - n_lost // 2
    with open(run.path / "predictions.csv", newline="") as file:
        predicted = {row["path"] for row in csv.DictReader(file)}
    assert len(predicted) == 6 - n_lost // 2 and not predicted & set(lost)
    after = {path: path.stat().st_mtime_ns for path in photos.rglob("*.jpg")}
    assert len(after) == len(before) - 2 and all(before[path] == time for path, time in after.items())


def test_the_pretrained_prefix_of_a_run_is_what_it_was(tmp_path):
    photos = make_photos(tmp_path / "photos", {"cat": 9, "dog": 8})
    options = Options(
        backbone=tiny_backbone(),
        strategy="partial",
        cut=2,
        epochs=2,
        batch_size=4,
        mixing=1.0,
        device="cpu",
        workers=0,
    )
    run = start_run(str(photos), str(tmp_path / "run"), options)
    weights = load_file(run.model_path / "model.safetensors")
    fresh = {
        f"stages.{index}.{name}": value
        for index, stage in enumerate(tiny_backbone().stages)
        for name, value in stage.state_dict().items()
    }
    same = {name for name, value in fresh.items() if torch.equal(weights[name], value)}
    assert {name for name in fresh if name.startswith(("stages.0", "stages.1"))} <= same
    assert any(name.startswith("stages.2") for name in fresh.keys() - same)
    assert any(name.startswith("stages.3") for name in fresh.keys() - same)
    assert (run.path / "history.csv").read_text().count("\n") == 1 + 1 + 2
