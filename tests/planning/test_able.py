"""What a network cannot do is left out of what is weighed, and refused before anything is measured."""

from __future__ import annotations

from typing import Any

import pytest

from tests.planning.test_policy import SIZES, evidence, make
from toolkit.errors import SettingError
from toolkit.options import Options
from toolkit.plan import Recipe
from toolkit.planning.policy import open_strategies


def up_to(latest: int) -> Any:
    """Return what a network is able to whose blocks can be skipped up to a stage, and whose images alone are maps."""

    def able(recipe: Recipe, cut: int) -> None:
        if recipe.drop_path is not None and cut > latest:
            raise SettingError("drop_path: nothing to skip")
        if recipe.cutmix and cut:
            raise SettingError("cutmix: no map")

    return able


def open_to(latest: int = 7, **settings: Any) -> tuple[str, ...]:
    return open_strategies(evidence(), Options(**settings), SIZES, (5, 6, 7), up_to(latest))


def test_auto_leaves_out_what_the_network_cannot_do() -> None:
    assert open_to() == ("head", "partial", "full")
    assert open_to(cutmix=1.0) == ("full",)
    assert open_to(drop_path=0.1) == ("partial", "full")
    assert open_to(0, drop_path=0.1) == ("full",)
    with pytest.raises(SettingError, match="drop_path: nothing to skip"):  # not: drop_path is not used by 'head'
        open_to(-1, drop_path=0.1)


def test_a_strategy_that_was_set_is_refused() -> None:
    for settings, latest in (({"cutmix": 1.0}, 7), ({"drop_path": 0.1}, 2), ({"drop_path": 0.0, "cut": 7}, 6)):
        with pytest.raises(SettingError, match=r"nothing to skip|no map"):
            make(Options(strategy="partial", **settings), able=up_to(latest))  # type: ignore[arg-type]
    assert make(Options(strategy="full", cutmix=1.0, drop_path=0.1), able=up_to(0)).recipe is not None
    assert make(Options(strategy="head"), able=up_to(-1)).recipe is None


def test_of_the_cuts_of_partial_those_are_weighed_that_the_network_can_have() -> None:
    def cuts(latest: int) -> list[int]:
        plan = make(Options(drop_path=0.1), n_train=1000, able=up_to(latest))
        return [way["cut"] for way in plan.ways if way["strategy"] == "partial"]

    late, usual = 6, 5
    assert cuts(7) == [late, usual]
    assert cuts(usual) == [usual]
