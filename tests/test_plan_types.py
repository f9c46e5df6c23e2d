"""FreezeSpec and TransferPlan: what they promise for any number of stages."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.errors import SettingError
from toolkit.plan import FreezeSpec, Recipe, StageRule, TransferPlan


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))))
def test_at_cut_freezes_what_comes_before(pair: tuple[int, int]) -> None:
    n_stages, cut = pair
    spec = FreezeSpec.at_cut(n_stages, cut)
    assert spec.cut == cut
    assert [rule.trainable for rule in spec.rules] == [False] * cut + [True] * (n_stages - cut)
    assert [rule.multiplier for rule in spec.rules] == [0.0] * cut + ([0.01] * (n_stages - cut))[:-1] + [0.1] * (
        cut < n_stages
    )
    assert spec.head_multiplier == 1.0


@given(st.integers(1, 40))
def test_from_scratch_trains_all_at_one_rate(n_stages: int) -> None:
    assert FreezeSpec.from_scratch(n_stages).rules == (StageRule(True, 1.0),) * n_stages


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_a_frozen_stage_behind_a_trainable_one_is_refused(trainable: list[bool]) -> None:
    rules = tuple(StageRule(flag, float(flag)) for flag in trainable)
    if trainable == sorted(trainable):
        assert FreezeSpec(rules).cut == trainable.count(False)
    else:
        with pytest.raises(SettingError, match="frozen stages come first"):
            FreezeSpec(rules)


@pytest.mark.parametrize(("n_stages", "cut"), [(3, -1), (3, 4)])
def test_a_cut_outside_is_refused(n_stages: int, cut: int) -> None:
    with pytest.raises(SettingError, match=f"0 to 3 expected for 3 stages, got {cut}"):
        FreezeSpec.at_cut(n_stages, cut)


def test_rates_are_not_negative_and_the_head_learns() -> None:
    with pytest.raises(SettingError, match="multipliers"):
        FreezeSpec((StageRule(True, -0.1),))
    with pytest.raises(SettingError, match="multipliers"):
        FreezeSpec((StageRule(True, 0.1),), head_multiplier=0.0)


def plan(strategy: str = "partial", overridden: tuple[str, ...] = ()) -> TransferPlan:
    return TransferPlan(
        strategy=strategy,
        backbone="net",
        cut=1,
        taps=(1, 2),
        head="linear",
        recipe=Recipe(lr=1e-3),
        multipliers=(0.0, 0.01, 0.1, 1.0),
        epochs=5,
        views=5,
        augmentation="standard",
        image_size=32,
        facts={"n_train": 10},
        reasons=("because",),
        overridden=overridden,
    )


def test_a_plan_survives_json() -> None:
    original = plan(overridden=("lr",))
    assert TransferPlan.from_dict(json.loads(json.dumps(original.to_dict()))) == original


def test_a_plan_declares_its_freezing() -> None:
    assert plan().freeze_spec() == FreezeSpec.at_cut(3, 1)


def test_a_plan_prints_what_trains_why_and_what_was_set() -> None:
    assert str(plan(overridden=("lr", "taps"))) == (
        "plan: partial (head and stages 1 to 2) on net at 32 px\n  - because\n  set by you: lr, taps"
    )
    assert "(everything, at one rate)" in str(plan("scratch"))
    assert "set by you" not in str(plan("full"))
