"""history.csv: a row an epoch, on the disk as soon as the epoch ends."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from toolkit.progress import Counter, counting, say
from toolkit.storage import publish_text
from toolkit.training.diagnosis import in_short
from toolkit.training.updates import GradientNorms, UpdateRatios

COLUMNS = ("epoch", "step", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr_head", "seconds")
SUMS = ("loss_sum", "hits", "size")


class History(Callback):
    """Collects a row an epoch, publishes the file each time, prints the row, and survives a resume.

    Row 0 is the head that fine-tuning starts from, where there is one. A module that has `updates` (`UpdateRatios`)
    adds a column for each part of the network: update_head, update_stage_6 …; one that has `gradients`
    (`GradientNorms`) the column gradient_norm.
    """

    def __init__(self, path: Path, start: dict[str, float] | None = None) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = [{"epoch": 0, "step": 0, **start}] if start else []
        self.sums = dict.fromkeys(SUMS, 0.0)
        self._began_at = time.monotonic()
        self._seconds_before = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the rows so far and the sums of the epoch in progress."""
        return {"rows": self.rows, "sums": self.sums, "seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the rows of the checkpoint; what was written after it is written again."""
        self.rows = list(state_dict["rows"])
        self.sums = dict(state_dict["sums"])
        self._seconds_before = state_dict["seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock and show where training begins."""
        self._began_at = time.monotonic()
        self._publish()
        for row in self.rows[-1:]:
            say(_line(row))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add a batch to the sums; they live here because Lightning forgets its own on a resume in mid-epoch."""
        for key in SUMS:
            self.sums[key] += float(outputs[key])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add this epoch's row."""
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
        size = max(self.sums["size"], 1.0)
        row: dict[str, Any] = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step}
        row |= {"train_loss": self.sums["loss_sum"] / size, "train_accuracy": self.sums["hits"] / size}
        row |= {key: metrics[key] for key in ("val_loss", "val_accuracy") if key in metrics}
        self.sums = dict.fromkeys(SUMS, 0.0)
        row |= {"lr_head": float(trainer.optimizers[0].param_groups[-1]["lr"]), "seconds": round(self._seconds(), 2)}
        for watch in (getattr(pl_module, name, None) for name in ("updates", "gradients")):
            if isinstance(watch, UpdateRatios | GradientNorms):
                row |= watch.take()
        self.rows.append(row)
        self._publish()
        say(_line(row))

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._began_at

    def _publish(self) -> None:
        text = io.StringIO()
        columns = list(dict.fromkeys([*COLUMNS, *(key for row in self.rows for key in row)]))
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _cell(row.get(key)) for key in columns} for row in self.rows)
        publish_text(self.path, text.getvalue())


def _cell(value: Any) -> Any:
    """Return a CSV cell: six digits for floats, nothing for what is missing or not finite."""
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else ""
    return "" if value is None else value


def _line(row: dict[str, Any]) -> str:
    shown = [f"{key.replace('_', ' ')} {row[key]:.4f}" for key in COLUMNS[2:6] if row.get(key) is not None]
    return f"epoch {row['epoch']}: " + ", ".join([*shown, *filter(None, [in_short(row)])])


class StepProgress(Callback):
    """Shows the steps of the whole fit as they are done."""

    def __init__(self) -> None:
        self._counting = contextlib.ExitStack()
        self._counter: Counter | None = None
        self._seen = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count; a resumed run counts what is left."""
        self._seen = trainer.global_step
        # a module that takes several steps a batch says how many there are
        total = int(getattr(pl_module, "total_steps", trainer.estimated_stepping_batches))
        left = total - self._seen
        self._counter = self._counting.enter_context(counting("training", left, "steps"))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count an optimizer step, if the batch ended in one."""
        if self._counter is not None:
            self._counter.advance(trainer.global_step - self._seen)
            self._seen = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the final count."""
        self._counting.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        self._counting.close()
