"""A step made of several batches, looked at, saved, gone on with and ended before it is taken."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from tests.training.tiny import assert_equal, bare_trainer, changed, copied, folder_data, tiny_backbone
from toolkit.plan import Recipe
from toolkit.training.average import WeightAverage
from toolkit.training.module import TransferModule

RECIPES = {"plain": {}, "average": {"ema": 0.8}, "moving": {"batchnorm": "moving", "ema": 0.8, "optimizer": "sgd"}}


def module(**recipe: Any) -> TransferModule:
    """Without dropout, whose random state a Trainer's own checkpoints do not have."""
    return TransferModule(tiny_backbone(dropout=0.0), 3, cut=2, recipe=Recipe(lr=0.05, **recipe))


def fitted(folder: Path, learner: TransferModule, *callbacks: Callback, **settings: Any) -> TransferModule:
    resumed = settings.pop("resumed", None)
    trainer = bare_trainer(folder, callbacks=list(callbacks), **settings)
    trainer.fit(learner, folder_data(folder / "photos"), ckpt_path=resumed, weights_only=True)
    return learner


class After(Callback):
    """Does something after training batch `batch`, counted from 1 through all epochs."""

    def __init__(self, batch: int, action: Any) -> None:
        self.batch, self.action, self.seen = batch, action, 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.seen += 1
        if self.seen == self.batch:
            self.action(trainer)


class Noted(Callback):
    """Keeps the weights at each optimizer step's end and each validation's beginning."""

    def __init__(self) -> None:
        self.stepped: list[dict[str, Tensor]] = []
        self.validated: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.stepped.append(copied(pl_module.network.state_dict()))

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0) -> None:
        self.validated.append(copied(pl_module.network.state_dict()))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("batch", [1, 3, 8, 11])  # 6 in an epoch, 4 of them a step and then 2
def test_a_checkpoint_in_mid_step_ends_in_the_weights_of_an_undisturbed_run(
    tmp_path: Path, recipe: str, batch: int
) -> None:
    def save(trainer: Any) -> None:
        trainer.save_checkpoint(tmp_path / "mid.ckpt")

    settings = {"accumulate_grad_batches": 4}
    whole = fitted(tmp_path, module(**RECIPES[recipe]), After(batch, save), **settings)
    resumed = fitted(tmp_path, module(**RECIPES[recipe]), resumed=tmp_path / "mid.ckpt", **settings)
    assert_equal(copied(resumed.network.state_dict()), copied(whole.network.state_dict()))


def test_a_checkpoint_between_steps_has_no_gradients(tmp_path: Path) -> None:
    fitted(tmp_path, module(), After(4, lambda trainer: trainer.save_checkpoint(tmp_path / "between.ckpt")))
    checkpoint = torch.load(tmp_path / "between.ckpt", weights_only=True)
    assert checkpoint["learning"]["in_work"] is None


def test_validation_and_checkpoints_in_mid_step_see_the_average(tmp_path: Path) -> None:
    noted = Noted()

    def save(trainer: Any) -> None:
        trainer.save_checkpoint(tmp_path / "mid.ckpt")

    settings = {"accumulate_grad_batches": 2, "val_check_interval": 3, "limit_val_batches": 1, "max_epochs": 1}
    fitted(tmp_path, module(ema=0.8), noted, After(3, save), **settings)
    assert_equal(noted.validated[0], noted.stepped[0])
    saved = torch.load(tmp_path / "mid.ckpt", weights_only=True)["state_dict"]
    assert_equal({name: saved[f"network.{name}"] for name in noted.stepped[0]}, noted.stepped[0])


def test_the_average_stays_where_training_ends_in_mid_step(tmp_path: Path) -> None:
    noted = Noted()

    def stop(trainer: Any) -> None:
        trainer.should_stop = True

    learner = fitted(tmp_path, module(ema=0.8), noted, After(3, stop), accumulate_grad_batches=2, limit_val_batches=0)
    assert_equal(copied(learner.network.state_dict()), noted.stepped[0])


def test_a_checkpoint_of_an_error_in_mid_batch_has_the_average_and_no_half_gradients(tmp_path: Path) -> None:
    noted, path = Noted(), tmp_path / "error.ckpt"

    class Fails(Callback):
        def on_before_backward(self, trainer, pl_module, loss) -> None:
            if trainer.global_step == 2:
                raise KeyError("some callback's own")

        def on_exception(self, trainer, pl_module, exception) -> None:
            trainer.save_checkpoint(path)

    with pytest.raises(KeyError):
        fitted(tmp_path, module(ema=0.8), noted, Fails())
    checkpoint = torch.load(path, weights_only=True)
    saved = {name: checkpoint["state_dict"][f"network.{name}"] for name in noted.stepped[1]}
    assert_equal(saved, noted.stepped[1])
    assert checkpoint["learning"]["in_work"] is None
    latest = checkpoint["learning"]["average"]["latest"]
    learning = [name for name, parameter in module().network.named_parameters() if parameter.requires_grad]
    assert changed(dict(zip(learning, latest, strict=True)), saved)


def test_latest_and_average_are_told_apart_wherever_they_are() -> None:
    layer = nn.Linear(2, 1, bias=False)
    average = WeightAverage(layer.parameters(), 0.5)
    average.learn()
    with torch.no_grad():
        layer.weight.add_(1.0)
    before = copied({"latest": average.state_dict()["latest"][0]})
    state = layer.state_dict()
    average.put_into(state, layer)
    average.show()
    average.show()
    assert_equal(copied({"latest": average.state_dict()["latest"][0]}), before)
    assert torch.equal(layer.weight, state["weight"])
    average.learn()
    assert torch.equal(layer.weight, before["latest"]) and not torch.equal(layer.weight, state["weight"])


DDP = """
    import sys
    from pathlib import Path

    import torch

    from tests.training.test_mid_step import After, RECIPES, fitted, module
    from tests.training.tiny import copied

    folder, resumed = Path(sys.argv[1]), sys.argv[2] == "resumed"
    path = folder / "mid.ckpt"
    save = After(0 if resumed else 4, lambda trainer: trainer.save_checkpoint(path))
    learner = module(ema=0.8, optimizer="sgd")
    settings = {"strategy": "ddp", "devices": 2, "accumulate_grad_batches": 2}
    fitted(folder, learner, save, resumed=path if resumed else None, **settings)
    torch.save(copied(learner.network.state_dict()), folder / f"{sys.argv[2]}{learner.global_rank}.pt")
"""


@pytest.mark.slow
def test_each_of_two_processes_goes_on_with_the_mean_of_their_gradients(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(DDP))
    folder_data(tmp_path / "photos")
    root = str(Path(__file__).parents[2])
    for part in ("whole", "resumed"):
        done = subprocess.run(
            [sys.executable, str(script), str(tmp_path), part],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr[-2000:]
    whole, zero, one = (
        torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("whole0", "resumed0", "resumed1")
    )
    assert_equal(zero, one)
    for name in whole:
        assert torch.allclose(zero[name], whole[name], rtol=0, atol=1e-6), name
