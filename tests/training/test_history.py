"""history.csv: whole after every epoch, six digits, nothing where there is no number."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from tests.training.tiny import bare_trainer, folder_data, tiny_backbone
from toolkit.plan import Recipe
from toolkit.training.history import COLUMNS, History, StepProgress
from toolkit.training.module import TransferModule


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        assert tuple(reader.fieldnames or ())[: len(COLUMNS)] == COLUMNS
        return list(reader)


class Peeks(pl.Callback):
    """Reads the file as each epoch begins, when the row of the last one must be there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: list[list[str]] = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.seen.append([row["epoch"] for row in rows_of(self.path)])


def test_the_file_is_whole_after_every_epoch(tmp_path):
    path = tmp_path / "deep" / "history.csv"
    path.parent.mkdir()
    start = {"val_loss": 1.25, "val_accuracy": 0.5}
    peeks = Peeks(path)
    module = TransferModule(tiny_backbone(), 3, recipe=Recipe(lr=0.01))
    bare_trainer(tmp_path, max_epochs=3, callbacks=[History(path, start), peeks]).fit(
        module, folder_data(tmp_path / "photos")
    )
    assert peeks.seen == [["0"], ["0", "1"], ["0", "1", "2"]]
    rows = rows_of(path)
    known = {"epoch": "0", "step": "0", "val_loss": "1.25", "val_accuracy": "0.5"}
    assert rows[0] == dict.fromkeys(rows[0], "") | known
    updates = ["update_stage_2", "update_stage_3", "update_head"]
    assert list(rows[0]) == [*COLUMNS, *updates]
    assert all(0 < float(row[key]) < 1 for row in rows[1:] for key in updates[:2])
    assert [row["step"] for row in rows] == ["0", "6", "12", "18"]
    assert all(math.isfinite(float(row[key])) for row in rows[1:] for key in COLUMNS)
    assert float(rows[-1]["lr_head"]) < 0.01 and float(rows[1]["lr_head"]) > float(rows[2]["lr_head"])
    seconds = [float(row["seconds"]) for row in rows[1:]]
    assert seconds == sorted(seconds)
    assert not list(path.parent.glob("*.tmp*")) and len(list(path.parent.iterdir())) == 1


def test_the_numbers_are_those_that_lightning_logs(tmp_path):
    path = tmp_path / "history.csv"
    trainer = bare_trainer(tmp_path, max_epochs=1, callbacks=[History(path)])
    trainer.fit(TransferModule(tiny_backbone(), 3, recipe=Recipe(lr=0.01)), folder_data(tmp_path / "photos"))
    (row,) = rows_of(path)
    for key in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
        assert float(row[key]) == pytest.approx(float(trainer.callback_metrics[key]), rel=1e-4)


def test_a_loss_that_is_no_number_leaves_its_cell_empty(tmp_path):
    path = tmp_path / "history.csv"
    module = TransferModule(tiny_backbone(), 3)
    nn.init.constant_(module.network.head.linear.bias, torch.inf)
    bare_trainer(tmp_path, callbacks=[History(path)]).fit(module, folder_data(tmp_path / "photos"))
    rows = rows_of(path)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(row["train_loss"] == row["val_loss"] == "" for row in rows)
    text = path.read_text().lower()
    assert "nan" not in text and "inf" not in text


def test_progress_counts_optimizer_steps(tmp_path, capsys):
    for accumulate, steps in ((1, 12), (4, 4)):
        trainer = bare_trainer(tmp_path, callbacks=[StepProgress()], accumulate_grad_batches=accumulate)
        trainer.fit(TransferModule(tiny_backbone(), 3), folder_data(tmp_path / "photos"))
        assert trainer.global_step == steps
        assert f"training: {steps} steps in" in capsys.readouterr().err
