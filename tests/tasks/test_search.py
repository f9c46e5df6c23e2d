"""`toolkit search`: what it finds is what `finetune` and `baseline` take; it sees training images alone."""

from __future__ import annotations

import csv
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.photos import make_photos
from tests.tasks.small import SMALL
from tests.tasks.test_baseline import drawings
from toolkit.cli import main
from toolkit.data.manifest import TEST, TRAIN, UNLABELLED, VAL
from toolkit.data.scan import scan
from toolkit.data.split import assign_splits
from toolkit.errors import ArtifactError, DataError, SettingError, ToolkitError
from toolkit.tasks.baseline import train_baseline
from toolkit.tasks.finetune import finetune
from toolkit.tasks.search import search
from toolkit.tasks.search_folds import folds_of, training_only, without_fold
from toolkit.tasks.search_run import SearchReport

FILES = ["best.yaml", "search.json", "search.png", "study.jsonl", "trials.csv"]
SHORT: dict[str, Any] = {"workers": 0, "device": "cpu", "model": "mlp", "epochs": 3, "batch_size": 8}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawings(tmp_path_factory.mktemp("drawings") / "images")


@pytest.fixture(scope="module")
def found(images: Path, tmp_path_factory: pytest.TempPathFactory) -> SearchReport:
    """Return a search for an MLP, which later tests only read."""
    return search(str(images), out=str(tmp_path_factory.mktemp("search") / "run"), trials=8, **SHORT)


def config_of(report: SearchReport) -> dict[str, Any]:
    return dict(yaml.safe_load((report.path / "best.yaml").read_text()))


