"""The parts under a Trainer of the user's own, in the ways that Lightning's users use one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from tests.photos import make_photos
from tests.training.tiny import SMALL, assert_equal, bare_trainer, changed, copied, folder_data, tiny_backbone
from toolkit import hardware
from toolkit.data.datamodule import ImageFolderData
from toolkit.data.manifest import TRAIN, VAL
from toolkit.errors import ArtifactError, SettingError
from toolkit.plan import Recipe
from toolkit.training.module import TransferModule


def module() -> TransferModule:
    return TransferModule(tiny_backbone(), 3, cut=2, recipe=Recipe(lr=0.05))


def test_loaders_may_be_given_without_their_data_module(tmp_path: Path) -> None:
    data = folder_data(tmp_path / "photos")
    data.setup("fit")
    trainer = bare_trainer(tmp_path, max_epochs=1)
    trainer.fit(module(), data.train_dataloader(), data.val_dataloader())
    assert trainer.callback_metrics["val_loss"].isfinite()


def test_a_test_folder_without_labels_is_gone_through_and_not_scored(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for split in ("train", "val"):
        make_photos(photos / split, {"cat": 5, "dog": 5, "owl": 5})
    make_photos(photos, {"test": 6})
    data = ImageFolderData(photos, SMALL, batch_size=4)
    (tested,) = bare_trainer(tmp_path).test(module(), data, verbose=False)
    assert tested == {}


def test_a_checkpoint_may_be_judged_on_other_images_but_not_gone_on_with(tmp_path: Path) -> None:
    data, other = folder_data(tmp_path / "one"), folder_data(tmp_path / "other", {"cat": 7, "dog": 6, "owl": 5})
    trainer = bare_trainer(tmp_path, max_epochs=1)
    trainer.fit(module(), data)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    judge = bare_trainer(tmp_path)
    (found,) = judge.validate(module(), other, ckpt_path=tmp_path / "end.ckpt", verbose=False, weights_only=True)
    assert found["val_loss"] > 0
    with pytest.raises(ArtifactError, match="not those of the checkpoint"):
        bare_trainer(tmp_path).fit(module(), other, ckpt_path=tmp_path / "end.ckpt", weights_only=True)


def test_a_checkpoint_that_was_judged_leaves_the_next_fit_all_its_batches(tmp_path: Path) -> None:
    data = folder_data(tmp_path / "photos")
    trainer = bare_trainer(tmp_path, max_epochs=1)
    trainer.fit(module(), data)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    bare_trainer(tmp_path).validate(module(), data, ckpt_path=tmp_path / "end.ckpt", verbose=False, weights_only=True)
    again = bare_trainer(tmp_path, max_epochs=2)
    again.fit(module(), data)
    assert again.global_step == 2 * trainer.global_step


class Endless(IterableDataset[tuple[Tensor, Tensor]]):
    """Six images whose number nobody is told."""

    def __iter__(self):
        for number in range(6):
            yield torch.full((3, 32, 32), 40 * number, dtype=torch.uint8), torch.tensor(number % 3)


class Rates(Callback):
    """Notes the head's rate of every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.seen.append(max(group["lr"] for group in trainer.optimizers[0].param_groups))


@pytest.mark.parametrize("settings", [{"max_epochs": 3}, {"max_epochs": -1, "max_time": {"seconds": 1}}], ids=str)
def test_rates_stay_where_nobody_knows_how_many_steps_there_will_be(tmp_path: Path, settings) -> None:
    rates = Rates()
    trainer = bare_trainer(tmp_path, callbacks=[rates], **settings)
    data = folder_data(tmp_path / "photos")
    data.setup("fit")
    loader = data.train_dataloader() if "max_time" in settings else DataLoader(Endless(), batch_size=2)
    trainer.fit(module(), loader)
    assert len(rates.seen) >= 9 and set(rates.seen) == {0.05}


