"""Which way to go: the notes' four corners, the budget, and that one input gives one decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.planning.decision import (
    COEFFICIENTS,
    FEWEST_IMAGES,
    LEAST_GAIN,
    Decision,
    Way,
    decide,
    expected_gain,
    late_cut,
    ways_of,
)
from toolkit.planning.evidence import Evidence
from toolkit.planning.facts import Facts
from toolkit.planning.probes import Probe
from toolkit.planning.similarity import Similarity

SIZES = (1, 1, 4, 20, 45, 165, 60, 41)  # like EfficientNet-Lite0
WORK = tuple(10**6 * one for one in (21, 55, 38, 44, 86, 91, 29, 20))
ALL = ("head", "partial", "full")


def found(n: int, similarity: float | None, accuracy: float = 0.8) -> Evidence:
    near = None if similarity is None else Similarity(similarity, "batch norms", 64)
    return Evidence(Facts(n, 10, 0, 5, 10, n / 5), near, (Probe((7,), accuracy, 0.01, 0.5, n),), WORK, 2e10)


def decision(
    n: int, similarity: float | None, accuracy: float = 0.8, budget_s: float = 1e9, strategies: Sequence[str] = ALL
) -> Decision:
    evidence = found(n, similarity, accuracy)
    images = {"head": 0, "partial": 10 * n, "full": 10 * n}
    return decide(evidence, ways_of(evidence, SIZES, images, strategies), budget_s)


def test_little_data_gets_a_head_however_it_looks() -> None:
    for similarity in (0.9, 0.05):
        few = decision(FEWEST_IMAGES - 1, similarity)
        assert few.way.strategy == "head" and few.ways == (few.way,) and few.runner_up is None
        assert len(decision(FEWEST_IMAGES, similarity).ways) == 4
    evidence = found(10, 0.5)
    assert [way.strategy for way in ways_of(evidence, SIZES, {"full": 100}, ("full",))] == ["full"]  # all that is open


def test_more_data_trains_stages_and_more_of_them_where_images_are_unlike() -> None:
    like, unlike = decision(3_000, 0.9), decision(3_000, 0.1)
    assert like.way.strategy != "head" and unlike.way.strategy != "head"
    assert unlike.way.cut <= like.way.cut


def test_much_data_trains_everything() -> None:
    assert decision(50_000, 0.1).way.strategy == "full"


def test_where_nothing_is_left_to_win_the_head_stays() -> None:
    assert decision(50_000, 0.1, accuracy=0.999).way.strategy == "head"


@given(st.integers(2, 100_000), st.none() | st.floats(0.01, 1), st.floats(0, 1), st.floats(0, 1e7))
def test_a_decision_holds_together(n: int, similarity: float | None, accuracy: float, budget_s: float) -> None:
    one = decision(n, similarity, accuracy, budget_s)
    assert one == decision(n, similarity, accuracy, budget_s)
    assert one.way in one.ways
    if len(one.ways) > 1:
        assert one.runner_up in one.ways and one.runner_up != one.way
    assert one.way.affordable  # a head always is
    best = max(way.gain for way in one.ways if way.affordable)
    if one.way.strategy == "head":
        assert best < LEAST_GAIN
    else:
        assert one.way.gain >= LEAST_GAIN and one.way.gain > best - LEAST_GAIN
        as_good = [w for w in one.ways if w.affordable and w.gain > best - LEAST_GAIN and w.gain >= LEAST_GAIN]
        assert all(way.operations >= one.way.operations for way in as_good)
    assert [way.affordable for way in one.ways] == [way.operations <= budget_s * 2e10 for way in one.ways]


@given(st.integers(2, 100_000), st.floats(0, 0.99), st.floats(0.01, 1), st.sampled_from(sorted(COEFFICIENTS)))
def test_more_images_and_less_similarity_are_never_expected_to_win_less(
    n: int, accuracy: float, similarity: float, name: str
) -> None:
    gain = expected_gain(name, found(n, similarity, accuracy))
    assert gain <= 1 - accuracy + 1e-12
    assert expected_gain(name, found(2 * n, similarity, accuracy)) >= gain
    assert expected_gain(name, found(n, similarity / 2, accuracy)) >= gain


def test_a_budget_leaves_what_it_can_pay_and_says_what_it_cannot() -> None:
    rich, poor = decision(5_000, 0.1), decision(5_000, 0.1, budget_s=0)
    assert rich.way.strategy != "head" and poor.way.strategy == "head"
    assert any("beyond the budget of 0 minutes by the count of operations" in reason for reason in poor.reasons)
    assert poor.runner_up is not None and not poor.runner_up.affordable
    only_full = decision(5_000, 0.1, budget_s=0, strategies=("full",))
    assert only_full.way.strategy == "full"  # the user has left nothing else


@pytest.mark.parametrize(
    ("gains", "chosen"),
    [
        ((0.0, 0.002, 0.004, 0.0054), 3),  # less than half a point is not worth a training
        ((0.0, 0.002, 0.0052, 0.0054), 2),
        ((0.0, 0.006, 0.008, 0.0109), 1),
        ((0.0, 0.006, 0.008, 0.012), 2),
        ((0.0, 0.002, 0.003, 0.0049), 0),
        ((0.0, -0.2, -0.1, -0.3), 0),
    ],
)
def test_the_least_work_within_half_a_point_that_wins_half_a_point(gains: tuple[float, ...], chosen: int) -> None:
    ways = [Way("head", 8, 0.0, 0.0), *(Way("partial", 8 - n, gain, float(n)) for n, gain in enumerate(gains) if n)]
    assert decide(found(500, 0.8), ways, 1e9).way == ways[chosen]


def test_reasons_say_what_decided() -> None:
    def last_reason(**settings: Any) -> str:
        return decision(**{"n": 5_000, "similarity": 0.1, **settings}).reasons[-1]

    assert last_reason(accuracy=0.999).startswith("nothing else is expected to win half a point")
    assert last_reason(budget_s=0).startswith("what is expected to win half a point is beyond the budget")
    assert last_reason(strategies=("head",)).startswith("nothing but a head goes with what is set")
    assert last_reason(n=20).startswith("fewer than 100 of them, or than 5 a class")
    assert last_reason(budget_s=0, strategies=("full",)).startswith("full all the same: it is the least work")
    assert "the least work of what is within half a point of the best" in last_reason()


def test_small_classes_keep_the_head() -> None:
    evidence = replace(found(1_000, 0.5), facts=Facts(1_000, 10, 0, 400, 1, 2.5))
    assert [way.strategy for way in ways_of(evidence, SIZES, dict.fromkeys(ALL, 10), ALL)] == ["head"]


def test_what_has_no_weights_is_never_trained() -> None:
    evidence, images = found(1_000, 0.5), dict.fromkeys(ALL, 10)
    assert [way.strategy for way in ways_of(evidence, (0, 0), images, ALL)] == ["head"]
    three = replace(evidence, operations=(1, 1, 1))
    ways = ways_of(three, (0, 5, 5), images, ALL)  # cut 1 would be all that `full` is
    assert [(way.strategy, way.cut) for way in ways] == [("head", 3), ("full", 0)]


def test_a_way_is_expected_alike_whoever_set_it() -> None:
    evidence, images = found(500, 0.8), dict.fromkeys(ALL, 5_000)
    by_itself = {way.cut: way.gain for way in ways_of(evidence, SIZES, images, ALL)}
    for cut in (5, 6):
        (alone,) = ways_of(evidence, SIZES, images, ("partial",), cut=cut)
        assert alone.gain == by_itself[cut]


def test_what_is_open() -> None:
    evidence = found(500, 0.8)
    images = dict.fromkeys(ALL, 5_000)
    ways = ways_of(evidence, SIZES, images, ALL)
    assert [(way.strategy, way.cut) for way in ways] == [("head", 8), ("partial", 6), ("partial", 5), ("full", 0)]
    assert [way.name(8) for way in ways] == ["head", "partial (stages 6 to 7)", "partial (stages 5 to 7)", "full"]
    assert ways[-1].operations == pytest.approx(1.8 * 5_000 * 3 * sum(WORK))
    assert [way.cut for way in ways_of(evidence, SIZES, images, ("partial",), cut=2)] == [2]
    two = Evidence(evidence.facts, None, evidence.probes, (1, 1), 1.0)
    assert [way.cut for way in ways_of(two, (5, 5), images, ALL)] == [2, 1, 0]  # late and usual are one


@pytest.mark.parametrize(
    ("sizes", "cut"), [(SIZES, 6), ((1, 2, 3, 0), 1), ((1, 25, 25, 25, 25, 0), 3), ((5,), 0), ((5, 5), 1), ((5, 0), 0)]
)
def test_the_last_two_stages_with_weights(sizes: tuple[int, ...], cut: int) -> None:
    assert late_cut(sizes) == cut


def test_without_a_similarity_counts_and_probes_decide() -> None:
    told: Any = decision(3_000, None)
    assert not any("similarity" in reason for reason in told.reasons)
