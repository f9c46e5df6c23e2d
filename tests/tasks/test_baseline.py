"""`toolkit baseline`: a run folder like any other, from folders and IDX files, with every model on every input."""

from __future__ import annotations

import csv
import dataclasses
import inspect
import json
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import toolkit
from tests.baselines.idx_files import write_idx
from tests.photos import make_photos
from tests.tasks.small import run as finetune
from toolkit.artifacts.model_folder import load_model
from toolkit.baselines import loading
from toolkit.baselines.module import BaselineModule
from toolkit.baselines.options import BaselineOptions
from toolkit.cli import main
from toolkit.errors import ArtifactError, DataError, Interrupted, SettingError
from toolkit.tasks.baseline import train_baseline
from toolkit.tasks.baseline_run import BaselineRun
from toolkit.tasks.evaluate import evaluate
from toolkit.tasks.predict import predict

SMALL: dict[str, Any] = {"workers": 0, "device": "cpu", "pictures": False}
TRAINED: dict[str, Any] = {"epochs": 3, "batch_size": 8, "hidden": [16, 8]}
LINEAR: dict[str, Any] = {"epochs": 3, "batch_size": 8}
OF: dict[str, dict[str, Any]] = {"mlp": TRAINED, "knn": {"k": 3}, "nn": {}}


def run(data: Path, out: Path, model: str = "mlp", **settings: Any) -> BaselineRun:
    options = {**SMALL, **OF.get(model, LINEAR), **settings}
    return train_baseline(str(data), out=str(out), model=model, **options)


def drawings(root: Path, n: int = 12, side: int = 12) -> Path:
    """Write grey images of three classes: stripes that lie, stand, or are not there."""
    generator = np.random.default_rng(0)
    for kind, name in enumerate(("lying", "none", "standing")):
        (root / name).mkdir(parents=True)
        for number in range(n):
            image = generator.integers(60, 120, (side, side))
            if kind != 1:
                image[number % 3 :: 4] += 120
            array = (image.T if kind == 2 else image).astype(np.uint8)
            Image.fromarray(array).save(root / name / f"{number:03}.png")
    return root


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawings(tmp_path_factory.mktemp("grey") / "drawings")


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("colour") / "photos", {"cat": 10, "dog": 10, "owl": 10})


@pytest.fixture(scope="module")
def mlp(grey: Path, tmp_path_factory: pytest.TempPathFactory) -> BaselineRun:
    return run(grey, tmp_path_factory.mktemp("mlp") / "run")


