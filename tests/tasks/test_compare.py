"""`toolkit compare`: the sentence, the numbers behind it, and what cannot be compared."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

import toolkit
from tests.tasks.conftest import Runs
from toolkit.cli import main
from toolkit.errors import ArtifactError, DataError, SettingError
from toolkit.evaluation.paired import paired
from toolkit.evaluation.predictions_csv import read_predictions
from toolkit.tasks.baseline import train_baseline

HEADER = ("path", "split", "label", "prediction", "probability")
Row = tuple[str, str, str, str]
Made = Callable[..., Path]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Return a function that writes a finished run with given predictions: (path, split, label, prediction) each."""

    def make(name: str, rows: list[Row], *, quarantined: tuple[str, ...] = (), **more: object) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump({"data": "photos", "out": str(folder), "seed": 0}))
        with open(folder / "predictions.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([HEADER, *((*row, "0.900000") for row in rows)])
        lines = ["path,reason", *(f"{path},truncated" for path in quarantined)]
        (folder / "quarantine.csv").write_text("\n".join(lines) + "\n")
        splits = {split: {"nll": 0.25} if any(row[1] == split for row in rows) else None for split in ("val", "test")}
        metrics = {"classes": ["cat", "dog"], "val_chose": "nothing", **splits, **more}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        return folder

    return make


def rows(right: str, split: str = "val") -> list[Row]:
    """Return a row for each letter: + is right, - is wrong, ? has no label."""
    named = {"+": ("cat", "cat"), "-": ("cat", "dog"), "?": ("", "dog")}
    return [(f"{split}/{k}.jpg", split, *named[letter]) for k, letter in enumerate(right)]


def test_it_says_which_is_better_by_how_much_and_whether_it_may_be_chance(made: Made) -> None:
    one, two = made("one", rows("+" * 90 + "-" * 10)), made("two", rows("+" * 70 + "-" * 20 + "+" * 5 + "-" * 5))
    found = toolkit.compare(str(one), str(two))
    low, high = found.splits["val"].interval
    sentence = (
        f"val: one is better than two by 15.0 points on 100 validation images, 0.900 against 0.750 (95 % interval "
        f"{100 * low:.1f} to {100 * high:.1f}; 20 images against 5); chance alone would give a difference as large in "
        "0.4 % of cases: it is hardly chance"
    )
    assert str(found) == f"{sentence}\nval: NLL 0.250 of one, 0.250 of two"
    turned = toolkit.compare(str(two), str(one))
    assert str(turned).startswith("val: one is better than two by 15.0 points on 100")
    assert turned.splits["val"].difference == -found.splits["val"].difference
    shown = [float(x) for x in re.findall(r"interval (-?[\d.]+) to (-?[\d.]+)", str(turned))[0]]
    assert 0 < shown[0] < 15 < shown[1]


def test_what_may_be_chance_is_called_so(made: Made) -> None:
    found = toolkit.compare(str(made("a", rows("+++-+"))), str(made("b", rows("++--+"))))
    assert "a is better than b by 20.0 points on 5 validation images" in str(found)
    assert "in 100.0 % of cases: it may well be chance" in str(found)
    equal = str(toolkit.compare(str(made("c", rows("+-+"))), str(made("d", rows("-++")))))
    assert equal.startswith("val: c and d are equally good on 3 validation images: 0.667 both (95 % interval ")
    assert "; each alone is right for 1)" in equal
    same = toolkit.compare(str(made("e/run", rows("+-"))), str(made("f/run", rows("+-"))))
    assert str(same).startswith("val: e/run and f/run are right for the same of 2 validation images (0.500)")


def test_both_splits_are_compared_and_what_has_no_label_is_not(made: Made) -> None:
    one, two = rows("++-?") + rows("+++", "test"), rows("+--?") + rows("+-+", "test")
    found = toolkit.compare(str(made("one", one)), str(made("two", two)))
    assert {split: (f.n, f.wins, f.losses) for split, f in found.splits.items()} == {
        "val": (3, 1, 0),
        "test": (3, 1, 0),
    }
    only = toolkit.compare(str(made("three", rows("++"))), str(made("four", rows("+-") + rows("+", "test"))))
    assert list(only.splits) == ["val"]


def test_files_that_one_run_could_not_read_are_left_out_and_said(made: Made) -> None:
    one = made("one", rows("+++-"))
    two = made("two", [row for row in rows("++--+") if row[0] != "val/1.jpg"], quarantined=("val/1.jpg",))
    found = toolkit.compare(str(one), str(two))
    assert found.left_out == {"val/1.jpg": "not in two: truncated", "val/4.jpg": "not in one: in another split"}
    assert found.splits["val"].n == 3 and found.nll == {}
    assert "left out: 2 images that one run alone was scored on (val/1.jpg, val/4.jpg)" in str(found)


def test_other_splits_labels_and_classes_are_refused(made: Made) -> None:
    one = str(made("one", rows("++++")))
    other = str(made("other", [(f"val/{k}.jpg", "val", "cat", "cat") for k in range(2, 6)]))
    with pytest.raises(DataError, match=r"one was scored on 4 images, .*other on 4, 2 of them the same; run both"):
        toolkit.compare(one, other)
    relabelled = str(made("relabelled", [("val/0.jpg", "val", "dog", "cat"), *rows("++++")[1:]]))
    with pytest.raises(DataError, match=r"val/0\.jpg is 'cat' in .*one and 'dog' in .*relabelled"):
        toolkit.compare(one, relabelled)
    with pytest.raises(DataError, match=r"know other classes: .*owls has 'owl', .*one has not"):
        toolkit.compare(one, str(made("owls", rows("++++"), classes=["cat", "dog", "owl"])))
    with pytest.raises(DataError, match="have no split with labelled images"):
        toolkit.compare(one, str(made("tested", rows("++", "test"))))


def test_what_is_no_finished_run_is_refused(made: Made, tmp_path: Path) -> None:
    one = made("one", rows("++"))
    with pytest.raises(ArtifactError, match="holds no run"):
        toolkit.compare(str(one), str(tmp_path / "nowhere"))
    with pytest.raises(SettingError, match="is given twice"):
        toolkit.compare(str(one), str(one))
    with pytest.raises(SettingError, match="seed: 0 to"):
        toolkit.compare(str(one), str(one), seed=-1)
    two = made("two", rows("++"))
    for damage in ("", "path,split\na,b\n", "path,split,label,prediction,probability\na,val\n"):
        (two / "predictions.csv").write_text(damage)
        if damage:
            with pytest.raises(ArtifactError, match=r"predictions\.csv cannot be read"):
                toolkit.compare(str(one), str(two))
    (two / "metrics.json").unlink()
    with pytest.raises(ArtifactError, match=r"two is not finished .* go on with it by --resume"):
        toolkit.compare(str(one), str(two))


def test_what_a_reader_has_to_know_besides_is_noted(made: Made) -> None:
    one, two = made("one", rows("+-")), made("two", rows("--"), val_chose="epoch")
    config = yaml.safe_load((two / "config.yaml").read_text())
    (two / "config.yaml").write_text(yaml.safe_dump({**config, "data": "elsewhere"}))
    notes = [line for line in str(toolkit.compare(str(one), str(two))).splitlines() if line.startswith("note: ")]
    assert len(notes) == 2 and "photos and elsewhere" in notes[0] and "chose the epoch of two" in notes[1]


def test_a_run_of_finetune_and_one_of_a_baseline(
    runs: Runs, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = runs("head").path
    plain = train_baseline(str(photos), out=str(tmp_path / "plain"), model="nn", pictures=False, workers=0).path
    before = {file: file.stat().st_mtime_ns for file in head.rglob("*")}
    assert main(["compare", str(head), str(plain), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    tables = read_predictions(head / "predictions.csv"), read_predictions(plain / "predictions.csv")
    assert tables[0].paths == tables[1].paths
    expected = paired(tables[0].right, tables[1].right).to_dict()
    nll = [json.loads((folder / "metrics.json").read_text())["val"]["nll"] for folder in (head, plain)]
    assert told["val"] == {**expected, "nll": nll} and told["left_out"] == {} and told["remarks"] == []
    assert main(["compare", str(head), str(plain)]) == 0
    assert capsys.readouterr().out.startswith("val: ")
    assert {file: file.stat().st_mtime_ns for file in head.rglob("*")} == before


def test_errors_are_one_line_and_end_with_1(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(runs("head").path, tmp_path / "run")
    (tmp_path / "run/metrics.json").unlink()
    assert main(["compare", str(runs("head").path), str(tmp_path / "run")]) == 1
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("error: ") and told.err.count("\n") == 1
    assert main(["compare", str(tmp_path)]) == 2


def test_predictions_are_read_back_as_they_were_written(runs: Runs) -> None:
    table = read_predictions(runs("head").path / "predictions.csv")
    assert len(table) == 6 and set(table.splits) == {"val"} and len(table.labelled("val")) == 6
    assert table.labelled("test") == [] and ((table.probabilities > 0.3) & (table.probabilities <= 1)).all()
    np.testing.assert_allclose(table.right.mean(), runs("head").metrics["val"]["accuracy"])
