"""What becomes of a training that loses what its head knew."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.tasks.trials import (  # fixtures among them
    BREAKING,
    HEAD,
    Brittle,
    Killed,
    Modules,
    assert_same,
    brittle,
    fits,
    go,
    half,
    photos,
    resumed,
    rows,
    stop_at,
    verdict_of,
    weights,
)
from toolkit.errors import Interrupted
from toolkit.tasks import tail_fit
from toolkit.training import network
from toolkit.training.collapse import CollapsedError
from toolkit.training.folded import folded_norms
from toolkit.training.mixing import WENT_ASTRAY
from toolkit.training.module import TransferModule

__all__ = ["fits", "half", "photos"]


def test_after_a_collapse_it_begins_again_with_a_tenth_of_the_rates(
    photos: Path, tmp_path: Path, fits: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    found = go(photos, tmp_path / "run", brittle, **BREAKING, mixing=1)
    assert [name for name, *_ in fits] == ["checkpoints", "again"]
    assert [rate for _, rate, _ in fits] == pytest.approx([0.02, 0.002])
    said = capsys.readouterr().err
    assert "note: the training accuracy fell from" in said and "it begins again with 0.1 of the rates" in said
    assert "the head stays" not in said
    assert max(float(row["lr_head"]) for row in rows(found)[1:]) < 0.002 and len(rows(found)) == 6
    slow = go(photos, tmp_path / "slow", brittle, **{**BREAKING, "lr": 0.02 * tail_fit.SMALLER_RATE}, mixing=1)
    assert weights(found) == weights(slow), "it begins again from the start, and not from what was left"
    assert rows(found) == rows(slow) and not (found.path / "checkpoints").exists()


@pytest.mark.parametrize("option", [{}, {"mixing": 1.0}], ids=["judged", "given"])
def test_after_a_second_collapse_the_head_stays(
    photos: Path,
    tmp_path: Path,
    fits: list[Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    option: dict[str, Any],
) -> None:
    monkeypatch.setattr(tail_fit, "SMALLER_RATE", 1.0)
    found = go(photos, tmp_path / "run", brittle, **BREAKING, **option)
    assert [name for name, *_ in fits] == ["checkpoints" if option else "trial", "again"]
    assert "the head stays" in capsys.readouterr().err
    assert verdict_of(found) == WENT_ASTRAY and str(WENT_ASTRAY) in str(found)
    head = go(photos, tmp_path / "head", brittle, **{**HEAD, "head": found.plan.head})
    assert weights(found) == weights(head)
    assert found.metrics["val"]["accuracy"] == head.metrics["val"]["accuracy"]
    assert not (found.path / "checkpoints").exists()


@pytest.mark.usefixtures("half")
def test_stopped_around_collapses_and_resumed_a_run_ends_the_same(photos: Path, tmp_path: Path) -> None:
    lengths: list[int] = []
    with pytest.MonkeyPatch.context() as patched:
        fit, step = tail_fit.fit, TransferModule.training_step
        patched.setattr(
            tail_fit, "fit", lambda *arguments, **settings: lengths.append(0) or fit(*arguments, **settings)
        )

        def counted(self: TransferModule, batch: Any, number: int) -> Any:
            lengths[-1] += 1
            return step(self, batch, number)

        patched.setattr(TransferModule, "training_step", counted)
        whole = go(photos, tmp_path / "whole", brittle, **BREAKING)
    assert len(lengths) == 3 and lengths[0] < lengths[1] == 65 and lengths[2] == 80, "the second time at once so"
    for training, step, how in (
        (0, 33, "signal"),
        (1, 33, "signal"),
        (2, 5, "kill"),
        (2, 33, "signal"),
    ):
        out = tmp_path / f"{training} {step}"
        with pytest.MonkeyPatch.context() as patched:
            stop_at(sum(lengths[:training]) + step, how, patched)
            with pytest.raises((Interrupted, Killed)):
                go(photos, out, brittle, **BREAKING)
        assert_same(resumed(out, brittle), whole)


@pytest.mark.usefixtures("half")
def test_where_the_final_training_collapses_twice_nothing_else_is_said(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = tail_fit.fit

    def falls(*arguments: Any, folder: Path, **settings: Any) -> int:
        if folder.name != "trial":
            raise CollapsedError("the training accuracy fell")
        return fit(*arguments, folder=folder, **settings)

    monkeypatch.setattr(tail_fit, "fit", falls)
    found = go(photos, tmp_path / "run")
    head = go(photos, tmp_path / "head", **{**HEAD, "head": found.plan.head})
    assert weights(found) == weights(head)
    assert verdict_of(found).share == 0 and "kept: " not in str(found)


def normed() -> Modules:
    """Return `brittle` with a norm behind a dropout, which is computed inside its convolution while it trains."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU())
        norm = nn.BatchNorm2d(16)
        norm.running_mean.normal_(std=0.1)
        norm.running_var.uniform_(0.5, 2)
        return [first, nn.Sequential(nn.Dropout(0.1), nn.Conv2d(16, 16, 3, 2, 1), norm, nn.ReLU(), Brittle(0.044))]


def test_after_a_collapse_norms_are_computed_as_before_it_and_when_resumed(
    photos: Path, tmp_path: Path, fits: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []

    @contextmanager
    def counted(*arguments: Any) -> Iterator[int]:
        with folded_norms(*arguments) as count:
            counts.append(count)
            yield count

    monkeypatch.setattr(network, "folded_norms", counted)
    whole = go(photos, tmp_path / "whole", normed, **BREAKING, mixing=1)
    assert [name for name, *_ in fits] == ["checkpoints", "again"]
    with pytest.MonkeyPatch.context() as patched:
        stop_at(100, "signal", patched)
        with pytest.raises(Interrupted):
            go(photos, tmp_path / "run", normed, **BREAKING, mixing=1)
    assert fits[-1][0] == "again"
    found = resumed(tmp_path / "run", normed)
    assert weights(found) == weights(whole)
    assert rows(found) == rows(whole)
    assert counts == [1] * 5
