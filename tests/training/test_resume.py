"""Resumed equals uninterrupted: whatever step a run is stopped at, it ends in the same weights."""

from __future__ import annotations

import csv
import os
import pickle
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from tests.photos import photo
from tests.training.tiny import assert_equal, copied, folder_data, tiny_backbone
from toolkit.data.datamodule import ImageFolderData
from toolkit.errors import ArtifactError, Interrupted
from toolkit.plan import Recipe
from toolkit.training import fit as fit_module
from toolkit.training.best import BEST
from toolkit.training.checkpoints import LAST, WholeCheckpointIO
from toolkit.training.fit import FitSettings, fit
from toolkit.training.module import TransferModule

EPOCHS = 3
COUNTS = {"cat": 9, "dog": 8, "owl": 10}  # 21 train and 6 validate
BATCHES = 6  # of 4 images, the last one of a single image


@dataclass
class Outcome:
    """What a run leaves: weights, rows of history.csv without seconds, and the rows and pixels seen, batch by batch."""

    weights: dict[str, Tensor]
    history: list[dict[str, str]]
    seen: list[tuple[list[int], int]]
    steps: int
    parts: int


class SignalAfter(Callback):
    """Sends this process a signal during training batch `batch`, counted from 0 through all epochs."""

    def __init__(self, batch: int | None, hook: str = "on_train_batch_start", number: int = signal.SIGTERM) -> None:
        self.batch, self.hook, self.number = batch, hook, number

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._maybe("on_train_batch_start", trainer.current_epoch * BATCHES + batch_idx)

    def on_validation_start(self, trainer, pl_module):
        self._maybe("on_validation_start", trainer.current_epoch)

    def on_train_end(self, trainer, pl_module):
        self._maybe("on_train_end", 0)

    def _maybe(self, hook: str, count: int) -> None:
        if hook == self.hook and count == self.batch:
            os.kill(os.getpid(), self.number)


def train_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, seen: list, extra: Callback | None = None, **settings: Any
) -> tuple[TransferModule, int]:
    """Build everything anew, as a new process would, and fit in `folder`."""
    keys = {"workers": 0, "batch_size": 4, "views": EPOCHS, **settings.pop("data", {})}
    torch.manual_seed(1 if not (folder / LAST).exists() else 999)  # a resumed run must not depend on this
    data = folder_data(folder.parent / "photos", COUNTS, **keys)
    recipe = Recipe(**{"lr": 0.05, **settings.pop("recipe", {})})
    module = TransferModule(tiny_backbone(), 3, cut=1, recipe=recipe, **settings.pop("module", {}))
    start = settings.pop("start", None)
    transfer = ImageFolderData.on_before_batch_transfer

    def record(self, batch, dataloader_idx):
        if self.trainer.training:
            seen.append((batch.rows.tolist(), int(batch.inputs.long().sum())))
        return transfer(self, batch, dataloader_idx)

    make = fit_module.Trainer
    with monkeypatch.context() as patched:
        patched.setattr(ImageFolderData, "on_before_batch_transfer", record)
        if extra is not None:
            added = [extra]
            patched.setattr(
                fit_module, "Trainer", lambda *, callbacks, **keys: make(callbacks=added + callbacks, **keys)
            )
        steps = fit(
            module,
            data,
            FitSettings(**{"epochs": EPOCHS, "precision": "32-true", **settings}),
            folder=folder,
            history=folder / "history.csv",
            device=torch.device("cpu"),
            row=start,
        )
    return module, steps


def outcome(folder: Path, module: TransferModule, seen: list, steps: int, parts: int) -> Outcome:
    with open(folder / "history.csv", newline="") as file:
        rows = [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]
    return Outcome(copied(module.network.state_dict()), rows, seen, steps, parts)


def train(folder: Path, monkeypatch: pytest.MonkeyPatch, stops: list[SignalAfter] = [], **settings: Any) -> Outcome:  # noqa: B006
    """Train to the end, stopped by the given signals and resumed each time."""
    folder.mkdir()
    seen: list[tuple[list[int], int]] = []
    parts = 1
    for stop in stops:
        with pytest.raises(Interrupted) as caught:
            train_once(folder, monkeypatch, seen, stop, **_fresh(settings))
        assert caught.value.signal_number == stop.number and (folder / LAST).is_file()
        parts += 1
    module, steps = train_once(folder, monkeypatch, seen, **_fresh(settings))
    return outcome(folder, module, seen, steps, parts)


def _fresh(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: dict(value) if isinstance(value, dict) else value for key, value in settings.items()}


