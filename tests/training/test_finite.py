"""A loss or gradient that is no number: not a weight moves, the files are named, the last checkpoint stays."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.training.tiny import SMALL, assert_equal, copied, folder_data, tiny_backbone
from toolkit.backbones.catalog import as_backbone
from toolkit.plan import Recipe
from toolkit.training import fit as fit_module
from toolkit.training.checkpoints import LAST
from toolkit.training.finite import BAD_BATCH, NonFiniteError, odd_images
from toolkit.training.fit import FitSettings, fit
from toolkit.training.mixing import trained_state
from toolkit.training.module import TransferModule

EPOCH = 6  # batches of 4 images, 21 of them


class Spoils(nn.Module):
    """Passes activations on, with no numbers in a step of the training (from 1), forward or backward."""

    def __init__(self, step: int, way: str) -> None:
        super().__init__()
        self.step, self.way, self.seen = step, way, 0

    def forward(self, inputs: Tensor) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):
            return inputs
        self.seen += 1
        if self.seen != self.step:
            return inputs
        if self.way == "forward":
            return inputs * torch.nan
        inputs = inputs * 1
        inputs.register_hook(lambda gradient: gradient * torch.inf)
        return inputs


class Chokes(nn.Module):
    """Gives no numbers for one image, known by the sum of its pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.sum = 0.0

    def forward(self, inputs: Tensor) -> Tensor:
        odd = (inputs.double().sum(dim=(1, 2, 3)) - self.sum).abs() < 1e-3
        return torch.where(odd.reshape(-1, 1, 1, 1), torch.nan, inputs)


def spoilt(step: int, way: str) -> TransferModule:
    torch.manual_seed(0)
    stages = [*tiny_backbone().stages]
    stages[-1] = nn.Sequential(stages[-1], Spoils(step, way))
    return TransferModule(as_backbone(stages, preprocessing=SMALL), 3, cut=1, recipe=Recipe(lr=0.02))


def run(module: TransferModule, folder: Path, data: Any = None, **settings: Any) -> int:
    data = data or folder_data(folder / "photos", workers=0)
    settings = {"epochs": 3, "precision": "32-true", **settings}
    history = folder / "history.csv"
    return fit(module, data, FitSettings(**settings), folder=folder, history=history, device=torch.device("cpu"))


def listed(folder: Path) -> list[dict[str, str]]:
    with open(folder / BAD_BATCH, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("way", "told"), [("forward", "the loss was nan"), ("backward", "the gradient was inf|nan")])
@pytest.mark.parametrize("step", [1, 3, EPOCH + 2])
def test_it_ends_before_the_step_and_names_the_batch(tmp_path: Path, way: str, told: str, step: int) -> None:
    before: list[Any] = []
    whole = spoilt(0, way)  # the same training, which nothing spoils
    with pytest.MonkeyPatch.context() as patched:
        trained = TransferModule.optimizer_step

        def noted(self: TransferModule, *arguments: Any) -> None:
            before.append(copied(self.network.state_dict()))
            trained(self, *arguments)

        patched.setattr(TransferModule, "optimizer_step", noted)
        (tmp_path / "whole").mkdir()
        run(whole, tmp_path / "whole", folder_data(tmp_path / "photos", workers=0))
    module, data = spoilt(step, way), folder_data(tmp_path / "photos", workers=0)
    with pytest.raises(NonFiniteError, match=told) as caught:
        run(module, tmp_path, data)
    assert_equal(copied(module.network.state_dict()), before[step - 1])
    text = str(caught.value)
    assert f"in step {step}, which was not taken" in text and "the rate is too high: take --lr 0.002, a tenth" in text
    assert "\n" not in text and not caught.value.by_image
    rows = data.rows_in_work().tolist()
    assert [one["path"] for one in listed(tmp_path)] == [data.manifest.paths[row] for row in rows]
    assert [one["label"] for one in listed(tmp_path)] == [data.manifest.paths[row].split("/")[0] for row in rows]
    assert all(data.manifest.paths[row] in text for row in rows)
    assert ("the checkpoint of step 6 is kept" in text) == (step > EPOCH) == (tmp_path / LAST).exists()
    assert ("there was no checkpoint yet" in text) == (step <= EPOCH)


