"""`--lr auto`: the rate is found before the training, written down, and not looked for again."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.tasks.trials import fits, go, half, photos, resumed, rows, stop_at, weights  # fixtures among them
from toolkit.errors import Interrupted, SettingError
from toolkit.options import Options
from toolkit.planning.forecast import RATE_TEST_STEPS
from toolkit.tasks import find_rate
from toolkit.tasks.plan import plan_transfer
from toolkit.training.range_test import STEPS

__all__ = ["fits", "half", "photos"]


def test_what_is_found_is_trained_with_and_written_down(photos: Path, tmp_path: Path, fits: list[Any]) -> None:
    found = go(photos, tmp_path / "run", lr="auto", mixing=1.0)
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    lr = plan["recipe"]["lr"]
    assert lr == float(f"{0.01 * plan['rate_test']['multiplier']:.3g}") and plan["rate_test"]["steps"] > 10
    rehearsals = plan["rate_test"]["rehearsals"]
    assert len(rehearsals) > 2 and plan["rate_test"]["multiplier"] in [one["multiplier"] for one in rehearsals]
    assert rehearsals[0]["multiplier"] == 1.0, "the strategy's own rate takes part"
    assert plan["reasons"][-1].startswith("range test: ") and plan["reasons"][-1].endswith(f"lr {lr:g} instead of 0.01")
    assert "lr" not in plan["overridden"]
    assert [rate for _, rate, _ in fits] == [lr]
    with open(tmp_path / "run" / "lr_range.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == plan["rate_test"]["steps"]
    assert (tmp_path / "run" / "lr_range.png").stat().st_size > 5000
    given = go(photos, tmp_path / "given", lr=lr, mixing=1.0)
    assert weights(found) == weights(given) and rows(found) == rows(given), "the test has left nothing behind"
    assert "lr: auto" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.usefixtures("half")
def test_a_resumed_run_does_not_look_for_it_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = go(photos, tmp_path / "whole", lr="auto")
    with pytest.MonkeyPatch.context() as patched:
        stop_at(3, "signal", patched)
        with pytest.raises(Interrupted):
            go(photos, tmp_path / "run", lr="auto")
    monkeypatch.setattr(find_rate, "tested", lambda *_: pytest.fail("it was found already"))
    found = resumed(tmp_path / "run")
    assert weights(found) == weights(whole)
    assert found.plan.rate_test == whole.plan.rate_test and found.plan.recipe == whole.plan.recipe


@pytest.mark.usefixtures("half")
def test_stopped_in_the_test_it_is_done_again(photos: Path, tmp_path: Path) -> None:
    whole = go(photos, tmp_path / "whole", lr="auto")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(find_rate, "range_test", lambda *_, **__: (_ for _ in ()).throw(Interrupted(signal.SIGTERM)))
        with pytest.raises(Interrupted):
            go(photos, tmp_path / "run", lr="auto")
    assert weights(resumed(tmp_path / "run")) == weights(whole)
    assert os.path.exists(tmp_path / "run" / "lr_range.csv")


def test_full_and_scratch_have_it_too(photos: Path, tmp_path: Path) -> None:
    found = go(photos, tmp_path / "full", strategy="full", cut=None, lr="auto", mixing=1.0)
    assert "loss of images held out" in found.plan.reasons[-1]
    scratch = go(photos, tmp_path / "scratch", strategy="scratch", cut=None, lr="auto", epochs=1)
    assert any("loss of training batches" in reason for reason in scratch.plan.reasons)


def test_other_words_and_other_strategies_are_refused(photos: Path) -> None:
    for word in ("automatic", "0.1x"):
        with pytest.raises(SettingError, match=f"^lr: a number above 0, at most 100, or auto expected, got '{word}'$"):
            Options(strategy="full", lr=word)
    with pytest.raises(SettingError, match="lr is not used by the strategy 'head'"):
        Options(strategy="head", lr="auto")
    plan = plan_transfer(str(photos), strategy="full", lr="auto", image_size=32, workers=0, device="cpu")
    assert plan.rate_test is None and "a range test finds the rate before it trains" in plan.reasons


def test_the_forecast_counts_the_steps_that_are_taken() -> None:
    assert RATE_TEST_STEPS == STEPS
