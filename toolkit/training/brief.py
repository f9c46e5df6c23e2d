"""Trainings that are not gone on with: nothing is written, and a signal ends them at once."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from toolkit.errors import Interrupted
from toolkit.training.signals import StopRequest


class StopAtOnce(Callback):
    """Raises Interrupted after the step in which a signal came: there is no checkpoint to wait for."""

    def __init__(self, stop: StopRequest) -> None:
        self.stop = stop

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals back from the Trainer."""
        self.stop.listen()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop if somebody asked for it."""
        if self.stop.signal_number is not None:
            raise Interrupted(self.stop.signal_number, "stopped")
