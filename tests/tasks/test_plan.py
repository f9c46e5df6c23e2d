"""`toolkit plan`: it measures and decides, trains nothing, and `finetune` then does just that."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import toolkit
from tests.photos import make_photos
from tests.tasks.small import SMALL, run
from toolkit.cli import main
from toolkit.plan import TransferPlan
from toolkit.planning import decision, policy
from toolkit.planning.page import page
from toolkit.tasks import foresee
from toolkit.tasks.plan import plan_transfer

HERE: dict[str, Any] = {**SMALL, "precision": "32-true"}


def without_seconds(plan: TransferPlan) -> TransferPlan:
    """Return a plan without what a clock had a part in, and without the head that a run has chosen meanwhile."""
    ways = tuple({key: value for key, value in way.items() if key not in ("seconds", "bytes")} for way in plan.ways)
    return replace(plan, ways=ways, predicted=None, taps=(), head="", probes=(), reasons=())


@pytest.fixture(autouse=True)
def small_sets_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every way weighed, on however few images."""
    monkeypatch.setattr(decision, "FEWEST_IMAGES", 1)


@pytest.fixture()
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the last two stages expected to win much, on however few images."""
    monkeypatch.setattr(decision, "expected_gain", lambda name, *_: 0.1 if name == "late" else 0.0)


def test_where_no_probe_could_be_right_none_is_shown(tmp_path: Path) -> None:
    folder = make_photos(tmp_path / "photos", {"cat": 2, "dog": 2, "owl": 2})
    plan = plan_transfer(str(folder), val=0.5, **HERE)
    assert (plan.strategy, plan.probes, plan.ways, plan.predicted) == ("head", (), (), None)
    assert "3 training images; no stage was probed: head is the least work" in plan.reasons
    assert plan.similarity is not None and "0.000" not in page(plan)
    assert run(folder, tmp_path / "run", "auto", val=0.5, **HERE).plan.strategy == "head"


def test_a_plan_has_evidence_ways_and_predictions(photos: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    plan = plan_transfer(str(photos), **HERE)
    assert [len(probe["taps"]) for probe in plan.probes] == [1] * 8 + list(range(2, 9))
    assert plan.similarity is not None and 0 < plan.similarity < 1
    assert plan.facts["grey_share"] == 0.0 and plan.facts["tiny_share"] is not None
    cuts = [("head", 8), ("partial", 6), ("partial", 5), ("full", 0)]
    assert [(way["strategy"], way["cut"]) for way in plan.ways] == cuts
    for way in plan.ways:
        low, high = way["accuracy"]
        assert 0 <= low <= high <= 1 and way["seconds"] >= 0 and way["bytes"] >= 0
    late, usual, full = plan.ways[1:]
    assert late["operations"] < usual["operations"] < full["operations"]
    assert late["bytes"] > 0 and plan.predicted is not None and set(plan.predicted) == {"seconds", "bytes", "accuracy"}
    assert sorted(tmp_path.rglob("*")) == before


def test_its_page_shows_what_was_measured_decided_and_weighed(photos: Path) -> None:
    plan = plan_transfer(str(photos), **HERE)
    told = page(plan)
    parts = told.split("\n\n")
    assert [part.splitlines()[0].split(":")[0] for part in parts] == ["measured", "plan", "weighed"]
    assert "images      24 to train on, 3 classes" in parts[0] and f"similarity  {plan.similarity:.2f}: " in parts[0]
    assert "stage     " in parts[0] and "together  " in parts[0] and "last 8" in parts[0]
    arrows = [line for line in parts[2].splitlines() if "→" in line]
    assert len(arrows) == 1 and plan.strategy in arrows[0]
    assert all(strategy in parts[2] for strategy in ("head alone", "stages 6 to 7", "stages 5 to 7", "everything"))
    assert max(map(len, told.splitlines())) <= 140


def test_one_input_gives_one_plan(photos: Path) -> None:
    assert without_seconds(plan_transfer(str(photos), **HERE)) == without_seconds(plan_transfer(str(photos), **HERE))


def test_finetune_follows_it_and_computes_no_image_again(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {"precision": "32-true", "cache_dir": str(tmp_path / "cache")}
    plan = plan_transfer(str(photos), **{**HERE, **kept})
    assert "features: " in capsys.readouterr().err
    done = run(photos, tmp_path / "run", "auto", **kept)
    assert "features: " not in capsys.readouterr().err
    assert without_seconds(done.plan) == without_seconds(plan)
    assert done.plan.reasons[: len(plan.reasons)] == plan.reasons
    assert done.plan.probes[: len(plan.probes)] == plan.probes


def test_a_tail_that_auto_has_chosen_is_trained_and_can_be_predicted_with(
    photos: Path, tmp_path: Path, eager: None
) -> None:
    own = {"epochs": 30, "cache_dir": str(tmp_path / "cache")}  # long enough to take a tenth of a second
    done = run(photos, tmp_path / "run", "auto", mixing=1.0, batch_size=8, precision="32-true", **own)
    assert (done.plan.strategy, done.plan.cut) == ("partial", 6)
    assert done.plan.multipliers == (*(0.0,) * 6, 0.01, 0.1, 1.0)
    assert done.plan.runner_up is not None and done.plan.predicted is not None
    assert done.plan.predicted["seconds"] > 0 and done.plan.predicted["bytes"] > 0
    others = [way for way in done.plan.ways if way["cut"] != 6]
    assert all(way["seconds"] is None for way in others)  # nobody asked, and it takes a while
    assert done.metrics["strategy"] == "partial"
    records = list(toolkit.predict(str(done.path), [str(next(photos.rglob("*.jpg")))]))
    assert records[0]["label"] in done.metrics["classes"]


def test_a_budget_of_nothing_leaves_the_head(photos: Path, eager: None) -> None:
    assert plan_transfer(str(photos), **HERE).strategy == "partial"
    plan = plan_transfer(str(photos), **HERE, budget=0)
    assert plan.strategy == "head" and plan.runner_up == "partial (stages 6 to 7)"
    assert "(over budget)" in page(plan)


def test_a_strategy_that_was_set_is_measured_as_well_but_not_weighed(photos: Path) -> None:
    plan = plan_transfer(str(photos), strategy="full", epochs=10, **HERE)
    assert plan.strategy == "full" and plan.ways == () and plan.runner_up is None
    assert plan.similarity is not None and plan.probes and plan.predicted is not None
    assert plan.predicted["seconds"] > 0
    scratch = plan_transfer(str(photos), strategy="scratch", epochs=1, **HERE)
    assert scratch.similarity is None and scratch.predicted is None


def test_evidence_is_of_the_taps_that_were_set(photos: Path) -> None:
    plan = plan_transfer(str(photos), **HERE, taps=[0, 7])
    assert plan.probes[-1]["taps"] == [0, 7] and plan.predicted is not None
    told = next(reason for reason in plan.reasons if reason.startswith("ridge regression on "))
    assert told.startswith(f"ridge regression on stages 0+7 is right for {plan.probes[-1]['accuracy']:.3f}")


def test_what_is_not_stored_takes_no_disk(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored, live = (plan_transfer(str(photos), **HERE, cache=cache) for cache in (True, False))
    assert stored.ways[1]["bytes"] > 0 and live.ways[1]["bytes"] == 0 and live.ways[1]["seconds"] > 0
    views = plan_transfer(str(photos), **HERE, strategy="head", views=4)
    assert views.predicted is not None and views.predicted["bytes"] > 0
    monkeypatch.setattr("toolkit.features.store.FeatureStore.free_bytes", lambda store: 200_000)
    tight = plan_transfer(str(photos), **HERE)
    assert tight.ways[3]["bytes"] <= 200_000


def test_an_explicit_strategy_is_expected_to_win_what_auto_expects(photos: Path) -> None:
    auto, full = plan_transfer(str(photos), **HERE), plan_transfer(str(photos), **HERE, strategy="full")
    assert full.predicted is not None and full.predicted["accuracy"] == auto.ways[3]["accuracy"]
    assert "foreseen" in page(full) and "full: everything" in page(full)


def test_without_a_trial_it_takes_less_than_with_one(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foresee, "image_seconds", lambda *_: 0.01)  # both alike, whatever else the machine does
    monkeypatch.setattr(foresee, "_view_seconds", lambda *_: 0.001)
    judged, kept = (
        plan_transfer(str(photos), **HERE, strategy="full", epochs=50, **more) for more in ({}, {"mixing": 1.0})
    )
    assert judged.predicted is not None and kept.predicted is not None
    assert judged.predicted["seconds"] > 1.2 * kept.predicted["seconds"]


def test_a_plan_needs_no_gradients_and_no_default_dtype(photos: Path) -> None:
    with torch.no_grad():
        assert plan_transfer(str(photos), **HERE).ways[1]["seconds"] > 0
    with torch.inference_mode():
        assert plan_transfer(str(photos), **HERE).ways[1]["seconds"] > 0
    torch.set_default_dtype(torch.float64)
    try:
        assert plan_transfer(str(photos), **HERE).strategy
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_page_of_a_finished_run_can_be_made_too(photos: Path, tmp_path: Path, eager: None) -> None:
    done = run(photos, tmp_path / "run", "auto", mixing=1.0, epochs=1, batch_size=8)
    assert "weighed" in page(done.plan)
    values = {key: value for key, value in done.plan.to_dict().items() if key != "ways"}  # as older runs have them
    assert "plan: partial" in page(TransferPlan.from_dict(values))


def test_its_json_is_complete_and_strict(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(photos), "--image_size", "32", "--json"]) == 0
    values = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert values["probes"][0]["taps"] == [0] and len(values["ways"]) == 4
    assert values["ways"][0]["affordable"] is True and values["runner_up"]


def test_the_command_that_it_prints_repeats_what_was_set(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(photos), "--image_size", "32", "--seed", "3", "--taps", "6,7", "--budget", "2"]) == 0
    command = capsys.readouterr().out.strip().splitlines()[-1].split()
    assert command[:2] == ["toolkit", "finetune"] and command[3:5] == ["--out", "RUN"]
    pairs = dict(zip(command[5::2], command[6::2], strict=True))
    assert pairs == {"--image_size": "32", "--seed": "3", "--taps": "6,7", "--budget": "2.0"}


def test_files_that_prove_broken_leave_the_counts(photos: Path, tmp_path: Path) -> None:
    copy = tmp_path / "photos"
    shutil.copytree(photos, copy)
    victim = sorted(copy.rglob("*.jpg"))[0]
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    whole, rest = plan_transfer(str(photos), **HERE), plan_transfer(str(copy), **HERE)
    count = sum(rest.facts[key] for key in ("n_train", "n_val", "n_test"))
    assert count == sum(whole.facts[key] for key in ("n_train", "n_val", "n_test")) - 1


def test_unlike_images_let_the_head_see_all_stages(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for threshold, n_taps in ((0.0, 4), (1.1, 8)):
        monkeypatch.setattr(policy, "ALL_STAGES_BELOW", threshold)
        plan = plan_transfer(str(photos), **HERE)
        assert len(plan.taps) == n_taps
        assert any("the head may see any stage" in reason for reason in plan.reasons) == (n_taps == 8)
