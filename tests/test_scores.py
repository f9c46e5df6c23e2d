"""Scores: against scikit-learn, against the definitions, and at the edges."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
)
from sklearn.metrics import confusion_matrix as sklearn_confusion
from torch import Tensor
from torchmetrics.functional import classification as torchmetrics

from toolkit.errors import ToolkitError
from toolkit.scores import accuracy_interval, confusion_matrix, per_class_table, score

KEYS = ["n", "accuracy", "accuracy_ci95", "balanced_accuracy", "macro_f1", "nll", "ece"]


def sample(n: int, n_classes: int, *, present: int | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Probabilities that lean to the truth, and labels 0 to `present` − 1."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, present or n_classes, (n,), generator=generator)
    logits = torch.randn(n, n_classes, generator=generator)
    logits[torch.arange(n), labels] += 1.5
    return logits.softmax(dim=1), labels


def one_hot(predictions: list[int], n_classes: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(predictions), n_classes).float()


def guo_ece(probabilities: Tensor, labels: Tensor, n_bins: int = 15) -> float:
    """The formula of Guo et al. 2017, section 2, in a loop over bins (low, high]."""
    confidence, predicted = probabilities.double().max(dim=1)
    right = (predicted == labels).double()
    total = 0.0
    for b in range(n_bins):
        inside = (confidence > b / n_bins) & (confidence <= (b + 1) / n_bins)
        if inside.any():
            total += float(inside.double().mean() * (right[inside].mean() - confidence[inside].mean()).abs())
    return total


@pytest.mark.parametrize(("n", "n_classes", "present"), [(200, 5, 5), (37, 12, 3), (9, 2, 2), (1, 4, 4)])
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.filterwarnings("ignore:A single label was found")
def test_scores_equal_scikit_learn(n: int, n_classes: int, present: int) -> None:
    probabilities, labels = sample(n, n_classes, present=present)
    predicted = probabilities.argmax(dim=1)
    scores = score(probabilities, labels)
    assert scores.n == n
    assert scores.accuracy == pytest.approx(accuracy_score(labels, predicted), abs=1e-12)
    assert scores.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, predicted), abs=1e-12)
    assert scores.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"), abs=1e-12)
    exact = probabilities.double() / probabilities.double().sum(dim=1, keepdim=True)
    expected_nll = log_loss(labels, exact, labels=range(n_classes))
    assert scores.nll == pytest.approx(expected_nll, abs=1e-5)
    assert scores.ece == pytest.approx(guo_ece(probabilities, labels), abs=1e-6)


@pytest.mark.parametrize(("n", "n_classes"), [(1, 2), (300, 2), (300, 7), (5, 40)])
def test_scores_equal_torchmetrics(n: int, n_classes: int) -> None:
    probabilities, labels = sample(n, n_classes, seed=n)
    predicted, scores = probabilities.argmax(dim=1), score(probabilities, labels)
    counts = torchmetrics.multiclass_confusion_matrix(predicted, labels, n_classes)
    assert torch.equal(confusion_matrix(predicted, labels, n_classes), counts)
    error = torchmetrics.multiclass_calibration_error(probabilities, labels, n_classes, n_bins=15, norm="l1")
    assert scores.ece == pytest.approx(float(error), abs=1e-6)
    assert scores.accuracy == pytest.approx(
        float(torchmetrics.multiclass_accuracy(predicted, labels, average="micro", num_classes=n_classes))
    )


def test_absent_classes_are_left_out_and_wrongly_predicted_ones_count_in_f1() -> None:
    scores = score(one_hot([0, 0, 2], 4), torch.tensor([0, 0, 1]))  # class 3 is nowhere, class 2 only predicted
    assert scores.balanced_accuracy == pytest.approx(1 / 2)  # classes 0 and 1
    assert scores.macro_f1 == pytest.approx(1 / 3)  # classes 0, 1 and 2


def test_the_prediction_is_the_first_of_equals() -> None:
    assert score(torch.full((2, 4), 0.25), torch.tensor([0, 1])).accuracy == 0.5


def test_nineteen_of_twenty_is_not_less_than_95_percent() -> None:
    scores = score(one_hot([0] * 10 + [1] * 10, 2), torch.tensor([1] + [0] * 9 + [1] * 10))
    assert scores.accuracy == 0.95


def test_certainty_shares_the_last_bin() -> None:
    probabilities = one_hot([0] * 4, 2)
    probabilities[0] = torch.tensor([0.94, 0.06])
    labels = torch.tensor([0, 0, 0, 1])  # one of the three at 1.0 is wrong
    expected = abs(3 / 4 - 3.94 / 4)  # a bin of their own for those at 1.0 would give 0.265
    assert score(probabilities, labels).ece == pytest.approx(expected, abs=1e-6)
    assert guo_ece(probabilities, labels) == pytest.approx(expected, abs=1e-6)


def test_a_probability_of_zero_for_the_label_gives_a_finite_likelihood() -> None:
    assert score(one_hot([0], 2), torch.tensor([1])).nll == pytest.approx(-math.log(torch.finfo(torch.float32).tiny))


def test_a_rounding_error_above_one_does_not_turn_probabilities_into_logits() -> None:
    probabilities = one_hot([0, 1], 2)
    exact = score(probabilities, torch.tensor([0, 1])).ece
    assert score(probabilities + torch.tensor([[2e-7, 0], [0, 0]]), torch.tensor([0, 1])).ece == exact
    assert exact == pytest.approx(0.0, abs=1e-6)


def test_no_images_give_none_throughout() -> None:
    scores = score(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    assert scores.to_dict() == {"n": 0} | dict.fromkeys(KEYS[1:])
    assert str(scores) == "no labelled images"


def test_dictionary_is_plain_json_in_the_documented_order() -> None:
    values = score(*sample(50, 3)).to_dict()
    assert list(values) == KEYS
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert values["accuracy_ci95"][0] < values["accuracy"] < values["accuracy_ci95"][1]


def test_interval_is_the_bootstrap_of_the_images() -> None:
    hits, n = 70, 100
    generator = np.random.default_rng(1)
    images = np.arange(n) < hits
    means = images[generator.integers(0, n, size=(20_000, n))].mean(axis=1)
    expected = np.quantile(means, [0.025, 0.975])
    assert accuracy_interval(hits, n, resamples=20_000) == pytest.approx(tuple(expected), abs=0.011)


def test_interval_follows_its_seed_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = accuracy_interval(613, 1000, seed=5)
    assert accuracy_interval(613, 1000, seed=5) == first
    assert accuracy_interval(613, 1000, seed=6) != first
    assert torch.equal(torch.get_rng_state(), state)


def test_where_all_are_right_the_interval_still_has_a_width():
    """Wilson's: 20 of 20 right is no proof that all are (SciPy's binomtest(20, 20).proportion_ci(method="wilson"))."""
    assert accuracy_interval(20, 20) == pytest.approx((0.838875, 1.0), abs=1e-5)
    assert accuracy_interval(0, 5) == pytest.approx((0.0, 0.434482), abs=1e-5)
    assert accuracy_interval(1, 1)[0] < 0.3


def test_confusion_matrix_has_true_rows() -> None:
    labels, predictions = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 1, 1, 0, 2, 2])
    matrix = confusion_matrix(predictions, labels, 4)
    assert matrix.dtype == torch.int64
    assert matrix.tolist() == sklearn_confusion(labels, predictions, labels=range(4)).tolist()
    nobody = torch.zeros(0, dtype=torch.int64)
    assert confusion_matrix(nobody, nobody, 2).tolist() == [[0, 0], [0, 0]]


def test_table_by_class_equals_scikit_learn_and_leaves_the_undefined_empty() -> None:
    labels, predictions = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 1, 1, 0, 0, 1])
    table = per_class_table(predictions, labels, ("a", "b", "c", "d"))
    precision, recall, f1, n = precision_recall_fscore_support(labels, predictions, labels=range(3), zero_division=0)
    assert [row["class"] for row in table] == ["a", "b", "c", "d"]
    assert [row["n"] for row in table] == [*n, 0]
    assert [row["recall"] for row in table[:3]] == pytest.approx(recall)
    assert [row["precision"] for row in table[:2]] == pytest.approx(precision[:2])
    assert [row["f1"] for row in table[:3]] == pytest.approx(f1)
    assert table[2]["precision"] is None  # never predicted
    assert table[3] == {"class": "d", "n": 0, "precision": None, "recall": None, "f1": None}


@pytest.mark.parametrize(
    ("probabilities", "labels", "said"),
    [
        (torch.ones(3), torch.zeros(3, dtype=torch.int64), "float probabilities"),
        (torch.ones(3, 1), torch.zeros(3, dtype=torch.int64), "float probabilities"),
        (torch.ones(3, 2, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), "float probabilities"),
        (torch.full((3, 2), 0.5), torch.zeros(2, dtype=torch.int64), r"int64 labels \(3,\)"),
        (torch.full((3, 2), 0.5), torch.zeros(3), "int64 labels"),
        (torch.full((3, 2), 0.5), torch.tensor([0, 1, 2]), "labels 0 to 1, got 0 to 2"),
        (torch.full((3, 2), 0.5), torch.tensor([0, -1, 1]), "labels 0 to 1, got -1 to 1"),
        (torch.tensor([[3.0, -2.0]]), torch.tensor([0]), "none negative"),
        (torch.tensor([[0.9, 0.9]]), torch.tensor([0]), "sum to 1"),
    ],
)
def test_wrong_input_is_refused(probabilities: Tensor, labels: Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        score(probabilities, labels)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_predictions_that_are_not_finite_are_named(value: float) -> None:
    probabilities = torch.full((4, 2), 0.5)
    probabilities[2, 0] = value
    with pytest.raises(ToolkitError, match="1 of 4 predictions are not finite"):
        score(probabilities, torch.zeros(4, dtype=torch.int64))