def assert_same(resumed: Outcome, undisturbed: Outcome) -> None:
    assert_equal(resumed.weights, undisturbed.weights)
    assert resumed.history == undisturbed.history
    assert resumed.seen == undisturbed.seen
    assert resumed.steps == undisturbed.steps


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[int, Outcome]:
    results = {}
    with pytest.MonkeyPatch.context() as monkeypatch:
        for accumulate in (1, 2):
            folder = tmp_path_factory.mktemp("undisturbed")
            results[accumulate] = train(folder / "run", monkeypatch, accumulate=accumulate)
    return results


def test_the_run_itself(undisturbed, tmp_path, monkeypatch):
    for accumulate, expected in undisturbed.items():
        assert len(expected.seen) == EPOCHS * BATCHES and expected.steps == EPOCHS * BATCHES // accumulate
        assert [row["epoch"] for row in expected.history] == ["1", "2", "3"]
        again = train(tmp_path / f"again{accumulate}", monkeypatch, accumulate=accumulate)
        assert_same(again, expected)
        losses = [row["train_loss"] for row in expected.history]
        assert len(set(losses)) == EPOCHS, "something is learnt"


def test_dropout_takes_part(tmp_path, monkeypatch, undisturbed):
    """The random state matters: without this the other tests would pass for a run that forgets it."""
    monkeypatch.setattr("toolkit.training.checkpoints.set_random_state", lambda state: None)
    forgetful = train(tmp_path / "run", monkeypatch, [SignalAfter(3)])
    different = [key for key, value in forgetful.weights.items() if not torch.equal(value, undisturbed[1].weights[key])]
    assert "head.linear.weight" in different


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("stop", [0, 1, 3, 4, 5, 6, 9, 11, 12, 16, 17])
def test_stopped_once_anywhere(tmp_path, monkeypatch, undisturbed, stop, accumulate, workers):
    if workers and stop not in (3, 11, 17):  # two processes a part are slow to start
        workers = 0
    resumed = train(
        tmp_path / "run", monkeypatch, [SignalAfter(stop)], accumulate=accumulate, data={"workers": workers}
    )
    assert_same(resumed, undisturbed[accumulate])


def test_stopped_many_times(tmp_path, monkeypatch, undisturbed):
    stops = [
        SignalAfter(batch, number=number) for batch, number in ((0, 2), (2, 15), (5, 2), (7, 15), (8, 2), (17, 15))
    ]
    resumed = train(tmp_path / "run", monkeypatch, stops)
    assert resumed.parts == 7
    assert_same(resumed, undisturbed[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("epoch", [0, 2])
def test_stopped_while_it_validates(tmp_path, monkeypatch, undisturbed, epoch, number):
    resumed = train(tmp_path / "run", monkeypatch, [SignalAfter(epoch, "on_validation_start", number)])
    assert_same(resumed, undisturbed[1])


def test_a_signal_after_the_last_save_is_not_lost(tmp_path, monkeypatch, undisturbed):
    resumed = train(tmp_path / "run", monkeypatch, [SignalAfter(0, "on_train_end")])
    assert_same(resumed, undisturbed[1])


def test_a_second_sigint_ends_at_once_with_its_own_code(tmp_path, monkeypatch):
    class Twice(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    (tmp_path / "run").mkdir()
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted) as caught:
        train_once(tmp_path / "run", monkeypatch, [], Twice())
    assert caught.value.signal_number == signal.SIGINT and not (tmp_path / "run" / LAST).exists()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_save_between_steps_changes_nothing(tmp_path, monkeypatch, undisturbed):
    monkeypatch.setattr("toolkit.training.checkpoints.SECONDS_BETWEEN_SAVES", 0.0)
    for accumulate in (1, 2):
        saving = train(tmp_path / f"run{accumulate}", monkeypatch, accumulate=accumulate)
        assert_same(saving, undisturbed[accumulate])


@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "bf16-mixed"},
        {"recipe": {"batchnorm": "moving", "optimizer": "sgd", "label_smoothing": 0.1}},
        {"recipe": {"ema": 0.8, "mixup": 0.4, "unfreeze": 1}},
        {"recipe": {"ema": 0.9}, "accumulate": 2},
        {"recipe": {"decay_towards": "start", "weight_decay": 1.0, "cutmix": 1.0}},
        {"data": {"batch_size": 7, "views": 1}},
        {"clip": None, "module": {"class_weights": [1.0, 2.0, 0.5]}},
    ],
    ids=[
        "bf16",
        "batchnorm and sgd",
        "average and mixup",
        "average of two",
        "to the start and cutmix",
        "other batches",
        "class weights",
    ],
)
def test_other_settings_resume_as_well(tmp_path, monkeypatch, settings):
    expected = train(tmp_path / "whole", monkeypatch, **settings)
    for stop in (1, 8):
        resumed = train(tmp_path / f"stopped{stop}", monkeypatch, [SignalAfter(stop)], **settings)
        assert_same(resumed, expected)


