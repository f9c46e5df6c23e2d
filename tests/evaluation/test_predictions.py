"""Predictions and predictions.csv."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from toolkit.data.manifest import TEST, TRAIN, UNASSIGNED, VAL
from toolkit.evaluation.predictions import Predictions


@pytest.fixture
def predictions() -> Predictions:
    return Predictions(
        paths=("b.png", "z.png", "a.png", "c.png", "t.png", "u.png"),
        splits=np.array([TEST, VAL, VAL, TEST, TRAIN, UNASSIGNED], dtype=np.int8),
        labels=np.array([-1, 1, 0, 2, 0, 1]),
        probabilities=torch.tensor(
            [[0.2, 0.5, 0.3], [0.1, 0.8, 0.1], [0.25, 0.25, 0.5], [0, 0, 1], [0.4, 0.4, 0.2], [1 / 3, 1 / 3, 1 / 3]]
        ),
        classes=("cat", "dog", "a, b"),
    )


def read(path: Path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_csv_is_val_then_test_then_the_rest_by_path(predictions: Predictions, tmp_path: Path) -> None:
    predictions.to_csv(tmp_path / "run" / "predictions.csv")
    assert (tmp_path / "run" / "predictions.csv").read_bytes() == (
        b"path,split,label,prediction,probability\n"
        b'a.png,val,cat,"a, b",0.500000\n'
        b"z.png,val,dog,dog,0.800000\n"
        b"b.png,test,,dog,0.500000\n"
        b'c.png,test,"a, b","a, b",1.000000\n'
        b"t.png,train,cat,cat,0.400000\n"
        b"u.png,,dog,cat,0.333333\n"
    )


def test_csv_does_not_depend_on_the_order_of_the_rows(predictions: Predictions, tmp_path: Path) -> None:
    predictions.to_csv(tmp_path / "a.csv")
    predictions.select(np.array([5, 3, 1, 0, 2, 4])).to_csv(tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


@pytest.mark.parametrize("name", ["line\nbreak.png", "return\r.png", 'quo"te.png', "com,ma.png", " größe.png"])
def test_any_file_name_comes_back_from_the_csv(name: str, tmp_path: Path) -> None:
    one = Predictions((name,), np.array([VAL], np.int8), np.array([0]), torch.tensor([[1.0, 0.0]]), (name, "other"))
    one.to_csv(tmp_path / "p.csv")
    assert read(tmp_path / "p.csv")[1] == [name, "val", name, name, "1.000000"]


def test_a_file_name_that_is_no_utf8_is_written_escaped(tmp_path: Path) -> None:
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    one = Predictions((name,), np.array([VAL], np.int8), np.array([0]), torch.tensor([[1.0, 0.0]]), ("a", "b"))
    one.to_csv(tmp_path / "p.csv")
    assert read(tmp_path / "p.csv")[1][0] == "caf\\udce9.png"


def test_rows_of_a_split_and_rows_with_labels(predictions: Predictions) -> None:
    test = predictions.of(TEST)
    assert test.paths == ("b.png", "c.png")
    assert test.labels.tolist() == [-1, 2]
    assert test.predicted.tolist() == [1, 2]
    assert torch.equal(test.probabilities, predictions.probabilities[[0, 3]])
    assert test.labelled().paths == ("c.png",)
    assert len(predictions.of(VAL)) == 2
    assert len(test.of(VAL)) == 0


def test_the_first_of_equals_is_predicted(predictions: Predictions) -> None:
    assert predictions.predicted.dtype == np.int64
    assert predictions.predicted.tolist() == [1, 1, 2, 2, 0, 0]


@pytest.mark.parametrize("column", ["splits", "labels", "probabilities", "classes"])
def test_columns_of_unequal_length_are_refused(predictions: Predictions, column: str) -> None:
    columns = {name: getattr(predictions, name) for name in ("paths", "splits", "labels", "probabilities", "classes")}
    columns[column] = columns[column][:-1]
    with pytest.raises(ValueError, match="expected 6 rows of"):
        Predictions(**columns)


def test_it_prints_as_a_sentence(predictions: Predictions) -> None:
    assert str(predictions) == "predictions for 6 images (train 1, val 2, test 2) of 3 classes"
