"""TensorBoard: the course of a training as scalars, for the extra `track`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from toolkit.training.history import History

GROUPED = {"train": "train_", "val": "val_", "update": "update_"}  # charts of TensorBoard: columns of history.csv


class Track(Callback):
    """Writes every row of a History, the rate of each parameter group, and the loss of every step.

    Steps that a resumed run does again after its checkpoint are shown once: TensorBoard is told where it went on.

    folder: where the event files go; a training each has its own. history: stands before this in the callbacks.
    """

    def __init__(self, folder: Path, history: History) -> None:
        self.folder = folder
        self.history = history
        self._writer: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the event file, and write what training begins with."""
        from torch.utils.tensorboard.writer import SummaryWriter

        step = trainer.global_step
        self._writer = SummaryWriter(str(self.folder), purge_step=step + 1 if step else None)
        if not step:
            self._write(self.history.rows[-1:])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the loss of a batch, and the rates."""
        step = trainer.global_step
        size = float(outputs["size"])
        if size and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._add("step/loss", float(outputs["loss_sum"]) / size, step)
            for group in trainer.optimizers[0].param_groups:
                if group.get("kind", "weights") == "weights":  # its other tensors have the same rate
                    self._add(f"rate/{group.get('name', 'all').replace(' ', '_')}", float(group["lr"]), step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the row of this epoch."""
        self._write(self.history.rows[-1:])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the event file."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the event file."""
        self._close()

    def _write(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            for key, value in row.items():
                if isinstance(value, float) and key != "seconds" and not key.startswith("lr_"):
                    chart = next((c for c, prefix in GROUPED.items() if key.startswith(prefix)), "step")
                    self._add(f"{chart}/{key.removeprefix(GROUPED.get(chart, ''))}", value, row["step"])
        if self._writer is not None:
            self._writer.flush()

    def _add(self, name: str, value: float, step: int) -> None:
        if math.isfinite(value):
            self._writer.add_scalar(name, value, step)

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