@pytest.mark.parametrize("stop", [4, 8, 11, 13])
def test_patience_and_best_weights_resume(tmp_path, monkeypatch, stop):
    """The starting head is good and training at a wild rate spoils it: the run ends early, the start comes back."""
    settings = {"patience": 2, "start": {"val_loss": 1e-6, "val_accuracy": 1.0}}
    expected = train(tmp_path / "whole", monkeypatch, **settings)
    assert [row["epoch"] for row in expected.history] == ["0", "1", "2"]
    torch.manual_seed(1)
    assert_equal(expected.weights, copied(TransferModule(tiny_backbone(), 3, cut=1).network.state_dict()))
    last = stop == 13  # the signal comes after the epoch that ended the run
    resumed = train(
        tmp_path / "run", monkeypatch, [SignalAfter(0, "on_train_end") if last else SignalAfter(stop)], **settings
    )
    assert_same(resumed, expected)


def test_best_weights_come_back_in_a_run_that_ends_by_its_epochs(tmp_path, monkeypatch):
    settings = {"patience": 3, "recipe": {"optimizer": "sgd"}, "start": {"val_loss": 1e-6, "val_accuracy": 1.0}}
    expected = train(tmp_path / "whole", monkeypatch, epochs=2, **settings)
    for name, stop in (("last step", SignalAfter(11)), ("end", SignalAfter(0, "on_train_end"))):
        resumed = train(tmp_path / name, monkeypatch, [stop], epochs=2, **settings)
        assert_same(resumed, expected)
    assert_equal(expected.weights, copied(TransferModule(tiny_backbone(), 3, cut=1).network.state_dict()))


def test_best_is_the_lowest_validation_loss_and_not_the_last(tmp_path, monkeypatch):
    losses = iter([0.9, 0.5, 0.7, 0.6])
    kept: list[dict[str, Tensor]] = []

    class Pretend(Callback):
        """Stands before BestWeights and says what the validation gave."""

        def on_train_epoch_end(self, trainer, pl_module):
            trainer.callback_metrics["val_loss"] = torch.tensor(next(losses))
            kept.append(copied(pl_module.network.state_dict()))

    (tmp_path / "run").mkdir()
    module, _ = train_once(tmp_path / "run", monkeypatch, [], Pretend(), patience=2, epochs=9)
    assert len(kept) == 4, "two epochs without a lower loss after the second one"
    assert_equal(copied(module.network.state_dict()), kept[1])
    assert any(not torch.equal(kept[1][key], kept[3][key]) for key in kept[1])
    assert (tmp_path / "run" / BEST).is_file()


def stopped(folder: Path, monkeypatch: pytest.MonkeyPatch, batch: int = 3) -> Path:
    folder.mkdir()
    with pytest.raises(Interrupted):
        train_once(folder, monkeypatch, [], SignalAfter(batch))
    return folder


def test_changed_images_are_refused(tmp_path, monkeypatch):
    run = stopped(tmp_path / "run", monkeypatch)
    added = tmp_path / "photos" / "cat" / "zzz.jpg"
    photo(0, 99).save(added)
    with pytest.raises(ArtifactError, match="images are not those of the checkpoint"):
        train_once(run, monkeypatch, [])
    added.unlink()
    train_once(run, monkeypatch, [])


def test_a_changed_class_is_refused(tmp_path, monkeypatch):
    run = stopped(tmp_path / "run", monkeypatch)
    data = folder_data(tmp_path / "photos")
    module = TransferModule(tiny_backbone(), 4, cut=1)
    settings = FitSettings(epochs=EPOCHS, precision="32-true")
    with pytest.raises(ArtifactError, match=r"checkpoint.*another network.*head\.linear"):
        fit(module, data, settings, folder=run, history=run / "history.csv", device=torch.device("cpu"))