def test_of_several_batches_that_make_a_step_all_are_named(tmp_path: Path) -> None:
    module, data = spoilt(5, "backward"), folder_data(tmp_path / "photos", workers=0)
    with pytest.raises(NonFiniteError, match=r"in step 2, which was not taken.*and 5 more, see bad_batch\.csv"):
        run(module, tmp_path, data, accumulate=3)
    assert len(listed(tmp_path)) == 12 - 3, "the last batch of the epoch has one image"


def test_a_single_image_is_told_from_a_rate(tmp_path: Path) -> None:
    data = folder_data(tmp_path / "photos", workers=0, augment="none")
    stages = [*tiny_backbone().stages]
    chokes = Chokes()
    stages[2] = nn.Sequential(chokes, stages[2])
    module = TransferModule(as_backbone(stages, preprocessing=SMALL), 3, cut=2, recipe=Recipe(lr=0.02))
    batch = next(iter(folder_data(tmp_path / "photos", workers=0, augment="none").train_dataloader()))
    with torch.no_grad():
        chokes.sum = float(module.network.before_tail(batch.inputs).at_cut[2].double().sum())  # type: ignore[union-attr]
    file = data.manifest.paths[int(batch.rows[2])]
    with pytest.raises(NonFiniteError, match=rf"in step 1, .*: {file} alone gives scores that are no num") as caught:
        run(module, tmp_path, data)
    assert caught.value.by_image and "--lr" not in str(caught.value)
    assert [one["detail"] for one in listed(tmp_path)] == ["", "", "no numbers", ""]


def test_images_are_looked_at_and_nothing_changes() -> None:
    module = TransferModule(tiny_backbone(), 3, cut=1)
    module.train()
    modes, state = [part.training for part in module.modules()], copied(module.state_dict())
    inputs = torch.randn(3, 3, 32, 32)
    assert odd_images(module, inputs).tolist() == [False] * 3
    inputs[1, 0, 0, 0] = torch.inf
    assert odd_images(module, inputs).tolist() == [False, True, False]
    nn.init.constant_(module.network.head.linear.bias, torch.nan)  # type: ignore[union-attr, arg-type]
    assert odd_images(module, torch.randn(3, 3, 32, 32)).tolist() == [False] * 3, "all are odd: it is not the images"
    assert modes == [part.training for part in module.modules()]
    assert {k for k, v in copied(module.state_dict()).items() if not torch.equal(v, state[k])} == {
        "network.head.linear.bias"
    }


def test_gradients_that_a_scaler_leaves_out_do_not_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """16-mixed runs on a GPU alone; what matters is that its Trainer says so. No scaler leaves the step out here, so
    that the weights are spoilt, and the next loss ends it."""
    make = fit_module.Trainer

    def half(**settings: Any) -> Any:
        trainer = make(**settings)
        monkeypatch.setattr(type(trainer), "precision", property(lambda self: "16-mixed"))
        return trainer

    with monkeypatch.context() as patched:
        patched.setattr(fit_module, "Trainer", half)
        with pytest.raises(NonFiniteError, match="the loss was nan in step 3"):
            run(spoilt(2, "backward"), tmp_path, epochs=1, clip=None)
        (tmp_path / "forward").mkdir()
        with pytest.raises(NonFiniteError, match="the loss was nan in step 2"):
            run(spoilt(2, "forward"), tmp_path / "forward", epochs=1)


def test_where_the_start_knows_something_it_is_the_same(tmp_path: Path) -> None:
    module = spoilt(2, "forward")
    with pytest.raises(NonFiniteError, match="in step 2"):
        run(module, tmp_path, start=trained_state(module.network))


def test_resumed_it_goes_on_from_the_checkpoint_that_was_kept(tmp_path: Path) -> None:
    photos = folder_data(tmp_path / "photos", workers=0).manifest.root
    (tmp_path / "whole").mkdir()
    whole = spoilt(0, "forward")
    run(whole, tmp_path / "whole", folder_data(Path(photos), workers=0))
    with pytest.raises(NonFiniteError):
        run(spoilt(EPOCH + 3, "forward"), tmp_path, folder_data(Path(photos), workers=0))
    mended = spoilt(0, "forward")
    run(mended, tmp_path, folder_data(Path(photos), workers=0))
    assert_equal(copied(mended.network.state_dict()), copied(whole.network.state_dict()))
