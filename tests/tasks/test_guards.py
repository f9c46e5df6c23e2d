"""What a run does when training comes to no number, memory runs out, or a decoding process is killed."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.tasks.trials import (  # fixtures among them
    SETTINGS,
    Modules,
    assert_same,
    fits,
    go,
    half,
    narrow,
    photos,
    resumed,
    rows,
    weights,
)
from toolkit.tasks.run import Run
from toolkit.training.finite import NonFiniteError
from toolkit.training.mixing import WENT_ASTRAY

__all__ = ["fits", "half", "photos"]


class Bursts(nn.Module):
    """Passes its input on; in its training step number `at` nothing that is a number, if the rate is above `limit`.

    What it has grown by tells the rate: every step adds it to a weight of its own.
    """

    def __init__(self, at: int, limit: float) -> None:
        super().__init__()
        self.grown, self.at, self.limit, self.steps = nn.Parameter(torch.zeros(())), at, limit, 0

    def forward(self, inputs: Tensor) -> Tensor:
        grown = self.grown * 1
        if not grown.requires_grad:
            return inputs
        grown.register_hook(lambda gradient: -torch.ones_like(gradient))
        self.steps += 1
        bad = self.steps >= self.at and float(self.grown) > self.limit
        return inputs * (torch.nan if bad else 1.0) + (grown - grown.detach())


def bursting() -> Modules:
    """Return two stages that give no numbers after three steps, but at a tenth of the rate."""
    first, second = narrow(8)
    return [first, nn.Sequential(second, nn.ReLU(), Bursts(4, 0.01))]


def test_at_a_rate_that_was_set_it_ends_in_a_line_and_resumed_takes_a_tenth(
    photos: Path, tmp_path: Path, fits: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(NonFiniteError) as caught:
        go(photos, tmp_path / "run", bursting, mixing=1.0)
    text = str(caught.value)
    assert text.startswith("the loss was nan in step 4, which was not taken") and "\n" not in text
    assert "take --lr 0.01, a tenth" in text
    assert f"--resume begins again with 0.1 of the rates: {tmp_path / 'run'}" in text
    with open(tmp_path / "run" / "bad_batch.csv", newline="") as file:
        named = [row["path"] for row in csv.DictReader(file)]
    assert len(named) == 8 and all((photos / path).is_file() for path in named) and named[0] in text
    assert not (tmp_path / "run" / "metrics.json").exists()
    found = resumed(tmp_path / "run", bursting)
    assert [(name, rate) for name, rate, _ in fits] == [("checkpoints", 0.1), ("again", pytest.approx(0.01))]
    slow = go(photos, tmp_path / "slow", bursting, mixing=1.0, lr=0.01)
    assert weights(found) == weights(slow) and rows(found) == rows(slow)


def test_at_a_rate_of_its_own_it_begins_again_by_itself(
    photos: Path, tmp_path: Path, fits: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    def own() -> Modules:
        first, second = narrow(8)
        return [first, nn.Sequential(second, nn.ReLU(), Bursts(4, 1e-4))]

    found = go(photos, tmp_path / "run", own, mixing=1.0, lr=None)
    assert [name for name, *_ in fits] == ["checkpoints", "again"]
    assert "note: the loss was nan in step 4" in capsys.readouterr().err
    assert (found.path / "metrics.json").exists()


def test_where_a_tenth_does_no_better_the_head_stays(photos: Path, tmp_path: Path, fits: list[Any]) -> None:
    def hopeless() -> Modules:
        first, second = narrow(8)
        return [first, nn.Sequential(second, nn.ReLU(), Bursts(2, 0.0))]

    found = go(photos, tmp_path / "run", hopeless, mixing=1.0, lr=None)
    assert [name for name, *_ in fits] == ["checkpoints", "again"]
    assert found.plan.verdict is not None and found.plan.verdict["reason"] == WENT_ASTRAY.reason


def test_out_of_memory_is_told_and_the_run_goes_on(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Small(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            if torch.is_grad_enabled() and len(inputs) > 4:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
            return inputs

    def small() -> Modules:
        first, second = narrow()
        return [first, nn.Sequential(second, Small())]

    found = go(photos, tmp_path / "run", small, mixing=1.0)
    said = capsys.readouterr().err
    assert said.count("note: out of memory with 8 images at once: from now on a batch goes through 4 at a time") == 1
    whole = go(photos, tmp_path / "whole", narrow, mixing=1.0)
    assert [row["step"] for row in rows(found)] == [row["step"] for row in rows(whole)]


@pytest.mark.slow
def test_a_killed_decoding_process_is_named_and_the_run_ends_the_same(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from toolkit.data.loading import ResumableLoader
    from toolkit.training.module import TransferModule

    live = {"cache": False, "cache_dir": None, "mixing": 1.0}
    whole = go(photos, tmp_path / "whole", **live, workers=0)
    loaders: list[Any] = []
    begun = ResumableLoader._begun
    monkeypatch.setattr(ResumableLoader, "_begun", lambda self: loaders.append(self) or begun(self))
    step, seen = TransferModule.training_step, iter(range(1000))

    def stepped(self: TransferModule, batch: Any, number: int) -> Any:
        if next(seen) == 4:
            training = next(loader for loader in loaders if loader.sampler.shuffle)
            os.kill(training._iterator._workers[0].pid, signal.SIGKILL)
        return step(self, batch, number)

    monkeypatch.setattr(TransferModule, "training_step", stepped)
    found = go(photos, tmp_path / "run", **live, workers=2)
    said = capsys.readouterr().err
    assert "was killed by SIGKILL" in said and "it goes on without such processes" in said
    assert weights(found) == weights(whole) and rows(found) == rows(whole)


def test_the_course_of_a_training_is_told_in_words(photos: Path, tmp_path: Path) -> None:
    found = go(photos, tmp_path / "run", mixing=1.0)
    told = json.loads((tmp_path / "run" / "metrics.json").read_text())["diagnosis"]
    assert told and f"course: {told}" in str(found)
    assert told.startswith("Too few validation images to tell much: of 16")
    head = go(photos, tmp_path / "head", **{**dict.fromkeys(("cut", "epochs", "batch_size", "lr")), "strategy": "head"})
    assert head.metrics["diagnosis"] is None and "course:" not in str(head)


@pytest.mark.usefixtures("half")
def test_tracked_trainings_have_a_folder_each(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    out = tmp_path / "run"
    found: Run = go(photos, out, track=True)
    plain = go(photos, tmp_path / "plain")
    assert_same(found, plain)
    assert sorted(folder.name for folder in (out / "tensorboard").iterdir()) == ["history", "trial"]
    assert not (tmp_path / "plain" / "tensorboard").exists()
    go(photos, out, overwrite=True, mixing=1.0)
    assert not (out / "tensorboard").exists(), "the events of the run that was replaced are gone"
    assert "track" not in SETTINGS
