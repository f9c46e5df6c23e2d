"""What the tests of the trial share: photographs and stages, runs, stops, and fixtures."""

from __future__ import annotations

import csv
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.photos import make_photos
from toolkit.data.manifest import Manifest
from toolkit.tasks import tail_fit, trial
from toolkit.tasks.finetune import finetune
from toolkit.tasks.run import Run
from toolkit.training.mixing import Verdict
from toolkit.training.module import TransferModule

NAMES = ("cat", "dog", "elk", "owl")
SETTINGS: dict[str, Any] = {
    "strategy": "partial",
    "cut": 1,
    "taps": [1],
    "image_size": 32,
    "workers": 0,
    "device": "cpu",
    "precision": "32-true",
    "epochs": 2,
    "batch_size": 8,
    "lr": 0.1,
}
HEAD: dict[str, Any] = {"strategy": "head", "cut": None, "epochs": None, "batch_size": None, "lr": None}
TRIAL_STEPS, STEPS = 2 * 7, 2 * 8  # 80 photographs: 16 validate, 64 train, 12 of them are held out of the trial

Modules = list[nn.Module]


def narrow(width: int = 2) -> Modules:
    """Return two stages whose end is too narrow to tell four classes apart by random features: there is much to gain.

    They are made anew for every run, which trains them in place.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        return [first, nn.Sequential(nn.Dropout(0.1), nn.Conv2d(8, width, 3, 2, 1), nn.BatchNorm2d(width))]


class Brittle(nn.Module):
    """Passes its input on while a number that every step makes larger by the rate is below a limit, then nothing."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.grown, self.limit = nn.Parameter(torch.zeros(())), limit

    def forward(self, inputs: Tensor) -> Tensor:
        grown = self.grown * 1
        if grown.requires_grad:
            grown.register_hook(lambda gradient: -torch.ones_like(gradient))
        return inputs * (grown < self.limit) + (grown - grown.detach())


def brittle() -> Modules:
    """Return two stages on which a head is right, and which break after some thirty steps at BREAKING's rate."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU())
        return [first, nn.Sequential(nn.Dropout(0.1), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU(), Brittle(0.044))]


BREAKING: dict[str, Any] = {"lr": 0.02, "epochs": 5, "batch_size": 4, "augment": "none"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 4 classes with 20 photographs each."""
    return make_photos(tmp_path_factory.mktemp("trial") / "photos", dict.fromkeys(NAMES, 20))


def go(photos: Path, out: Path, stages: Callable[[], Modules] = narrow, **options: Any) -> Run:
    settings = {**SETTINGS, "cache_dir": str(photos.parent / "cache"), **options}
    return finetune(str(photos), out=str(out), backbone=stages(), **settings)  # type: ignore[arg-type]


def resumed(out: Path, stages: Callable[[], Modules] = narrow) -> Run:
    return finetune(resume=str(out), backbone=stages())  # type: ignore[arg-type]


def weights(run: Run) -> bytes:
    return (run.model_path / "model.safetensors").read_bytes()


def rows(run: Run, name: str = "history.csv") -> list[dict[str, str]]:
    """Return the rows of a run's history, but for its clock."""
    with open(run.path / name, encoding="utf-8", newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def verdict_of(run: Run) -> Verdict:
    """Return the verdict as plan.json has it."""
    return Verdict.from_dict(json.loads((run.path / "plan.json").read_text())["verdict"])


def assert_same(one: Run, other: Run) -> None:
    """Assert that two runs ended in the same weights by the same verdict, and left no checkpoints."""
    assert weights(one) == weights(other)
    assert verdict_of(one) == verdict_of(other)
    for name in ("history.csv", "trial.csv", "trial2.csv", "trial3.csv"):
        assert (one.path / name).exists() == (other.path / name).exists()
        assert not (one.path / name).exists() or rows(one, name) == rows(other, name)
    assert (one.path / "predictions.csv").read_bytes() == (other.path / "predictions.csv").read_bytes()
    assert not (one.path / "checkpoints").exists() and not (other.path / "checkpoints").exists()


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, Manifest]]:
    """Return the list that grows by the folder, the rate and the Manifest of every training."""
    made: list[tuple[str, float, Manifest]] = []
    fit = tail_fit.fit

    def noted(module: Any, data: Any, *more: Any, folder: Path, **settings: Any) -> int:
        made.append((folder.name, module.recipe.lr, data.manifest))
        return fit(module, data, *more, folder=folder, **settings)

    monkeypatch.setattr(tail_fit, "fit", noted)
    return made


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every trial end in equal parts of both weights."""
    monkeypatch.setattr(trial, "judge", half_of(trial.judge))


def half_of(judge: Callable[..., Verdict]) -> Callable[..., Verdict]:
    return lambda *arguments: replace(judge(*arguments), share=0.5)


class Killed(BaseException):
    """Ends a run at once, without a checkpoint."""


def stop_at(step: int, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run end in its training step number `step`, counted from 0 through all of its trainings."""
    train, steps = TransferModule.training_step, iter(range(10**6))

    def stepped(self: TransferModule, batch: Any, number: int) -> Any:
        if next(steps) == step:
            if how == "kill":
                raise Killed
            os.kill(os.getpid(), signal.SIGTERM)
        return train(self, batch, number)

    monkeypatch.setattr(TransferModule, "training_step", stepped)


@pytest.fixture(scope="module")
def undisturbed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run that ends in equal parts of both weights."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(trial, "judge", half_of(trial.judge))
        return go(photos, tmp_path_factory.mktemp("undisturbed") / "run")
