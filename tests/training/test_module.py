"""TransferModule and ImageFolderData under a Trainer of the user's own; its loss; batches of one and of none."""

from __future__ import annotations

import csv
import math
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import toolkit
from tests.training.tiny import SMALL, assert_equal, bare_trainer, changed, copied, folder_data, tiny_backbone
from toolkit.plan import Recipe
from toolkit.training.module import TransferModule


class Counts(pl.Callback):
    """What a user might hang in: counts batches and keeps what was logged."""

    def __init__(self) -> None:
        self.batches = 0
        self.metrics: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches += 1

    def on_validation_epoch_end(self, trainer, pl_module):
        self.metrics.append({key: float(value) for key, value in trainer.callback_metrics.items()})


class KeepsInMemory(Logger):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    @property
    def name(self) -> str:
        return "memory"

    @property
    def version(self) -> int:
        return 0

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append(metrics)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass


def test_public_names_work_under_a_trainer_as_a_user_makes_it(tmp_path):
    folder_data(tmp_path / "photos")
    data = toolkit.ImageFolderData(tmp_path / "photos", SMALL, batch_size=4)
    module = toolkit.TransferModule(tiny_backbone(), len(data.classes), recipe=Recipe(lr=0.02))
    counts, memory = Counts(), KeepsInMemory()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=3,
        default_root_dir=tmp_path,
        callbacks=[counts],
        logger=[CSVLogger(tmp_path, name="log", flush_logs_every_n_steps=1), memory],
        enable_progress_bar=False,
        log_every_n_steps=1,
    )
    trainer.fit(module, datamodule=data)
    assert counts.batches == 3 * 6
    assert trainer.checkpoint_callback is not None and list(tmp_path.rglob("epoch=2*.ckpt"))
    with open(tmp_path / "log" / "version_0" / "metrics.csv", newline="") as file:
        columns = set().union(*(row.keys() for row in csv.DictReader(file)))
    wanted = {"train_loss", "train_accuracy", "val_loss", "val_accuracy"}
    assert wanted <= columns and wanted <= set().union(*(row.keys() for row in memory.rows))
    assert all(math.isfinite(value) for row in memory.rows for value in row.values())
    assert [set(metrics) >= {"val_loss", "val_accuracy"} for metrics in counts.metrics[-3:]] == [True] * 3
    assert trainer.callback_metrics["train_loss"] < math.log(3)
    assert {0.0, 1.0} >= {float(0 <= metrics["val_accuracy"] <= 1) for metrics in counts.metrics}
    validated = trainer.validate(module, datamodule=data, verbose=False)[0]
    assert validated["val_loss"] == pytest.approx(counts.metrics[-1]["val_loss"], rel=1e-5)


def test_logged_numbers_are_means_over_images(tmp_path):
    data = folder_data(tmp_path / "photos", views=1)
    module = TransferModule(tiny_backbone(dropout=0.0), 3, cut=4, recipe=Recipe(lr=1e-12, label_smoothing=0.1))
    nn.init.normal_(module.network.head.linear.weight, generator=torch.Generator().manual_seed(0))
    trainer = bare_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, data)
    logged = {key: float(value) for key, value in trainer.callback_metrics.items()}
    for split, loader in (("train", data.train_dataloader()), ("val", data.val_dataloader())):
        batches = list(loader)
        pixels, labels = torch.cat([b.inputs for b in batches]), torch.cat([b.labels for b in batches])
        with torch.inference_mode():
            scores = module.network.eval()(pixels)
        smoothing = 0.1 if split == "train" else 0.0
        assert len(labels) % 4, "the last batch is smaller"
        expected = float(F.cross_entropy(scores, labels, label_smoothing=smoothing))
        assert logged[f"{split}_loss"] == pytest.approx(expected, rel=1e-5)
        assert logged[f"{split}_accuracy"] == pytest.approx(float((scores.argmax(1) == labels).float().mean()))


