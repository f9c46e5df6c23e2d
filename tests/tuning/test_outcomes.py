"""Scores of trials, the best of them, and what it wins."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace

import numpy as np
import pytest

from toolkit.tuning.gain import Gain
from toolkit.tuning.outcomes import Judged, Outcome, best_of, best_values, counts_of, trials_csv


def judged(right: list[int], nll: float = 1.0, first: int = 0) -> Judged:
    n = len(right)
    return Judged(np.arange(first, first + n), np.array(right, bool), np.full(n, nll))


def outcome(number: int, value: float | None, state: str = "finished", stage: str = "fine") -> Outcome:
    options = {"lr": 0.1 * number, "hidden": [64, 32]} if number else {}
    return Outcome(number, stage, state, {"lr": 0.1}, options, value, value, 0.01, 1.0, 2.0)


def test_folds_are_joined_in_the_order_of_the_images() -> None:
    whole = Judged.joined([judged([1, 0], 2.0, first=2), judged([1, 1], 1.0)])
    assert whole.images.tolist() == [0, 1, 2, 3] and whole.right.tolist() == [True, True, True, False]
    assert whole.accuracy == 0.75 and whole.mean_nll == 1.5
    assert whole.se == pytest.approx(math.sqrt(0.75 * 0.25 / 4))


def test_likelihood_breaks_ties_and_never_outweighs_an_image() -> None:
    assert judged([1, 1, 0], 0.5).value > judged([1, 1, 0], 0.6).value
    assert judged([1, 1, 0], 1e9).value > judged([1, 0, 0], 0.0).value
    assert judged([1, 1, 0], math.nan).value == judged([1, 1, 0], math.inf).value > judged([1, 0, 0], 0.0).value


def test_the_best_is_of_full_length_finished_and_the_earliest_of_equals() -> None:
    trials = [
        outcome(0, 0.5, stage="default"),
        outcome(1, 0.9, stage="coarse"),
        outcome(2, 0.9, "pruned"),
        outcome(3, None, "failed"),
        outcome(4, 0.7),
        outcome(5, 0.7),
    ]
    assert best_of(trials) is trials[4]
    assert best_of(trials[1:4]) is None
    assert counts_of(trials) == {"trials": 6, "finished": 4, "pruned": 1, "failed": 1}


def test_of_those_within_half_a_standard_error_the_likeliest_is_best() -> None:
    trials = [replace(outcome(n, 0.7 - 0.003 * n), nll=1.0 - 0.1 * n) for n in range(4)]
    assert [one.se for one in trials] == [0.01] * 4
    assert best_of(trials) is trials[1], "0.697 is within 0.005 of 0.7, 0.694 is not"


def test_the_table_has_a_row_a_trial_and_the_defaults_where_nothing_was_set() -> None:
    text = trials_csv([outcome(0, 0.5, stage="default"), outcome(1, None, "failed")], {"lr": 0.001, "hidden": [256]})
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(row["number"], row["lr"], row["hidden"]) for row in rows] == [("0", "0.001", "256"), ("1", "0.1", "64,32")]
    assert (rows[0]["score"], rows[1]["score"], rows[1]["state"]) == ("0.5", "", "failed")


def test_the_gain_is_paired_by_image() -> None:
    found = Gain.of(judged([1, 1, 1, 0]), judged([1, 0, 0, 1]))
    assert (found.best, found.default, found.n) == (0.75, 0.5, 4)
    assert found.gain == 0.25 and found.se == pytest.approx(np.std([0, 1, 1, -1], ddof=1) / 2)
    assert not found.is_sure and "could be chance" in str(found)


def test_a_gain_is_judged_by_images_that_both_have() -> None:
    found = Gain.of(judged([1, 1, 1], first=1), judged([0, 0, 0]))
    assert found.n == 2 and found.gain == 1.0
    assert found.is_sure and "beyond chance" in str(found)
    assert "the default settings stay" in str(Gain.of(judged([1, 0]), judged([1, 1])))


def test_the_largest_values_are_of_different_options() -> None:
    trials = [outcome(n, value) for n, value in enumerate((0.5, 0.7, 0.8, 0.8))]
    twin = replace(trials[2], number=4)
    assert [one.number for one in best_values([*trials, twin], 3)] == [2, 3, 1]
