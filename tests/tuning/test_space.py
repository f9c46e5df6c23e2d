"""Parts of a space: shares of an axis and values, there and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.tuning.space import Choice, Number, described, point_of, settings_at

LR = Number("lr", 1e-5, 1e-1, 1e-3)
DROPOUT = Number("dropout", 0.0, 0.6, 0.0, log=False)
DEPTH = Number("depth", 1, 3, 3, log=False, whole=True)
WIDTH = Number("width", 32, 1024, 256, whole=True)
KIND = Choice("kind", ("a", "b", "c"), "b")
SPACE = (LR, DROPOUT, DEPTH, WIDTH, KIND)


def test_a_log_axis_has_equal_factors_at_equal_steps() -> None:
    assert [LR.at(share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)] == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2, 1e-1])
    assert DROPOUT.at(0.5) == pytest.approx(0.3)
    assert LR.share(1e-3) == pytest.approx(0.5)


def test_whole_numbers_have_equal_parts_of_a_linear_axis_ends_included() -> None:
    values = [DEPTH.at(share) for share in np.linspace(0, 1, 3001)]
    assert all(type(value) is int for value in values)
    assert [values.count(depth) for depth in (1, 2, 3)] == pytest.approx([1000, 1000, 1000], abs=2)
    assert (WIDTH.at(0.0), WIDTH.at(1.0)) == (32, 1024)


def test_a_choice_has_equal_parts() -> None:
    values = [KIND.at(share) for share in np.linspace(0, 1, 300)]
    assert [values.count(name) for name in "abc"] == [100, 100, 100]


@given(st.floats(0, 1))
def test_a_value_lies_where_it_was_taken_from(share: float) -> None:
    for part in SPACE:
        value = part.at(share)
        assert part.at(part.share(value)) == pytest.approx(value, rel=1e-4) if not isinstance(value, str) else True
        assert isinstance(part, Choice) or part.low <= value <= part.high
    assert KIND.at(KIND.share(KIND.at(share))) == KIND.at(share)


def test_what_is_beyond_an_end_stands_at_it() -> None:
    assert Number("l2", 1e-7, 1e-1, 0.0).share(0.0) == 0.0
    assert LR.share(5.0) == 1.0
    assert LR.at(-0.5) == pytest.approx(1e-5) and LR.at(1.5) == pytest.approx(1e-1)


def test_points_and_settings() -> None:
    settings = settings_at(SPACE, point_of(SPACE, {}))
    assert settings == {"lr": 1e-3, "dropout": 0.0, "depth": 3, "width": 256, "kind": "b"}
    assert settings_at(SPACE, point_of(SPACE, {**settings, "kind": "c"}))["kind"] == "c"
    assert [part["name"] for part in described(SPACE)] == ["lr", "dropout", "depth", "width", "kind"]
    assert described(SPACE)[4]["values"] == ["a", "b", "c"]


def test_what_makes_no_axis_is_refused() -> None:
    for wrong in (
        lambda: Number("x", 0.0, 1.0, 0.5),
        lambda: Number("x", 2.0, 1.0, 1.5, log=False),
        lambda: Choice("x", ("a", "a"), "a"),
    ):
        with pytest.raises(ValueError, match="x: "):
            wrong()