def rows_of(file: Path) -> list[dict[str, str]]:
    with open(file, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def assert_shipped(result: BaselineRun, data: Path) -> None:
    """What `predict` says of the validation files is what predictions.csv says."""
    scored = {str(data / row["path"]): row for row in rows_of(result.path / "predictions.csv")}
    records = list(predict(str(result.path), list(scored), device="cpu", workers=0))
    assert len(records) == len(scored) > 0
    for record in records:
        row = scored[record["path"]]
        assert record["label"] == row["prediction"]
        assert record["probability"] == pytest.approx(float(row["probability"]), abs=2e-6)


def test_options_are_the_keywords() -> None:
    keywords = {key: p.default for key, p in inspect.signature(train_baseline).parameters.items()}
    others = {key: keywords.pop(key) for key in ("data", "out", "resume", "overwrite")}
    assert others == {"data": None, "out": "runs/baseline", "resume": None, "overwrite": False}
    assert keywords == {field.name: field.default for field in dataclasses.fields(BaselineOptions)}
    assert toolkit.train_baseline is train_baseline


@pytest.mark.parametrize("on", ["pixels", "hog"])
@pytest.mark.parametrize("model", ["mlp", "linear", "softmax", "svm", "knn", "nn"])
def test_every_model_on_pixels_and_hand_made_features(model: str, on: str, grey: Path, tmp_path: Path) -> None:
    more = {"epochs": 15, "lr": 0.01} if model not in ("knn", "nn") else {}
    result = run(grey, tmp_path / "run", model, on=on, **more)
    assert result.metrics["val"]["accuracy"] >= (0.8 if on == "hog" else 0.3)
    assert (result.path / "history.csv").exists() == (model not in ("knn", "nn"))
    assert_shipped(result, grey)
    text = str(result)
    assert text.startswith(f"{model} on {on}: 30 training images") and f"run folder: {result.path}" in text


@pytest.mark.parametrize("model", ["mlp", "knn"])
def test_on_pretrained_features(model: str, colour: Path, tmp_path: Path) -> None:
    more = {"metric": "cosine"} if model == "knn" else {"epochs": 5}
    result = run(colour, tmp_path / "run", model, on="features", image_size=32, taps=[5, 6], **more)
    assert result.metrics["backbone"] == "efficientnet_lite0" and result.metrics["val"]["accuracy"] > 0.8
    described = json.loads((result.model_path / "model.json").read_text())
    assert described["kind"] == "baseline" and described["taps"] == [5, 6]
    assert described["backbone"] == {"name": "efficientnet_lite0", "weights": "embedded", "layout": "NCHW"}
    assert_shipped(result, colour)
    assert evaluate(str(result.path), str(colour), device="cpu", workers=0).scores.n == 6
    assert "features of efficientnet_lite0" in str(result)


def test_a_run_folder_like_any_other(mlp: BaselineRun, grey: Path) -> None:
    files = {"config.yaml", "metrics.json", "history.csv", "predictions.csv", "quarantine.csv", "model"}
    files |= {"per_class.csv", "confusion.csv", "mistakes.csv", "trained_on.csv"}
    assert {path.name for path in mlp.path.iterdir()} == files
    metrics = json.loads((mlp.path / "metrics.json").read_text())
    assert metrics == mlp.metrics
    assert (metrics["strategy"], metrics["backbone"], metrics["model"]) == ("baseline", None, "mlp")
    assert metrics["train"] == {"n": 30} and metrics["val"]["n"] == 6 and metrics["test"] is None
    assert metrics["scanned"] == metrics["used"] == 36
    assert set(metrics["seconds"]) == {"total", "scan", "extract", "plan", "fit", "evaluate"}
    assert [row["epoch"] for row in rows_of(mlp.path / "history.csv")] == ["1", "2", "3"]
    assert_shipped(mlp, grey)


def test_metrics_have_the_keys_of_a_finetune_run(mlp: BaselineRun, colour: Path, tmp_path: Path) -> None:
    other = finetune(colour, tmp_path / "run").metrics
    assert set(mlp.metrics) - {"model", "on"} == set(other)


def test_the_config_gives_the_run_again(mlp: BaselineRun, tmp_path: Path) -> None:
    config = yaml.safe_load((mlp.path / "config.yaml").read_text())
    assert config["hidden"] == [16, 8] and config["model"] == "mlp"
    assert main(["baseline", "--config", str(mlp.path / "config.yaml"), "--out", str(tmp_path / "again")]) == 0
    for name in ("predictions.csv", "confusion.csv", "mistakes.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (mlp.path / name).read_bytes()


CHANGES: dict[str, Any] = {
    "hidden": [16, 9],
    "activation": "elu",
    "init": "xavier",
    "batchnorm": True,
    "dropout": 0.3,
    "loss": "hinge",
    "optimizer": "rmsprop",
    "lr": 0.01,
    "schedule": "exponential",
    "l1": 0.001,
    "l2": 0.001,
    "epochs": 4,
    "batch_size": 9,
    "precision": "64-true",
    "image_size": 16,
    "seed": 1,
    "val": 0.4,
    "on": "hog",
    "model": "softmax",
}


@pytest.mark.parametrize("key", CHANGES)
def test_every_flag_changes_the_model(key: str, mlp: BaselineRun, grey: Path, tmp_path: Path) -> None:
    settings = {**SMALL, **(LINEAR if key == "model" else TRAINED), key: CHANGES[key]}
    result = train_baseline(str(grey), out=str(tmp_path / "run"), **settings)
    ours, theirs = (load_file(run.model_path / "model.safetensors") for run in (result, mlp))
    assert ours.keys() != theirs.keys() or any(
        value.shape != theirs[name].shape or not torch.equal(value, theirs[name]) for name, value in ours.items()
    )


@pytest.mark.parametrize(("key", "value"), [("k", 9), ("metric", "l2"), ("metric", "cosine")])
def test_flags_of_neighbours_change_what_they_find(key: str, value: Any, grey: Path, tmp_path: Path) -> None:
    one = run(grey, tmp_path / "one", "knn").path
    other = run(grey, tmp_path / "other", "knn", **{key: value}).path
    pixels = torch.randint(0, 256, (20, 1, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = [load_model(path).network.body.nearest(pixels) for path in (one, other)]
    assert found[0][0].shape != found[1][0].shape or not torch.equal(found[0][0], found[1][0])


def test_both_kinds_of_layers_give_the_same_history(grey: Path, tmp_path: Path) -> None:
    settings = {"precision": "64-true", "dropout": 0.3, "batchnorm": True, "schedule": "cosine"}
    histories = []
    for layers in ("torch", "reference"):
        result = run(grey, tmp_path / layers, layers=layers, **settings)
        rows = rows_of(result.path / "history.csv")
        histories.append([{key: value for key, value in row.items() if key != "seconds"} for row in rows])
        assert load_model(result.path).network.body.spec.layers == layers
        assert_shipped(result, grey)
    assert histories[0] == histories[1]


def test_nothing_is_held_out_where_there_is_a_labelled_test_split(grey: Path, tmp_path: Path) -> None:
    shutil.copytree(grey, tmp_path / "data" / "train")
    shutil.copytree(grey, tmp_path / "data" / "test")
    result = run(tmp_path / "data", tmp_path / "run")
    assert result.metrics["train"]["n"] == 36 and result.metrics["val"] is None and result.metrics["test"]["n"] == 36
    assert "val_loss" not in {key for row in rows_of(result.path / "history.csv") for key in row if row[key]}
    held = run(tmp_path / "data", tmp_path / "held", val=0.25)
    assert held.metrics["train"]["n"] == 27 and held.metrics["val"]["n"] == 9
    none = run(grey, tmp_path / "none", val=0)
    assert none.metrics["val"] is None and none.metrics["test"] is None and none.metrics["train"]["n"] == 36


def test_patience_keeps_the_best_weights(grey: Path, tmp_path: Path) -> None:
    result = run(grey, tmp_path / "run", lr=0.5, epochs=30, patience=2, optimizer="momentum", batchnorm=True)
    losses = [float(row["val_loss"]) for row in rows_of(result.path / "history.csv")]
    assert len(losses) < 30 and result.metrics["val_chose"] == "epoch"
    assert result.metrics["val"]["nll"] == pytest.approx(min(losses), rel=1e-3)


def test_patience_needs_validation_images(grey: Path, tmp_path: Path) -> None:
    shutil.copytree(grey, tmp_path / "data" / "train")
    shutil.copytree(grey, tmp_path / "data" / "test")
    for data, more in ((grey, {"val": 0}), (tmp_path / "data", {})):
        with pytest.raises(SettingError, match="patience: there are no validation images to watch; remove it, or add"):
            run(data, tmp_path / "run", patience=2, **more)
    assert not (tmp_path / "run").exists()


# --- IDX files


def as_idx(folder: Path, data: Path) -> Path:
    """Write the IDX files of a folder train/LABEL, test/LABEL of images NNNNN.png."""
    for split, start in (("train", "train"), ("test", "t10k")):
        files = sorted((folder / split).glob("*/*.png"), key=lambda file: file.stem)
        images = np.stack([np.asarray(Image.open(file)) for file in files])
        write_idx(data, start, images, np.array([int(file.parent.name) for file in files]), packed=split == "test")
    return data


def numbered(grey: Path, folder: Path) -> Path:
    """Return a folder train/LABEL/NNNNN.png and test/LABEL/NNNNN.png of the drawings."""
    for split, numbers in (("train", range(8)), ("test", range(8, 12))):
        images = [(label, source, n) for n in numbers for label, source in enumerate(sorted(grey.iterdir()))]
        for number, (label, source, n) in enumerate(images):
            place = folder / split / str(label)
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / f"{n:03}.png", place / f"{number:05}.png")
    return folder


@pytest.mark.parametrize(("model", "on"), [("mlp", "pixels"), ("knn", "pixels"), ("svm", "hog")])
def test_idx_files_equal_the_folder_made_from_them(model: str, on: str, grey: Path, tmp_path: Path) -> None:
    folder = numbered(grey, tmp_path / "folder")
    results = [
        run(data, tmp_path / f"run-{data.name}", model, on=on) for data in (folder, as_idx(folder, tmp_path / "idx"))
    ]
    tensors = [load_file(result.model_path / "model.safetensors") for result in results]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(value, tensors[1][key]) for key, value in tensors[0].items())
    tables = [(result.path / "predictions.csv").read_text().replace(".png", "") for result in results]
    assert tables[0] == tables[1]
    assert results[0].metrics["test"] == results[1].metrics["test"]
    files = sorted(str(file) for file in (folder / "test").glob("*/*.png"))
    assert [r["label"] for r in predict(str(results[1].path), files, device="cpu", workers=0)] == [
        row["prediction"] for row in rows_of(results[0].path / "predictions.csv")
    ]


def test_evaluate_takes_idx_files(grey: Path, tmp_path: Path) -> None:
    data = as_idx(numbered(grey, tmp_path / "folder"), tmp_path / "idx")
    for settings in ({}, {"val": 0.25}):
        result = run(data, tmp_path / f"run{len(settings)}", **settings)
        for split in ("test", *(["val"] if settings else [])):
            found = evaluate(str(result.path), str(data), split=split, device="cpu")
            for key, value in found.scores.to_dict().items():
                assert value == pytest.approx(result.metrics[split][key], abs=1e-6), key
    with pytest.raises(DataError, match=r"class '[012]' is not among those"):
        evaluate(str(run(grey, tmp_path / "other").path), str(data), device="cpu")


def test_what_idx_files_cannot_give_is_refused(grey: Path, tmp_path: Path) -> None:
    data = as_idx(numbered(grey, tmp_path / "folder"), tmp_path / "idx")
    with pytest.raises(SettingError, match="pretrained features are made of image files"):
        run(data, tmp_path / "run", on="features")
    with pytest.raises(SettingError, match="image_size: images of IDX files stay as they are, 12 px"):
        run(data, tmp_path / "run", image_size=20)
    assert not (tmp_path / "run").exists()
    assert run(data, tmp_path / "run", image_size=12, val=0.25).metrics["val"]["n"] == 6


# --- the model folder


def test_colour_images_for_a_grey_model_and_the_reverse(
    mlp: BaselineRun, grey: Path, colour: Path, tmp_path: Path
) -> None:
    photo = sorted((colour / "cat").iterdir())[0]
    record = next(iter(predict(str(mlp.path), [str(photo)], device="cpu", workers=0)))
    assert record["label"] in mlp.metrics["classes"]
    Image.open(photo).convert("L").save(tmp_path / "grey.png")
    Image.open(photo).save(tmp_path / "colour.png")
    coloured = run(colour, tmp_path / "run")
    assert load_model(coloured.path).network.reading.channels == 3
    assert load_model(mlp.path).network.reading.channels == 1
    for result in (coloured, mlp):
        records = predict(str(result.path), [str(tmp_path / f"{n}.png") for n in ("grey", "colour")], device="cpu")
        assert all(0 < record["probability"] <= 1 for record in records)


def test_the_saved_model_is_verified(mlp: BaselineRun, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for spoil, text in (
        (lambda: (folder / "model.safetensors").write_bytes(b"nothing"), "digest differs"),
        (lambda: (folder / "model.json").write_text("{}"), "not of format"),
        (
            lambda: (folder / "model.json").write_text(
                (folder / "model.json").read_text().replace('"lying"', '"flying"')
            ),
            "digest differs",
        ),
    ):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(mlp.model_path, folder)
        assert str(load_model(folder)) == "net on pixels at 12 px for 3 classes: lying, none, standing"
        spoil()
        with pytest.raises(ArtifactError, match=text):
            load_model(folder)


def test_evaluate_takes_the_runs_own_split(mlp: BaselineRun, grey: Path) -> None:
    found = evaluate(str(mlp.path), str(grey), device="cpu", workers=0)
    assert found.split == "val" and found.scores.accuracy == mlp.metrics["val"]["accuracy"]


# --- resuming


def test_resumed_after_a_signal_equals_the_undisturbed_run(
    grey: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "UNIT_STEPS", 2)
    settings = {"dropout": 0.2, "batchnorm": True, "schedule": "cosine"}
    whole = run(grey, tmp_path / "whole", **settings)
    step = BaselineModule.step

    def interrupted(self: BaselineModule, optimizer: Any, number: int, *batch: Any) -> Any:
        if number == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, optimizer, number, *batch)

    monkeypatch.setattr(BaselineModule, "step", interrupted)
    with pytest.raises(Interrupted):
        run(grey, tmp_path / "cut", **settings)
    monkeypatch.setattr(BaselineModule, "step", step)
    assert not (tmp_path / "cut" / "metrics.json").exists()
    resumed = train_baseline(resume=str(tmp_path / "cut"))
    ours, theirs = (load_file(r.model_path / "model.safetensors") for r in (resumed, whole))
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert (resumed.path / "predictions.csv").read_bytes() == (whole.path / "predictions.csv").read_bytes()
    again = train_baseline(resume=str(resumed.path))
    assert again.metrics == resumed.metrics, "a finished run is returned as it is"


def test_what_cannot_be_resumed_is_told(
    mlp: BaselineRun, grey: Path, colour: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for settings in ({"data": str(grey)}, {"lr": 0.1}, {"overwrite": True}, {"out": "elsewhere"}):
        with pytest.raises(SettingError, match="resume goes on as the run"):
            train_baseline(**{"resume": str(mlp.path), **settings})
    with pytest.raises(ArtifactError, match="toolkit baseline --resume"):
        toolkit.finetune(resume=str(mlp.path))
    tuned = finetune(colour, tmp_path / "tuned")
    with pytest.raises(ArtifactError, match="toolkit finetune --resume"):
        train_baseline(resume=str(tuned.path))
    assert main(["baseline", "--resume", str(tmp_path / "nowhere")]) == 1
    assert "holds no run" in capsys.readouterr().err


# --- what people and disks do


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--lr", "200"], "lr: a number above 0, at most 100, expected, got 200.0"),
        (["--dropout", "-0.5"], "dropout: a share of units"),
        (["--hidden", "[]"], "hidden: sizes such as"),
        (["--model", "tree"], "unknown model 'tree'"),
        (["--model", "knn", "--lr", "0.1"], "lr is not used by the model 'knn'"),
        (["--model", "nn", "--k", "3"], "k is not used by the model 'nn'"),
        (["--model", "knn", "--k", "31"], "k: at most 30 expected"),
        (["--backbone", "resnet18"], "backbone is used on stored features alone"),
        (["--device", "cuda:77"], "device"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    words: list[str], text: str, grey: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["baseline", str(grey), "--out", str(tmp_path / "run"), *words]) == 1
    said = capsys.readouterr()
    assert text in said.err and said.err.startswith("error: ") and said.err.count("\n") == 1 and not said.out
    assert not (tmp_path / "run").exists()


def test_data_that_are_none(tmp_path: Path, grey: Path) -> None:
    with pytest.raises(SettingError, match="which photos"):
        train_baseline()
    with pytest.raises(DataError, match="does not exist"):
        run(tmp_path / "nowhere", tmp_path / "run")
    (tmp_path / "one").mkdir()
    shutil.copytree(grey / "none", tmp_path / "one" / "none")
    with pytest.raises(DataError, match="only one class"):
        run(tmp_path / "one", tmp_path / "run")
    with pytest.raises(ArtifactError, match="lies inside the folder of photos"):
        run(grey, grey / "run")
    assert not (tmp_path / "run").exists()


def test_one_image_a_class(grey: Path, tmp_path: Path) -> None:
    for name in ("lying", "standing"):
        (tmp_path / "data" / name).mkdir(parents=True)
        shutil.copy(grey / name / "000.png", tmp_path / "data" / name)
    for model in ("mlp", "nn"):
        result = run(tmp_path / "data", tmp_path / model, model)
        assert result.metrics["train"]["n"] == 2 and result.metrics["val"] is None
    with pytest.raises(SettingError, match="k: at most 2 expected"):
        run(tmp_path / "data", tmp_path / "knn", "knn")
    assert run(tmp_path / "data", tmp_path / "norm", batchnorm=True, batch_size=1).metrics["train"]["n"] == 2


def test_files_that_cannot_be_read_and_images_of_any_size(grey: Path, tmp_path: Path) -> None:
    shutil.copytree(grey, tmp_path / "data")
    whole = (tmp_path / "data" / "none" / "003.png").read_bytes()
    (tmp_path / "data" / "none" / "003.png").write_bytes(whole[:-40])
    (tmp_path / "data" / "none" / "004.png").write_bytes(b"nothing")
    Image.new("RGB", (400, 20), "red").save(tmp_path / "data" / "lying" / "wide.jpg")
    result = run(tmp_path / "data", tmp_path / "run")
    assert result.metrics["quarantined"] == 2 and result.metrics["used"] == 35
    assert result.metrics["scanned"] == result.metrics["used"] + result.metrics["quarantined"]
    assert {row["path"] for row in rows_of(result.path / "quarantine.csv")} == {"none/003.png", "none/004.png"}
    assert load_model(result.path).preprocessing.crop_px == 32
    assert_shipped(result, tmp_path / "data")


def test_a_second_run_decodes_nothing(grey: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = str(tmp_path / "cache")
    first = run(grey, tmp_path / "first", cache_dir=cache)
    monkeypatch.setattr("toolkit.features.passes.stream_views", None)
    second = run(grey, tmp_path / "second", cache_dir=cache)
    assert (first.path / "predictions.csv").read_bytes() == (second.path / "predictions.csv").read_bytes()
    assert not [file for file in (tmp_path / "cache").iterdir() if file.is_file()], "mapped files have no name"


def test_no_cache_and_a_plain_command(grey: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["baseline", str(grey), "--out", str(tmp_path / "run"), "--model", "knn", "--cache", "false"]
    assert main([*words, "--workers", "0"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("knn on pixels: 30 training images") and "val: " in said.out
    assert main(words) == 1
    assert "already holds a run" in capsys.readouterr().err
    assert main([*words, "--overwrite", "--workers", "0"]) == 0
    assert math.isfinite(json.loads((tmp_path / "run" / "metrics.json").read_text())["val"]["nll"])