@pytest.mark.parametrize("epochs_before", [1, 2])
def test_a_users_checkpoint_resumes_to_equal_weights(tmp_path, epochs_before):
    """Without our callbacks nothing keeps the random state, so the network here has no dropout."""

    def parts() -> tuple[TransferModule, toolkit.ImageFolderData]:
        module = TransferModule(tiny_backbone(dropout=0.0), 3, cut=1, recipe=Recipe(lr=0.05))
        return module, folder_data(tmp_path / "photos")

    class Saves(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 6 * epochs_before - 3:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    whole, data = parts()
    bare_trainer(tmp_path, max_epochs=3, callbacks=[Saves()]).fit(whole, data)
    resumed, data = parts()
    counts = Counts()
    bare_trainer(tmp_path, max_epochs=3, callbacks=[counts]).fit(resumed, data, ckpt_path=tmp_path / "middle.ckpt")
    assert counts.batches == 18 - (6 * epochs_before - 3)
    assert_equal(copied(resumed.network.state_dict()), copied(whole.network.state_dict()))


def test_checkpoints_of_a_plain_trainer_hold_plain_data(tmp_path):
    trainer = bare_trainer(tmp_path, max_epochs=1)
    trainer.fit(TransferModule(tiny_backbone(), 3), folder_data(tmp_path / "photos"))
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    checkpoint = torch.load(tmp_path / "plain.ckpt", weights_only=True)
    assert checkpoint["ImageFolderData"]["position"] == {"epoch": 0, "batches": 6}


def test_a_loader_of_ones_own_gives_normalised_floats(tmp_path):
    """uint8 pixels and the floats that they stand for train alike."""
    pixels = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(12) % 3
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (SMALL.mean, SMALL.std))
    floats = (pixels.float() / 255 - mean) / std
    weights = []
    for images in (pixels, floats):
        module = TransferModule(tiny_backbone(dropout=0.0), 3, cut=2, recipe=Recipe(lr=0.05))
        loader = DataLoader(TensorDataset(images, labels), batch_size=5)
        bare_trainer(tmp_path).fit(module, loader, loader)
        weights.append(copied(module.network.state_dict()))
    assert_equal(*weights)
    assert changed(weights[0], copied(TransferModule(tiny_backbone(), 3).network.state_dict()))


def test_a_network_and_a_head_of_ones_own(tmp_path):
    conv = nn.Conv2d(3, 6, 3, stride=2)
    backbone = toolkit.as_backbone(
        nn.Sequential(conv, nn.Sequential(nn.ReLU(), nn.Conv2d(6, 5, 3))), preprocessing=SMALL
    )
    head = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    module = TransferModule(backbone, 3, cut=1, head=head, recipe=Recipe(lr=0.05))
    frozen, start = conv.weight.detach().clone(), copied(head.state_dict())
    bare_trainer(tmp_path).fit(module, folder_data(tmp_path / "photos"))
    assert torch.equal(conv.weight, frozen)
    assert changed(copied(head.state_dict()), start) == set(start), "the statistics of a new head's BatchNorm move"


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0]])
def test_the_loss_is_torchs(smoothing, weights):
    module = TransferModule(tiny_backbone(), 3, class_weights=weights, recipe=Recipe(label_smoothing=smoothing)).eval()
    nn.init.normal_(module.network.head.linear.weight, std=3)
    pixels = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    given = module.training_step((pixels, labels), 0)
    weight = None if weights is None else torch.tensor(weights)
    wanted = nn.CrossEntropyLoss(weight=weight, label_smoothing=smoothing)(module(pixels), labels)
    assert torch.equal(given["loss"], wanted)
    assert given["size"] == 6 and given["loss_sum"] == pytest.approx(wanted.item() * 6)
    assert given["hits"] == int((module(pixels).argmax(1) == labels).sum())
    assert "class_weights" not in module.state_dict()


def test_the_first_loss_is_ln_c():
    module = TransferModule(tiny_backbone(), 7)
    pixels = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    assert module.training_step((pixels, torch.arange(5)), 0)["loss"].item() == pytest.approx(math.log(7), rel=1e-6)


def test_a_last_batch_of_one_does_no_harm(tmp_path):
    """A head with BatchNorm cannot normalise a single row, and a 1 × 1 map of one image has no variance."""
    data = folder_data(tmp_path / "photos", batch_size=4)
    assert len(data.manifest.rows(0)) % 4 == 1
    head = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    module = TransferModule(tiny_backbone(), 3, cut=0, head=head, recipe=Recipe(lr=0.01, batchnorm="moving"))
    sizes, losses = [], []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            sizes.append(len(batch[1]))
            losses.append(float(outputs["loss"]))
            assert all(m.training for m in pl_module.modules() if isinstance(m, nn.BatchNorm2d))

    bare_trainer(tmp_path, callbacks=[Look()]).fit(module, data)
    assert sizes == [4, 4, 4, 4, 4, 1] * 2
    assert all(math.isfinite(loss) for loss in losses)
    assert all(torch.isfinite(value).all() for value in module.state_dict().values())
    assert {int(m.num_batches_tracked) for m in module.modules() if isinstance(m, nn.BatchNorm2d)} == {10}


