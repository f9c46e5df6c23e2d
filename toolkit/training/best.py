"""Early stopping on the validation loss, and the best weights back at the end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors.torch import load_file, save_file

from toolkit.storage import publishing

BEST = "best.safetensors"


class BestWeights(Callback):
    """Keeps the weights of the lowest validation loss, the starting ones included, and stops after `patience` epochs.

    `put_back` gives them to the module after the fit, and not a hook of the fit's end: there is none when a run is
    resumed after its last epoch.

    start_loss: validation loss of the starting weights, infinity where they are random.
    """

    def __init__(self, folder: Path, patience: int, start_loss: float) -> None:
        self.path = folder / BEST
        self.patience = patience
        self.best_loss = start_loss
        self.best_epoch = 0
        self._stop = False
        self._resumed = False

    def state_dict(self) -> dict[str, Any]:
        """Return the best loss, its epoch (0: before training), and whether it was long enough ago to stop."""
        return {"loss": self.best_loss, "epoch": self.best_epoch, "stop": self._stop}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`; later bests that a kill left on the disk are reached again and equal."""
        self.best_loss, self.best_epoch, self._stop = state_dict["loss"], state_dict["epoch"], state_dict["stop"]
        self._resumed = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the starting weights; end a resumed run that had come to its end."""
        if not self._resumed:
            self._save(pl_module)
        trainer.should_stop = self._stop

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep better weights; ask the Trainer to stop when none came for `patience` epochs."""
        loss = float(trainer.callback_metrics.get("val_loss", math.inf))
        epoch = trainer.current_epoch + 1
        if loss < self.best_loss:
            self.best_loss, self.best_epoch = loss, epoch
            self._save(pl_module)
        elif epoch - self.best_epoch >= self.patience:
            trainer.should_stop = self._stop = True

    def put_back(self, module: LightningModule) -> None:
        """Give the best weights to the module."""
        module.network.load_state_dict(load_file(self.path))  # type: ignore[union-attr]

    def _save(self, module: LightningModule) -> None:
        state = module.network.state_dict().items()  # type: ignore[union-attr]
        tensors = {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in state}
        with publishing(self.path) as temporary:
            save_file(tensors, temporary)
