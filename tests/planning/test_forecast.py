"""Predictions: seconds follow the work, ranges the number of images."""

from __future__ import annotations

import pytest

from tests.planning.test_policy import make
from toolkit.options import Options
from toolkit.planning.forecast import accuracy_range, seconds, trainings
from toolkit.planning.probes import Probe


def test_seconds_are_those_of_extraction_trials_and_training() -> None:
    assert seconds(make(Options(strategy="head")), 3.0, 0.1, judged=False) == pytest.approx(3.0)
    plan = make(Options(strategy="partial", epochs=4), n_train=200)
    assert seconds(plan, 3.0, 0.1, judged=True) == pytest.approx(3.0 + 1.8 * 4 * (200 + 10 / 3) * 0.1)


@pytest.mark.parametrize(("n_train", "judged", "count"), [(5_000, True, 1.8), (5_001, True, 0.8), (5_001, False, 1.0)])
def test_trainings_by_what_judges_them(n_train: int, judged: bool, count: float) -> None:
    assert trainings(make(Options(strategy="full"), n_train=n_train), judged=judged) == count


def test_a_range_is_wider_for_fewer_images_and_never_a_point() -> None:
    few, many = (accuracy_range(Probe((7,), 0.8, 0.02, 0.5, 400), 0.0, n) for n in (20, 2_000))
    assert few[0] < many[0] < 0.8 < many[1] < few[1]
    low, high = accuracy_range(Probe((7,), 1.0, 0.0, 0.0, 24), 0.0, 6)
    assert 0.5 < low < 0.95 and high == 1.0
    assert accuracy_range(Probe((7,), 0.8, 0.02, 0.5, 400), 0.1, 2_000)[0] > many[0]