def rows_of(report: SearchReport) -> list[dict[str, str]]:
    with open(report.path / "trials.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_folder_holds_what_was_found(found: SearchReport) -> None:
    names = sorted(entry.name for entry in found.path.iterdir() if not entry.name.startswith(("locks", "study.jsonl.")))
    assert names == FILES
    rows = rows_of(found)
    assert [row["number"] for row in rows] == [str(number) for number in range(8)]
    assert (rows[0]["stage"], rows[0]["lr"], rows[0]["l2"], rows[0]["hidden"]) == (
        "default",
        "0.001",
        "0",
        "256,128,100",
    )
    summary = json.loads((found.path / "search.json").read_text())
    assert summary == found.to_dict() and summary["n_train"] == 30
    states = [row["state"] for row in rows]
    for state in ("finished", "pruned", "failed"):
        assert summary["trials"][state] == states.count(state)
    best = rows[summary["best"]["number"]]
    assert float(best["score"]) == pytest.approx(summary["best"]["accuracy"], rel=1e-5)
    full = [float(row["score"]) for row in rows if row["stage"] in ("fine", "default") and row["state"] == "finished"]
    assert float(best["score"]) in sorted(full)[-3:] and len(summary["finalists"]) <= 3
    with Image.open(found.path / "search.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 400


def test_it_says_what_was_spent_and_whether_it_could_be_chance(found: SearchReport) -> None:
    text = str(found)
    assert "8 trials by coarse_to_fine" in text and "finished" in text and "pruned" in text and "failed" in text
    assert "default settings (trial 0): accuracy" in text
    assert "validation and test images took no part" in text
    assert f"toolkit baseline --config {found.path}/best.yaml --out {found.path}-best" in text
    if found.summary["best"]["number"]:
        assert "looks better than it is" in text and "judged on folds that chose neither" in text


def test_best_yaml_is_a_config_of_baseline(
    found: SearchReport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["baseline", "--config", str(found.path / "best.yaml"), "--out", str(out), "--workers=0"]) == 0
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert {key: config[key] for key in found.best} == found.best
    assert config["epochs"] == 3 and config["model"] == "mlp"
    assert json.loads((out / "metrics.json").read_text())["train"]["n"] == found.summary["n_train"]


def test_the_same_command_again_has_nothing_to_do_and_more_trials_go_on(
    found: SearchReport, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(found.path, tmp_path / "run")
    words = [f"--{key}={value}" for key, value in SHORT.items()]
    assert main(["search", str(images), "--out", str(tmp_path / "run"), "--trials=8", *words, "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == found.summary and "nothing to do" in shown.err
    more = search(str(images), out=str(tmp_path / "run"), trials=10, **SHORT)
    old, new = ([{**row, "seconds": ""} for row in rows_of(one)] for one in (found, more))
    assert new[:8] == old and len(new) == 10


def test_one_seed_one_result(found: SearchReport, images: Path, tmp_path: Path) -> None:
    again = search(str(images), out=str(tmp_path / "again"), trials=8, **SHORT)
    command = ("command",)
    ours, theirs = ({k: v for k, v in one.summary.items() if k not in command} for one in (again, found))
    assert ours == theirs
    assert [{**row, "seconds": ""} for row in rows_of(again)] == [{**row, "seconds": ""} for row in rows_of(found)]
    other = search(str(images), out=str(tmp_path / "other"), trials=3, seed=1, **SHORT)
    assert rows_of(other)[1]["lr"] != rows_of(found)[1]["lr"]


def test_what_is_given_is_not_searched(images: Path, tmp_path: Path) -> None:
    report = search(str(images), out=str(tmp_path / "run"), trials=4, hidden=[12], lr=0.01, dropout=0.1, **SHORT)
    searched = set(rows_of(report)[1]) - {"number", "stage", "state", "score", "se", "nll", "seconds", "reason"}
    assert searched == {"l2", "activation", "init", "batchnorm"}
    config = config_of(report)
    assert (config["hidden"], config["lr"], config["dropout"]) == ([12], 0.01, 0.1)


def test_a_head_is_searched_and_trained(photos: Path, tmp_path: Path) -> None:
    report = search(str(photos), out=str(tmp_path / "search"), trials=6, **SMALL)
    assert {row["head"] for row in rows_of(report)[1:]} <= {"ridge", "logistic", "knn"}
    assert (rows_of(report)[0]["head"], rows_of(report)[0]["taps"]) == ("auto", "auto")
    assert "toolkit finetune --config" in str(report)
    config = config_of(report)
    run = finetune(out=str(tmp_path / "run"), **config, workers=0, device="cpu")
    assert run.plan.strategy == "head" and run.metrics["train"]["n"] == report.summary["n_train"]
    for key, value in report.best.items():
        assert (run.plan.head if key == "head" else list(run.plan.taps)) == value


def test_a_tail_is_searched_and_trained(photos: Path, tmp_path: Path) -> None:
    settings = {**SMALL, "strategy": "partial", "cut": 6, "batch_size": 8, "views": 2}
    report = search(str(photos), out=str(tmp_path / "search"), trials=3, epochs=2, folds=2, **settings)
    rows = rows_of(report)
    assert {"lr", "weight_decay", "label_smoothing", "mixup"} <= set(rows[1])
    assert rows[0]["lr"] == "0.01" and "cut" not in rows[1]
    assert not [row for row in rows if row["reason"] and "drop_path" in row["reason"]]
    config = config_of(report)
    assert (config["strategy"], config["cut"], config["epochs"]) == ("partial", 6, 2)
    run = finetune(out=str(tmp_path / "run"), **config, mixing=1.0, workers=0, device="cpu")
    assert run.plan.recipe is not None
    assert all(getattr(run.plan.recipe, key) == value for key, value in report.best.items())


def test_trials_of_a_tail_do_not_change_the_next(photos: Path, tmp_path: Path) -> None:
    """The default settings judged after others, which train the same stages, are judged as before."""
    from toolkit.options import Options
    from toolkit.tasks.search_trials import open_trials

    options = Options(**SMALL, strategy="partial", cut=5, epochs=1, batch_size=8, views=1)
    with open_trials(str(photos), options, {"cut": 5}, 2) as trials:
        first = trials.objective.judge({}, 0, False)
        trials.objective.judge({"lr": 0.3, "mixup": 0.4}, 0, False)
        again = trials.objective.judge({}, 0, False)
    assert (first.nll == again.nll).all()


def test_no_trial_can_see_a_label_that_is_not_for_training(photo_folder: Path) -> None:
    manifest = assign_splits(scan(photo_folder), val=0.3)
    ours = training_only(manifest)
    kept = manifest.splits == TRAIN
    assert (ours.labels[kept] == manifest.labels[kept]).all() and (ours.labels[~kept] == UNLABELLED).all()
    folds = folds_of(ours, 3, 0)
    assert (folds[~kept] == -1).all() and sorted(set(folds[kept])) == [0, 1, 2]
    assert (folds != folds_of(ours, 3, 1)).any()
    train, held = (without_fold(ours, folds, 1, judging=judging) for judging in (False, True))
    assert set(train.rows(TRAIN)) == set(np.flatnonzero((folds >= 0) & (folds != 1))) == set(held.rows(TRAIN))
    assert not len(train.rows(VAL)) and set(held.rows(VAL)) == set(np.flatnonzero(folds == 1))
    assert (train.labels[train.splits != TRAIN] == UNLABELLED).all()
    assert set(np.flatnonzero(~kept)) <= set(held.rows(TEST))


def test_images_beside_the_training_images_change_no_trial(images: Path, tmp_path: Path) -> None:
    """With the same training images, other validation and test images give the same scores."""
    tables = []
    for number in (1, 2):
        data = tmp_path / f"data{number}"
        shutil.copytree(images, data / "train")
        for split in ("val", "test"):
            drawings(data / split, n=2 + number)
        if number == 2:
            swapped = data / "val" / "lying", data / "val" / "none"
            for one in swapped:
                one.rename(one.with_name(f"{one.name}_"))
            for one, other in (swapped, swapped[::-1]):
                one.with_name(f"{one.name}_").rename(other)
        report = search(str(data), out=str(tmp_path / f"run{number}"), trials=3, **SHORT)
        tables.append([(row["score"], row["nll"]) for row in rows_of(report)])
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"trials": 0}, "trials: 1 to 100000 expected, got 0"),
        ({"trials": True}, "trials: 1 to"),
        ({"folds": 1}, "folds: 2 to 100 expected, got 1"),
        ({"sampler": "rndom"}, "unknown sampler 'rndom'; did you mean one of: random"),
        ({"strategy": "scratch"}, "unknown strategy to search for 'scratch'"),
        ({"strategy": "auto"}, "unknown strategy to search for 'auto'"),
        ({"model": "knn"}, "unknown model to search for 'knn'"),
        ({"model": "mlp", "strategy": "head"}, "give one of them"),
        ({"hidden": [8]}, "hidden is no key of finetune"),
        ({"model": "mlp", "mixup": 0.1}, "mixup is no key of the model 'mlp'"),
        ({"model": "softmax", "hidden": [8]}, "hidden is not used by the model 'softmax'"),
        ({"model": "mlp", "batchnorm": "fixed"}, "batchnorm: true or false expected"),
        ({"lr": 0.1}, "lr is not used by the strategy 'head'"),
        ({"views": 2}, "a search of heads sees the clean view alone"),
        ({"strategy": "partial", "lr": -1.0}, "lr: a number above 0"),
        ({"head": "ridge", "taps": [7]}, "everything that could be searched was given"),
        ({"seed": -1}, "seed: 0 to"),
    ],
    ids=str,
)
def test_what_cannot_be_searched_is_refused_before_the_folder_is_made(
    given: dict[str, Any], said: str, photo_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(SettingError) as error:
        search(str(photo_folder), out=str(tmp_path / "out"), **{**SMALL, **given})
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_data_that_cannot_be_dealt_into_folds_are_refused(tmp_path: Path) -> None:
    for name, classes, said in (
        ("few", {"cat": 2, "dog": 2}, "a search holds out training images in turn"),
        ("one", {"cat": 8}, "at least 2 are needed"),
    ):
        for given in ({"model": "mlp"}, {}):
            if not (tmp_path / name).exists():
                make_photos(tmp_path / name, classes)
            with pytest.raises(DataError) as error:
                search(str(tmp_path / name), out=str(tmp_path / "out"), image_size=32, workers=0, device="cpu", **given)
            assert said in str(error.value) and "\n" not in str(error.value)
            assert not (tmp_path / "out").exists()


def test_a_class_with_a_single_training_image_is_no_obstacle(tmp_path: Path) -> None:
    data = make_photos(tmp_path / "data", {"cat": 8, "dog": 8, "owl": 1})
    for given in ({"model": "softmax", "epochs": 1}, {}, {"strategy": "partial", "cut": 6, "epochs": 1, "views": 1}):
        out = tmp_path / str(len(given))
        report = search(str(data), out=str(out), trials=2, folds=2, **{**SMALL, **given})
        assert report.summary["default"]["accuracy"] is not None


def test_folders_that_hold_something_else_are_refused(found: SearchReport, images: Path, tmp_path: Path) -> None:
    train_baseline(str(images), out=str(tmp_path / "run"), model="softmax", epochs=1, workers=0, device="cpu")
    before = sorted(path.name for path in (tmp_path / "run").rglob("*"))
    with pytest.raises(ArtifactError, match="holds a run; choose another --out"):
        search(str(images), out=str(tmp_path / "run"), **SHORT)
    assert sorted(path.name for path in (tmp_path / "run").rglob("*")) == before
    with pytest.raises(ArtifactError, match="is not empty and holds no run"):
        train_baseline(str(images), out=str(found.path), model="softmax", overwrite=True, workers=0)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="not empty and holds no search"):
        search(str(images), out=str(tmp_path / "own"), **SHORT)
    with pytest.raises(ArtifactError, match="lies inside the folder of photos"):
        search(str(images), out=str(images / "search"), **SHORT)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sampler": "random"}, "other sampler"),
        ({"epochs": 4}, "other settings (epochs: 3 there, 4 here)"),
        ({"seed": 1}, "other data"),
        ({"folds": 4}, "other settings (folds: 3 there, 4 here)"),
        ({"val": 0.4}, "other data"),
    ],
    ids=str,
)
def test_another_search_in_the_folder_is_refused(
    given: dict[str, Any], said: str, found: SearchReport, images: Path, tmp_path: Path
) -> None:
    shutil.copytree(found.path, tmp_path / "run")
    with pytest.raises(ArtifactError) as error:
        search(str(images), out=str(tmp_path / "run"), **{**SHORT, **given})
    assert said in str(error.value) and "\n" not in str(error.value)


def test_where_nothing_can_be_trained_it_says_so(images: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of 3 trials could be trained; the first: the loss was nan"):
        search(
            str(images), out=str(tmp_path / "run"), trials=3, lr=99.0, optimizer="sgd", activation="identity", **SHORT
        )


def test_without_optuna_it_says_what_to_install(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ToolkitError, match=r"pip install 'transfer-toolkit\[search\]'"):
        search(str(images), out=str(tmp_path / "run"), **SHORT)
    assert not (tmp_path / "run").exists()


def test_a_journal_that_no_search_wrote_is_left_alone(tmp_path: Path) -> None:
    from toolkit.tuning.journal import is_journal

    path = tmp_path / "study.jsonl"
    for text, ours in (
        ('{"my": "own"}', False),
        ('{"my": "own"}\n', False),
        ("", True),
        ('{"op_c', True),
        ('{"op_code":0,"study_name":"search"}\n', True),
        ('{"op_code":0,"study_name":"mine"}\n', False),
    ):
        path.write_text(text, encoding="utf-8")
        assert is_journal(path, "search") == ours, text
    assert not is_journal(tmp_path / "nothing", "search")