def test_a_batch_of_none_gives_a_loss_of_zero_and_no_gradient():
    module = TransferModule(tiny_backbone(), 3, cut=1).train()
    empty = (torch.empty(0, 3, 32, 32, dtype=torch.uint8), torch.empty(0, dtype=torch.int64))
    given = module.training_step(empty, 0)
    given["loss"].backward()
    trained = [p for p in module.parameters() if p.requires_grad]
    assert given["loss"].item() == 0 and given["size"] == 0
    assert trained and all(p.grad is not None and not p.grad.any() for p in trained)
    module.validation_step(empty, 0)


def test_clipping_and_precision_reach_the_trainer(tmp_path, monkeypatch):
    from toolkit.training import fit as fit_module

    made: list[pl.Trainer] = []
    make = fit_module.Trainer
    monkeypatch.setattr(fit_module, "Trainer", lambda **keys: made.append(make(**keys)) or made[-1])
    for name, clip, precision in (("a", 0.3, "32-true"), ("b", None, "bf16-mixed")):
        settings = fit_module.FitSettings(epochs=1, precision=precision, clip=clip, accumulate=2)
        fit_module.fit(
            TransferModule(tiny_backbone(), 3),
            folder_data(tmp_path / "photos"),
            settings,
            folder=tmp_path / name,
            history=tmp_path / name / "history.csv",
            device=torch.device("cpu"),
        )
        trainer = made[-1]
        assert (trainer.gradient_clip_val, trainer.precision) == (clip, precision)
        assert (trainer.accumulate_grad_batches, trainer.max_epochs) == (2, 1)


def test_without_images_to_validate_on_it_trains_all_the_same(tmp_path):
    from toolkit.training.fit import FitSettings, fit

    data = folder_data(tmp_path / "photos")
    data.manifest.splits[:] = 0
    module = TransferModule(tiny_backbone(), 3)
    steps = fit(
        module,
        data,
        FitSettings(epochs=2, precision="32-true", patience=1),
        folder=tmp_path / "run",
        history=tmp_path / "history.csv",
        device=torch.device("cpu"),
    )
    assert steps == 2 * 7
    with open(tmp_path / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["val_loss"] for row in rows] == ["", ""] and float(rows[1]["train_loss"]) > 0


def test_a_module_from_a_user_s_trainer_is_tested_and_saved(tmp_path):
    data = folder_data(tmp_path / "photos")
    data.manifest.splits[:3] = 2
    module = TransferModule(tiny_backbone(), 3)
    trainer = bare_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, data)
    (tested,) = trainer.test(module, data, verbose=False)
    assert set(tested) == {"test_loss", "test_accuracy"} and math.isfinite(tested["test_loss"])
    toolkit.save_model(module.trained_model(data.classes), tmp_path / "model")
    loaded = toolkit.load_model(tmp_path / "model", stages=tiny_backbone(seed=5).stages)
    assert loaded.classes == data.classes
    assert_equal(loaded.network.state_dict(), module.network.state_dict())


@pytest.mark.parametrize(
    "wrong", [{"lr": 0.0}, {"lr": math.nan}, {"weight_decay": -1.0}, {"warmup": 2.0}, {"label_smoothing": 1.0},
              {"mixup": -0.1}, {"cutmix": math.inf}, {"drop_path": 1.0}, {"ema": 1.0}, {"unfreeze": -1}]
)  # fmt: skip
def test_values_that_make_no_sense_are_refused(wrong):
    with pytest.raises(toolkit.ToolkitError, match="expected"):
        Recipe(**wrong)
    with pytest.raises(toolkit.ToolkitError, match="class_weights: 3 of them expected"):
        TransferModule(tiny_backbone(), 3, class_weights=[1.0])


def test_one_class_is_a_network_too() -> None:
    module = TransferModule(tiny_backbone(), 1)
    assert module(torch.zeros(2, 3, 32, 32)).shape == (2, 1)
