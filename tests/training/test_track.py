"""TensorBoard's event files hold what history.csv holds, also after a resume."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.tiny import folder_data, tiny_backbone
from toolkit.errors import Interrupted, SettingError
from toolkit.plan import Recipe
from toolkit.training.fit import FitSettings, fit
from toolkit.training.module import TransferModule
from toolkit.training.need_tensorboard import need_tensorboard

pytest.importorskip("tensorboard")


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def train(folder: Path, *, stop_at: int | None = None) -> None:
    data = folder_data(folder.parent / "photos", workers=0)
    torch.manual_seed(0)
    module = TransferModule(tiny_backbone(), 3, cut=2, recipe=Recipe(lr=0.02))
    if stop_at is not None:
        import os
        import signal

        step, seen = module.training_step, iter(range(100))

        def stepped(*arguments: Any) -> Any:
            if next(seen) == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(*arguments)

        module.training_step = stepped  # type: ignore[method-assign]
    folder.mkdir(exist_ok=True)
    settings = FitSettings(epochs=3, precision="32-true", track=folder / "events")
    start = {"val_loss": 1.2, "val_accuracy": 0.4}
    device = torch.device("cpu")
    fit(module, data, settings, folder=folder, history=folder / "history.csv", device=device, row=start)


def test_it_has_what_the_history_has(tmp_path: Path) -> None:
    train(tmp_path / "run")
    found = scalars(tmp_path / "run" / "events")
    with open(tmp_path / "run" / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for tag, column in (
        ("train/loss", "train_loss"),
        ("val/accuracy", "val_accuracy"),
        ("update/head", "update_head"),
        ("update/stage_3", "update_stage_3"),
        ("step/gradient_norm", "gradient_norm"),
    ):
        wanted = [(int(row["step"]), float(row[column])) for row in rows if row[column]]
        assert [step for step, _ in found[tag]] == [step for step, _ in wanted], tag
        assert [value for _, value in found[tag]] == pytest.approx([value for _, value in wanted], rel=1e-4)
    rates = {name: [value for _, value in found[f"rate/{name}"]] for name in ("head", "stage_3", "stage_2")}
    assert len(rates["head"]) == 18 == len(found["step/loss"])
    for name, share in (("stage_3", 0.1), ("stage_2", 0.01)):
        assert rates[name] == pytest.approx([share * rate for rate in rates["head"]])


def test_resumed_every_step_is_there_once(tmp_path: Path) -> None:
    train(tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(tmp_path / "run", stop_at=8)
    train(tmp_path / "run")
    assert scalars(tmp_path / "run" / "events") == scalars(tmp_path / "whole" / "events")


def test_without_the_package_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    need_tensorboard()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        SettingError, match=r"track: tensorboard is not installed; pip install 'transfer-toolkit\[track\]'"
    ):
        need_tensorboard()