@pytest.mark.parametrize("damage", ["cut short", "no zip", "empty", "a flipped byte"])
def test_a_damaged_checkpoint_is_refused(tmp_path, monkeypatch, damage):
    run = stopped(tmp_path / "run", monkeypatch)
    content = (run / LAST).read_bytes()
    middle = len(content) // 2
    harm = {
        "cut short": content[:middle],
        "no zip": b"nothing of the kind" * 100,
        "empty": b"",
        "a flipped byte": content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :],
    }
    (run / LAST).write_bytes(harm[damage])
    if damage == "a flipped byte" and _loads(run / LAST):
        return  # zip files of torch carry checksums that it does not read
    with pytest.raises(ArtifactError, match=r"last\.ckpt: not a sound checkpoint.*delete it to begin again"):
        train_once(run, monkeypatch, [])


def _loads(path: Path) -> bool:
    try:
        torch.load(path, weights_only=True)
    except Exception:
        return False
    return True


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_checkpoint_cannot_run_code(tmp_path, monkeypatch):
    run = stopped(tmp_path / "run", monkeypatch)
    proof = tmp_path / "code ran"
    content = torch.load(run / LAST, weights_only=True)
    torch.save({**content, "more": Payload(proof)}, run / LAST)
    with pytest.raises(ArtifactError, match="not a sound checkpoint"):
        train_once(run, monkeypatch, [])
    (run / LAST).write_bytes(pickle.dumps(Payload(proof)))
    with pytest.raises(ArtifactError, match="not a sound checkpoint"):
        train_once(run, monkeypatch, [])
    assert not proof.exists()
    torch.load(_saved(tmp_path / "own.pt", Payload(proof)), weights_only=False)
    assert proof.exists(), "the payload would have worked"


def _saved(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


def test_a_checkpoint_is_published_whole_and_loads_as_plain_data(tmp_path, monkeypatch):
    run = stopped(tmp_path / "run", monkeypatch)
    checkpoint = torch.load(run / LAST, weights_only=True)
    assert checkpoint["global_step"] == 4
    assert not [path for path in run.iterdir() if path.name not in (LAST, "history.csv")]

    def fails(checkpoint: Any, path: Path) -> None:
        path.write_bytes(b"the first half")
        raise OSError(28, "No space left on device")

    before = (run / LAST).read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", fails)
        with pytest.raises(OSError, match="No space left"):
            WholeCheckpointIO().save_checkpoint({}, run / LAST)
    assert (run / LAST).read_bytes() == before
    with pytest.raises(ArtifactError, match="there is no such checkpoint"):
        WholeCheckpointIO().load_checkpoint(tmp_path / "none.ckpt")


def test_files_that_failed_are_still_known_after_a_resume(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    data = folder_data(tmp_path / "photos", COUNTS)
    first = int(data.manifest.rows(0)[0])

    class Breaks(SignalAfter):
        def on_train_start(self, trainer, pl_module):
            data.manifest.file(first).write_bytes(b"broken")

    with pytest.raises(Interrupted):
        fit_one(folder, data, monkeypatch, Breaks(5))
    assert set(data.failures) == {first}
    photo(0, 0).save(data.manifest.file(first))  # it is readable again, yet one epoch went without it
    again = folder_data(tmp_path / "photos", COUNTS)
    fit_one(folder, again, monkeypatch, None)
    assert set(again.failures) == {first}


def fit_one(folder: Path, data: ImageFolderData, monkeypatch: pytest.MonkeyPatch, extra: Callback | None) -> None:
    make = fit_module.Trainer
    with monkeypatch.context() as patched:
        if extra is not None:
            patched.setattr(
                fit_module, "Trainer", lambda *, callbacks, **keys: make(callbacks=[extra, *callbacks], **keys)
            )
        fit(
            TransferModule(tiny_backbone(), 3, cut=1),
            data,
            FitSettings(epochs=2, precision="32-true"),
            folder=folder,
            history=folder / "history.csv",
            device=torch.device("cpu"),
        )


def test_data_used_again_after_a_resume_skip_nothing(tmp_path, monkeypatch):
    """The position is spent by the epoch that it belongs to, and not applied to that epoch of a later fit."""
    run = stopped(tmp_path / "run", monkeypatch, batch=3)
    data = folder_data(tmp_path / "photos", COUNTS, views=EPOCHS)
    data.load_state_dict(torch.load(run / LAST, weights_only=True)["ImageFolderData"])
    loader = data.train_dataloader()
    assert sum(len(batch.rows) for batch in loader) == 21 - 4 * 4
    assert sum(len(batch.rows) for batch in loader) == 21
    assert sum(len(batch.rows) for batch in data.train_dataloader()) == 21
