"""The tables of a run folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from toolkit.data.manifest import TEST, VAL
from toolkit.evaluation.predictions import Predictions
from toolkit.evaluation.tables import write_confusion_csv, write_mistakes_csv, write_per_class_csv


@pytest.fixture
def predictions() -> Predictions:
    return Predictions(
        paths=("a", "b", "c", "d", "e"),
        splits=np.array([VAL, VAL, VAL, TEST, VAL], dtype=np.int8),
        labels=np.array([0, 0, 1, 1, -1]),
        probabilities=torch.tensor([[0.9, 0.1, 0], [0.3, 0.7, 0], [0.75, 0.25, 0], [0.7, 0.3, 0], [1, 0, 0]]),
        classes=("cat", "dog", "eel"),
    )


def test_confusion_has_a_row_a_true_class(predictions: Predictions, tmp_path: Path) -> None:
    write_confusion_csv(tmp_path / "c.csv", predictions)
    assert (tmp_path / "c.csv").read_text() == "label,cat,dog,eel\ncat,1,1,0\ndog,2,0,0\neel,0,0,0\n"


def test_per_class_leaves_undefined_ratios_empty(predictions: Predictions, tmp_path: Path) -> None:
    write_per_class_csv(tmp_path / "p.csv", predictions)
    assert (tmp_path / "p.csv").read_text() == (
        "class,n,precision,recall,f1\ncat,2,0.333333,0.500000,0.400000\ndog,2,0.000000,0.000000,0.000000\neel,0,,,\n"
    )


def test_mistakes_are_the_surest_first_and_equals_by_path(predictions: Predictions, tmp_path: Path) -> None:
    write_mistakes_csv(tmp_path / "m.csv", predictions)
    assert (tmp_path / "m.csv").read_text() == (
        "path,split,label,prediction,probability,probability_of_label\n"
        "c,val,dog,cat,0.750000,0.250000\n"
        "b,val,cat,dog,0.700000,0.300000\n"
        "d,test,dog,cat,0.700000,0.300000\n"
    )


def test_fifty_mistakes_at_most_and_the_worst_ones(tmp_path: Path) -> None:
    n = 80
    sure = torch.linspace(0.51, 0.99, n)
    many = Predictions(
        paths=tuple(f"{row:03}" for row in range(n)),
        splits=np.full(n, VAL, dtype=np.int8),
        labels=np.ones(n, dtype=np.int64),
        probabilities=torch.stack([sure, 1 - sure], dim=1),
        classes=("a", "b"),
    )
    write_mistakes_csv(tmp_path / "m.csv", many)
    named = [line.split(",")[0] for line in (tmp_path / "m.csv").read_text().splitlines()[1:]]
    assert named == [f"{row:03}" for row in range(79, 29, -1)]


def test_without_labels_the_tables_are_empty(predictions: Predictions, tmp_path: Path) -> None:
    nobody = predictions.select(np.array([4]))
    write_confusion_csv(tmp_path / "c.csv", nobody)
    write_per_class_csv(tmp_path / "p.csv", nobody)
    write_mistakes_csv(tmp_path / "m.csv", nobody)
    assert (tmp_path / "c.csv").read_text().splitlines()[1:] == ["cat,0,0,0", "dog,0,0,0", "eel,0,0,0"]
    assert (tmp_path / "p.csv").read_text().splitlines()[1:] == ["cat,0,,,", "dog,0,,,", "eel,0,,,"]
    assert len((tmp_path / "m.csv").read_text().splitlines()) == 1
