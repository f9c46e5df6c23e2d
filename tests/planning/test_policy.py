"""From counts to a plan: the thresholds, the epochs, and that what a person sets wins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.data.manifest import TEST, TRAIN, VAL, Manifest
from toolkit.errors import SettingError
from toolkit.options import Options
from toolkit.plan import Recipe, TransferPlan, partial_cut
from toolkit.planning.evidence import Evidence
from toolkit.planning.facts import Facts, facts_of
from toolkit.planning.forecast import seconds
from toolkit.planning.policy import AUTOMATIC, make_plan, open_strategies
from toolkit.planning.probes import Probe
from toolkit.planning.recipes import epochs_for, freezing
from toolkit.planning.similarity import Similarity

SIZES = (1, 2, 3, 4, 5, 6, 7, 8)


def facts(n_train: int, typical: float = 100.0, side_px: int | None = None) -> Facts:
    return Facts(n_train, 10, 0, 5, 3, typical, side_px, max_per_class=200)


def evidence(n_train: int = 100, similarity: float | None = 0.8, accuracy: float = 0.8, **of_facts: Any) -> Evidence:
    probes = (Probe((7,), accuracy - 0.05, 0.02, 0.6, 100), Probe((6, 7), accuracy, 0.02, 0.5, 100))
    near = None if similarity is None else Similarity(similarity, "batch norms", 64)
    return Evidence(facts(n_train, **of_facts), near, probes, operations=(10**6,) * 8, capacity=1e10)


def make(options: Options, n_train: int = 100, side_px: int | None = None, **changes: Any) -> TransferPlan:
    settings = {"backbone": "net", "stage_sizes": SIZES, "taps": (5, 6, 7), "image_size_px": 224, **changes}
    return make_plan(evidence(n_train, side_px=side_px), options, **settings)


def test_facts_count_what_is_there() -> None:
    manifest = Manifest(
        Path(),
        ("a", "b", "c"),
        tuple("123456789"),
        np.array([0, 0, 0, 1, 1, 2, 0, 1, -1]),
        np.array([TRAIN] * 6 + [VAL, VAL, TEST], dtype=np.int8),
    )
    assert facts_of(manifest) == Facts(6, 2, 1, 3, 1, 2.0, max_per_class=3)
    assert facts_of(manifest).to_dict() == {
        "n_train": 6,
        "n_val": 2,
        "n_test": 1,
        "n_classes": 3,
        "min_per_class": 1,
        "median_per_class": 2.0,
        "median_side_px": None,
        "max_per_class": 3,
        "tiny_share": None,
        "grey_share": None,
    }
    assert facts_of(manifest).imbalance == 3
    sizes = np.array([[640, 480], [480, 640], [200, 100], [500, 900], [80, 99], [700, 500], *[[9, 9]] * 3], np.int32)
    known = facts_of(replace(manifest, sizes=sizes), grey_share=0.25)
    assert (known.median_side_px, known.tiny_share, known.grey_share) == (480, 0.0, 0.25)
    assert known.in_words() == (
        "6 to train on, 3 classes, 2 in the median class (from 1 to 3); shorter side 480 px (median); "
        "25% without colour"
    )
    small = sizes.copy()
    small[:3] = (63, 900)
    assert facts_of(replace(manifest, sizes=small)).tiny_share == 0.5


@given(st.sampled_from(["partial", "full", "scratch"]), st.integers(1, 10**6), st.integers(1, 1024))
def test_epochs_stay_in_range_and_fall_with_the_set(strategy: str, n_train: int, batch_size: int) -> None:
    epochs = epochs_for(strategy, n_train, batch_size)
    assert 5 <= epochs <= (100 if strategy == "scratch" else 30)
    assert epochs_for(strategy, n_train * 2, batch_size) <= epochs


@pytest.mark.parametrize(
    ("strategy", "n_train", "epochs"),
    [
        ("partial", 10, 30),
        ("partial", 32 * 10, 25),
        ("full", 32 * 10 + 1, 23),
        ("scratch", 32 * 100, 20),
        ("scratch", 70, 100),
        ("scratch", 700, 91),
        ("partial", 32 * 25, 10),
        ("full", 32 * 1000, 10),
        ("full", 32 * 1250, 8),
        ("full", 10**6, 5),
    ],
)
def test_epochs_give_the_wanted_steps(strategy: str, n_train: int, epochs: int) -> None:
    assert epochs_for(strategy, n_train, 32) == epochs


def test_what_trains_by_strategy() -> None:
    assert freezing("head", SIZES, None).cut == 8
    assert freezing("full", SIZES, None).cut == 0
    assert freezing("scratch", SIZES, None).cut == 0
    assert freezing("partial", SIZES, None).cut == 5
    assert freezing("partial", SIZES, 3).cut == 3
    assert freezing("partial", (5,), None).cut == 0
    assert [rule.multiplier for rule in freezing("partial", SIZES, None).rules] == [0.0] * 5 + [0.01, 0.01, 0.1]
    assert {rule.multiplier for rule in freezing("scratch", SIZES, None).rules} == {1.0}


@pytest.mark.parametrize(
    ("sizes", "cut"),
    [
        ((1, 2, 4, 30, 64), 3),  # like ResNet-50: two stages, although one has more than half
        ((1, 1, 4, 20, 45, 165, 60, 41), 5),  # like EfficientNet-Lite0
        ((1, 25, 25, 25, 25, 0), 3),  # like a ViT, whose last stage is a norm
        ((10, 10, 10, 10), 2),  # half is enough
        ((100, 1, 1), 1),  # the first stage stays, however heavy
        ((5, 5), 1),
        ((5,), 0),
        ((10, 10, 70, 10, 0, 0), 2),  # stages without weights do not count
        ((9, 0, 0), 1),
    ],
)
def test_partial_trains_about_half_of_the_weights_and_two_stages(sizes: tuple[int, ...], cut: int) -> None:
    assert partial_cut(sizes) == cut


def test_a_tail_without_weights_is_refused() -> None:
    for cut in (None, 1, 2):
        with pytest.raises(SettingError, match=r"cut: no stage from \d on has weights to train"):
            freezing("partial", (9, 0, 0), cut)
    assert freezing("partial", (9, 0, 1), None).cut == 1
    assert freezing("head", (9, 0, 0), None).cut == 3 and freezing("full", (9, 0, 0), None).cut == 0


@pytest.mark.parametrize("cut", [0, 8, 99])
def test_a_cut_that_partial_cannot_have(cut: int) -> None:
    with pytest.raises(SettingError, match=f"cut: 1 to 7 expected for the 8 stages of this backbone, got {cut}"):
        freezing("partial", SIZES, cut)


def test_head_needs_no_rate_and_no_epochs() -> None:
    plan = make(Options(strategy="head"))
    assert (plan.cut, plan.recipe, plan.epochs, plan.views) == (8, None, None, 1)
    assert plan.augmentation == "none"
    assert plan.multipliers == (0.0,) * 8 + (1.0,)


def test_defaults_of_a_trained_strategy() -> None:
    plan = make(Options(strategy="partial"))
    assert (plan.cut, plan.recipe, plan.epochs, plan.views) == (5, Recipe(lr=1e-2, weight_decay=0.01), 30, 8)
    assert plan.multipliers == (0.0,) * 5 + (0.01, 0.01, 0.1, 1.0)
    assert plan.overridden == ("strategy",)
    assert any("never from noise" in reason for reason in plan.reasons)
    assert not any("never from noise" in reason for reason in make(Options(strategy="scratch")).reasons)


def test_what_was_set_wins_and_is_named() -> None:
    given = {"cut": 4, "taps": [7], "epochs": 9, "lr": 0.5, "weight_decay": 0.0, "augment": "crop", "views": 2}
    plan = make(Options(strategy="partial", image_size=64, **given), taps=(7,), image_size_px=64)  # type: ignore[arg-type]
    assert (plan.cut, plan.taps, plan.epochs, plan.recipe) == (4, (7,), 9, Recipe(lr=0.5, weight_decay=0.0))
    assert (plan.augmentation, plan.views, plan.image_size) == ("crop", 2, 64)
    assert set(plan.overridden) == {*given, "image_size", "strategy"}


def test_auto_chooses_among_the_strategies_that_use_all_that_is_set() -> None:
    def open_to(**settings: Any) -> tuple[str, ...]:
        return open_strategies(evidence(), Options(**settings), SIZES, (5, 6, 7))

    assert open_to() == AUTOMATIC
    assert open_to(epochs=3) == open_to(lr=0.1) == open_to(mixing=1.0) == ("partial", "full")
    assert open_to(cut=3) == open_to(cut=3, epochs=2) == ("partial",)
    assert open_to(folds=5) == open_to(head="knn") == ("head",)
    assert open_to(augment="crop") == ("partial", "full")  # a head sees the clean view alone
    assert open_to(augment="crop", views=2) == AUTOMATIC
    assert open_strategies(evidence(), Options(), SIZES, (3, 6)) == ("head",)  # it would not see what trains
    assert make(Options(cut=3)).cut == 3 and make(Options(epochs=3)).epochs == 3


def test_auto_refuses_keys_that_no_strategy_uses_together() -> None:
    with pytest.raises(SettingError, match="cut is not used by the strategy 'head' or what else auto may choose"):
        make(Options(cut=3, folds=5))
    with pytest.raises(SettingError, match="budget: only the strategy 'auto' chooses by it, got strategy 'full'"):
        Options(strategy="full", budget=3)


def test_a_trained_last_stage_must_be_seen_by_the_head() -> None:
    with pytest.raises(SettingError, match="add 7 to the taps"):
        make(Options(strategy="full"), taps=(3, 6))
    assert make(Options(strategy="head"), taps=(3, 6)).taps == (3, 6)


@given(
    st.integers(2, 200_000),
    st.floats(1, 1_000),
    st.integers(1, 30),
    st.none() | st.floats(0.001, 1),
    st.floats(0, 1),
    st.floats(0, 1e4),
)
def test_auto_always_gives_a_plan_that_holds_together(
    n_train: int, typical: float, n_stages: int, similarity: float | None, accuracy: float, budget: float
) -> None:
    last = n_stages - 1
    found = replace(
        evidence(n_train, similarity, typical=typical),
        probes=(Probe((last,), accuracy, 0.1, 1.0, 50),),
        operations=(5,) * n_stages,
    )
    plan = make_plan(
        found,
        Options(budget=budget),
        backbone="net",
        stage_sizes=(9,) * n_stages,
        taps=(last,),
        image_size_px=64,
    )
    assert len(plan.multipliers) == n_stages + 1
    assert plan.freeze_spec().cut == plan.cut
    assert TransferPlan.from_dict(plan.to_dict()) == plan
    assert any((way["strategy"], way["cut"]) == (plan.strategy, plan.cut) for way in plan.ways)
    assert (plan.runner_up is None) == (len(plan.ways) == 1)


def test_unlike_images_let_the_head_see_every_stage_unless_taps_were_set() -> None:
    settings = {"backbone": "net", "stage_sizes": SIZES, "taps": (5, 6, 7), "image_size_px": 224}
    assert make_plan(evidence(similarity=0.3), Options(), **settings).taps == (6, 7)  # all that was probed
    assert make_plan(evidence(similarity=0.9), Options(), **settings).taps == (5, 6, 7)
    assert make_plan(evidence(similarity=None), Options(), **settings).taps == (5, 6, 7)
    assert make_plan(evidence(similarity=0.3), Options(taps=[5, 6, 7]), **settings).taps == (5, 6, 7)


def test_a_plan_has_what_was_measured() -> None:
    plan = make(Options())
    assert plan.similarity == 0.8
    assert [(p["taps"], p["accuracy"], p["n"]) for p in plan.probes] == [([7], 0.75, 100), ([6, 7], 0.8, 100)]
    told = " ".join(plan.reasons)
    assert "much like what the network was trained on (similarity 0.80)" in told
    assert "ridge regression on stages 6+7 is right for 0.800 ± 0.020" in told


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        ({}, False),
        ({"lr": 0.03}, True),
        ({"lr": 0.3, "optimizer": "sgd"}, False),
        ({"lr": 0.5, "optimizer": "sgd"}, True),
        ({"lr": 2e-3, "layer_decay": 1.0}, True),
        ({"lr": 1e-3, "layer_decay": 1.0}, False),
    ],
)
def test_a_rate_that_is_seldom_good_for_pretrained_stages_is_told(settings: dict[str, Any], warned: bool) -> None:
    plan = make(Options(strategy="partial", **settings))
    assert any(reason.startswith("warning: pretrained stages learn at up to") for reason in plan.reasons) == warned
    assert not any("warning" in reason for reason in make(Options(strategy="scratch", lr=0.1)).reasons)


@pytest.mark.parametrize(
    ("side_px", "options", "augmentation"),
    [
        (None, {}, "standard"),
        (224, {}, "standard"),
        (223, {}, "light"),
        (28, {"augment": "standard"}, "standard"),
        (28, {"strategy": "head", "views": 4}, "light"),
        (28, {"strategy": "head"}, "none"),
    ],
)
def test_images_that_are_enlarged_are_cropped_lightly(
    side_px: int | None, options: dict[str, Any], augmentation: str
) -> None:
    plan = make(Options(**{"strategy": "full", **options}), side_px=side_px)
    assert plan.augmentation == augmentation
    assert any("the network sees 224" in reason for reason in plan.reasons) == (augmentation == "light")


def test_stages_that_would_never_begin_to_learn_are_refused() -> None:
    with pytest.raises(SettingError, match="unfreeze: a stage that begins to learn after 5 epochs does not in 2"):
        make(Options(strategy="partial", epochs=2, unfreeze=5))
    assert make(Options(strategy="partial", epochs=6, unfreeze=5)).recipe is not None


def test_a_rate_that_is_looked_for_takes_its_time() -> None:
    plan = make(Options(strategy="partial", epochs=10))
    plain, found = (seconds(plan, 1.0, 0.01, judged=True, finds_rate=finds) for finds in (False, True))
    assert found > 2 * plain
    scratch = make(Options(strategy="scratch", epochs=10))
    plain, found = (seconds(scratch, 1.0, 0.01, judged=False, finds_rate=finds) for finds in (False, True))
    assert plain < found < plain + 76 * 2 * 32 * 0.01
