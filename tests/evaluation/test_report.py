"""Scores by split and the lines a person reads."""

from __future__ import annotations

import numpy as np
import torch

from toolkit.data.manifest import TEST, TRAIN, VAL
from toolkit.evaluation.predictions import Predictions
from toolkit.evaluation.report import evaluate
from toolkit.scores import score


def make(splits: list[int], labels: list[int], seed: int = 0) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    return Predictions(
        paths=tuple(str(row) for row in range(len(splits))),
        splits=np.array(splits, dtype=np.int8),
        labels=np.array(labels, dtype=np.int64),
        probabilities=torch.randn(len(splits), 3, generator=generator).softmax(dim=1),
        classes=("a", "b", "c"),
    )


def test_each_split_is_scored_on_its_own_labelled_rows() -> None:
    predictions = make([TRAIN, VAL, VAL, TEST, TEST, VAL], [0, 1, 2, 0, -1, -1])
    scores = evaluate(predictions)
    assert list(scores) == ["val", "test"]
    assert scores["val"] == score(predictions.probabilities[1:3], torch.tensor([1, 2]))
    assert scores["test"] == score(predictions.probabilities[3:4], torch.tensor([0]))


def test_a_split_without_labels_has_no_scores() -> None:
    scores = evaluate(make([TRAIN, VAL, TEST, TEST], [0, 1, -1, -1]))
    assert scores["val"] is not None
    assert scores["test"] is None
    assert evaluate(make([TRAIN], [0])) == {"val": None, "test": None}


def test_the_seed_is_that_of_the_interval() -> None:
    predictions = make([VAL] * 300, [row % 3 for row in range(300)])
    assert evaluate(predictions, seed=1) == evaluate(predictions, seed=1)
    assert evaluate(predictions, seed=1) != evaluate(predictions, seed=2)