def test_stages_begin_by_epochs_though_the_steps_are_cut_short(tmp_path: Path) -> None:
    began: dict[int, int] = {}

    class Begins(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            for group in trainer.optimizers[0].param_groups:
                if group["lr"] > 0:
                    began.setdefault(group["depth"], trainer.global_step)

    data = folder_data(tmp_path / "photos")
    recipe = Recipe(lr=0.05, unfreeze=1, warmup=0.0)
    learner = TransferModule(tiny_backbone(), 3, cut=2, recipe=recipe)
    trainer = bare_trainer(tmp_path, max_epochs=10, max_steps=16, callbacks=[Begins()])
    trainer.fit(learner, data)
    steps = trainer.num_training_batches
    assert began == {0: 0, 1: steps, 2: 2 * steps}


class Rows(Callback):
    """Notes the rows of every batch, by epoch."""

    def __init__(self) -> None:
        self.trained: dict[int, list[list[int]]] = {}
        self.validated: dict[int, list[list[int]]] = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self._note(self.trained, trainer)

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self._note(self.validated, trainer)

    def _note(self, seen, trainer) -> None:
        seen.setdefault(trainer.current_epoch, []).append(trainer.datamodule.last_batch.rows.tolist())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_few_batches_are_overfitted_the_same_in_every_epoch_and_of_more_than_one_class(
    tmp_path: Path, workers: int
) -> None:
    data = folder_data(tmp_path / "photos", augment="none", workers=workers)
    seen, rows = Rows(), data.manifest.rows
    trainer = bare_trainer(tmp_path, max_epochs=15, overfit_batches=2, callbacks=[seen])
    trainer.fit(TransferModule(tiny_backbone(dropout=0.0), 3, cut=2, recipe=Recipe(lr=0.05)), data)
    assert trainer.global_step == 30 and len(seen.trained) == 15
    assert all(batches == seen.trained[0] for batches in seen.trained.values())
    trained = [row for batch in seen.trained[0] for row in batch]
    assert len(trained) == 8 and set(trained) < set(rows(TRAIN).tolist())
    assert len(set(data.manifest.labels[trained].tolist())) == 3
    assert all(batches == [rows(VAL)[:4].tolist(), rows(VAL)[4:].tolist()] for batches in seen.validated.values())
    assert trainer.callback_metrics["train_accuracy"] == 1.0


def test_a_share_of_the_batches_is_overfitted_and_the_views_go_on(tmp_path: Path) -> None:
    data, seen, pixels = folder_data(tmp_path / "photos", views=3), Rows(), []

    class Pixels(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            pixels.append(batch[0])

    bare_trainer(tmp_path, overfit_batches=0.5, callbacks=[seen, Pixels()]).fit(module(), data)
    assert [len(batches) for batches in seen.trained.values()] == [3, 3] and seen.trained[0] == seen.trained[1]
    assert not torch.equal(pixels[0], pixels[3])


def test_the_order_is_shuffled_again_by_the_next_trainer(tmp_path: Path) -> None:
    data, seen = folder_data(tmp_path / "photos"), Rows()
    bare_trainer(tmp_path, overfit_batches=1).fit(module(), data)
    bare_trainer(tmp_path, callbacks=[seen]).fit(module(), data)
    assert len(seen.trained[0]) == len(seen.trained[1]) > 1 and seen.trained[0] != seen.trained[1]


def test_loaders_without_their_data_module_cannot_be_overfitted(tmp_path: Path) -> None:
    data = folder_data(tmp_path / "photos")
    trainer = bare_trainer(tmp_path, overfit_batches=2)
    with pytest.raises(SettingError, match=r"give the Trainer the data themselves.*trainer\.fit\(module, data\)"):
        trainer.fit(module(), data.train_dataloader(), data.val_dataloader())


@pytest.mark.parametrize(
    ("precision", "instead"), [("64-true", "32-true"), ("bf16-true", "bf16-mixed"), ("16-true", "16-mixed")]
)
def test_a_precision_that_changes_frozen_weights_is_refused_before_it_does(
    tmp_path: Path, precision, instead: str
) -> None:
    learner, data = module(), folder_data(tmp_path / "photos")
    before = copied(learner.state_dict())
    for run in ("fit", "validate"):
        with pytest.raises(SettingError, match=f"precision: '{precision}' would.*give the Trainer '{instead}'$"):
            getattr(bare_trainer(tmp_path, precision=precision), run)(learner, data)
    assert_equal(copied(learner.state_dict()), before)
    assert {value.dtype for value in before.values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize("precision", [32, "32-true", "bf16-mixed"])
def test_weights_stay_what_they_are_in_any_precision_that_is_taken(tmp_path: Path, precision) -> None:
    learner = module()
    before = copied(learner.network.state_dict())
    bare_trainer(tmp_path, precision=precision).fit(learner, folder_data(tmp_path / "photos"))
    after = copied(learner.network.state_dict())
    assert {name: value.dtype for name, value in after.items()} == {name: v.dtype for name, v in before.items()}
    assert not any(name.startswith(("stages.0", "stages.1")) for name in changed(after, before))


def test_a_process_that_was_forked_stays_on_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        bare_trainer(tmp_path, max_epochs=1).fit(module(), folder_data(tmp_path / "photos"))
        assert torch.get_num_threads() == 2
        monkeypatch.setattr(hardware, "_IMPORTED_IN", os.getppid())
        bare_trainer(tmp_path, max_epochs=1).fit(module(), folder_data(tmp_path / "photos"))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


FORKED = """
    import sys
    from pathlib import Path

    import torch

    from tests.training.test_own_trainer import module
    from tests.training.tiny import bare_trainer, folder_data

    folder = Path(sys.argv[1])
    torch.set_num_threads(2)
    torch.randn(10**7).exp_()  # by two threads, which processes that are forked do not have
    learner = module()
    bare_trainer(folder, strategy="ddp_fork", devices=2).fit(learner, folder_data(folder / "photos"))
    print("learnt", bool(learner.network.head.linear.weight.any()), "threads", torch.get_num_threads())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="it forks")
def test_processes_that_are_forked_as_in_a_notebook_do_not_wait_for_threads_of_their_parent(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(FORKED))
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=90)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0 and "learnt True threads 2" in said, said[-2000:]
