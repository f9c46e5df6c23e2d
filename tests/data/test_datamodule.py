"""ImageFolderData: splits, loaders, the account of files that fail while training, and sources left as they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.photos import make_photos
from tests.training.tiny import SMALL, bare_trainer, folder_data, tiny_backbone
from toolkit.data.datamodule import ImageFolderData
from toolkit.data.manifest import TRAIN, VAL
from toolkit.data.scan import scan
from toolkit.data.split import assign_splits
from toolkit.errors import ArtifactError, SettingError
from toolkit.plan import Recipe
from toolkit.training.module import TransferModule


def rows_of(loader, epoch: int = 0) -> list[int]:
    loader.sampler.set_epoch(epoch)
    return [row for batch in loader for row in batch.rows.tolist()]


def test_splits_and_loaders(tmp_path):
    root = make_photos(tmp_path / "photos", {"cat": 9, "dog": 6})
    data = ImageFolderData(root, SMALL, batch_size=4, val=0.3, seed=2)
    expected = assign_splits(scan(root), val=0.3, seed=2)
    assert data.classes == ("cat", "dog") and data.manifest.fingerprint() == expected.fingerprint()
    assert sorted(rows_of(data.train_dataloader())) == expected.rows(TRAIN).tolist()
    assert rows_of(data.val_dataloader()) == expected.rows(VAL).tolist()
    assert rows_of(data.test_dataloader()) == []
    assert rows_of(data.train_dataloader(), 0) != rows_of(data.train_dataloader(), 1)


def test_validation_is_clean_in_every_epoch(tmp_path):
    data = folder_data(tmp_path / "photos", batch_size=30)
    loader = data.val_dataloader()
    pixels = []
    for epoch in (0, 1, 5):
        loader.sampler.set_epoch(epoch)
        pixels.append(next(iter(loader)).inputs)
    assert torch.equal(pixels[0], pixels[1]) and torch.equal(pixels[0], pixels[2])


def test_augmented_views_differ_and_come_again(tmp_path):
    data = folder_data(tmp_path / "photos", batch_size=30, views=3)
    by_epoch = []
    for epoch in range(4):
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        batch = next(iter(loader))
        by_epoch.append(batch.inputs[batch.rows.argsort()])
    assert torch.equal(by_epoch[0], by_epoch[3])
    assert not torch.equal(by_epoch[0], by_epoch[1]) and not torch.equal(by_epoch[1], by_epoch[2])
    with pytest.raises(SettingError, match=r"unknown augmentation 'standart'.*standard"):
        folder_data(tmp_path / "photos", augment="standart")


def test_another_data_sets_state_is_refused(tmp_path):
    one, other = folder_data(tmp_path / "one"), folder_data(tmp_path / "other", {"cat": 5, "dog": 5})
    other.load_state_dict(other.state_dict())
    with pytest.raises(ArtifactError, match=r"other.*not those of the checkpoint.*start a new run"):
        other.load_state_dict(one.state_dict())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_vanishes_while_training_is_recorded(tmp_path, workers):
    data = folder_data(tmp_path / "photos", workers=workers)
    rows = data.manifest.rows(TRAIN)
    gone, broken, unseen = int(rows[0]), int(rows[7]), int(data.manifest.rows(VAL)[0])
    data.manifest.file(gone).unlink()
    data.manifest.file(broken).write_bytes(b"\xff\xd8\xff nothing more")
    data.manifest.file(unseen).unlink()
    module = TransferModule(tiny_backbone(), 3, recipe=Recipe(lr=0.01))
    bare_trainer(tmp_path, max_epochs=2).fit(module, data)
    assert set(data.failures) == {gone, broken, unseen} and all(data.failures.values())
    assert data.state_dict()["failures"] == data.failures
    assert all(torch.isfinite(value).all() for value in module.state_dict().values())


def test_training_outlives_the_loss_of_every_file(tmp_path):
    data = folder_data(tmp_path / "photos")
    for row in range(len(data.manifest)):
        data.manifest.file(row).unlink()
    module = TransferModule(tiny_backbone(), 3, recipe=Recipe(weight_decay=0.0))
    before = {key: value.clone() for key, value in module.state_dict().items()}
    bare_trainer(tmp_path, max_epochs=2).fit(module, data)
    assert len(data.failures) == len(data.manifest)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize("broken", ["first", "middle", "last"])
def test_a_batch_that_is_lost_whole_harms_nothing(tmp_path, broken):
    data = folder_data(tmp_path / "photos", batch_size=4)
    loader = data.train_dataloader()
    loader.sampler.set_epoch(0)
    batches = [batch.rows.tolist() for batch in loader]
    for row in batches[{"first": 0, "middle": 2, "last": -1}[broken]]:
        data.manifest.file(row).write_bytes(b"")
    module = TransferModule(tiny_backbone(), 3, recipe=Recipe(lr=0.05, batchnorm="moving"))
    trainer = bare_trainer(tmp_path, max_epochs=2)
    trainer.fit(module, data)
    assert trainer.global_step == 12
    assert all(torch.isfinite(value).all() for value in module.state_dict().values())
    assert module.network.head.linear.weight.any()


def test_sources_are_never_touched(tmp_path):
    data = folder_data(tmp_path / "photos")
    files = sorted((tmp_path / "photos").rglob("*"))

    def looks() -> list[tuple[Path, int, int, bytes]]:
        return [
            (p, os.stat(p).st_mtime_ns, os.stat(p).st_ctime_ns, p.read_bytes() if p.is_file() else b"") for p in files
        ]

    before = looks()
    bare_trainer(tmp_path / "elsewhere").fit(TransferModule(tiny_backbone(), 3), data)
    assert looks() == before and sorted((tmp_path / "photos").rglob("*")) == files


def test_last_batch_names_the_rows_of_the_step(tmp_path):
    import lightning.pytorch as pl

    data = folder_data(tmp_path / "photos")
    seen: list[int] = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            assert data.last_batch is not None
            assert torch.equal(torch.from_numpy(data.manifest.labels[data.last_batch.rows.numpy()]), batch[1])
            seen.extend(data.last_batch.rows.tolist())

    bare_trainer(tmp_path, max_epochs=1, callbacks=[Look()]).fit(TransferModule(tiny_backbone(), 3), data)
    assert sorted(seen) == data.manifest.rows(TRAIN).tolist()
