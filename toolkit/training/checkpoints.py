"""Checkpoints that are whole or absent, hold everything a run needs to go on, and cannot run code."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from toolkit.errors import ArtifactError, Interrupted
from toolkit.storage import publishing
from toolkit.training.signals import StopRequest

LAST = "last.ckpt"
SECONDS_BETWEEN_SAVES = 60.0  # changes how much work a kill can cost, never a result


class WholeCheckpointIO(TorchCheckpointIO):
    """Publishes a checkpoint through `storage`, and loads plain tensors and values only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`, whole or not at all."""
        with publishing(path) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        """Read a checkpoint; ArtifactError if it is damaged or holds anything but plain data."""
        try:
            return dict(torch.load(path, map_location="cpu", weights_only=True))
        except FileNotFoundError:
            raise ArtifactError(f"{path}: there is no such checkpoint") from None
        except Exception as error:
            raise ArtifactError(
                f"{path}: not a sound checkpoint ({type(error).__name__}); delete it to begin again"
            ) from error


def random_state() -> dict[str, Any]:
    """Return the state of the global random generators of torch, CUDA, NumPy and Python as plain values."""
    name, keys, position, has_gauss, gauss = cast(tuple[Any, ...], np.random.get_state(legacy=True))
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (name, keys.tolist(), int(position), int(has_gauss), float(gauss)),
        "python": random.getstate(),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore what `random_state` returned."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


def check_same_network(ours: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    """Raise ArtifactError if the weights of a checkpoint are not those of such a network as ours."""
    for key in {**ours, **stored}:
        here, there = (tuple(state[key].shape) if key in state else None for state in (ours, stored))
        if here != there:
            raise ArtifactError(
                f"the checkpoint is of another network ({key}: {there} in the checkpoint, {here} here); did classes or "
                "settings change since? Start a new run"
            )


class Checkpoints(Callback):
    """Saves `last.ckpt` after every epoch, every minute between, and when a signal asks the run to stop.

    A checkpoint in mid-epoch is taken only where an optimizer step has just ended: it would have to hold the gradients
    that are still being accumulated. The random state is put back right before the first batch after a resume, when
    nothing else can draw from it any more.
    """

    def __init__(self, folder: Path, stop: StopRequest) -> None:
        self.folder = folder
        self.stop = stop
        self.saved_step: int | None = None  # of the checkpoint that is there
        self._saved_at = time.monotonic()
        self._pending: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the random state of this moment."""
        return {"random": random_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the random state for the first batch."""
        self._pending = state_dict["random"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals back: the Trainer's own handler ends a run in mid-step or mid-validation, unsaved."""
        self.stop.listen()
        if (self.folder / LAST).exists():
            self.saved_step = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Restore the random state once, right before the first resumed step."""
        if self._pending is not None:
            set_random_state(self._pending)
            self._pending = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save between steps when a minute has passed or a stop is requested."""
        mid_accumulation = (batch_idx + 1) % trainer.accumulate_grad_batches != 0
        last_of_epoch = batch_idx + 1 >= trainer.num_training_batches  # on_train_epoch_end saves that one
        if mid_accumulation or last_of_epoch:
            return
        if self.stop.signal_number is not None or time.monotonic() - self._saved_at > SECONDS_BETWEEN_SAVES:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after the epoch's validation."""
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.folder / LAST)
        self.saved_step = trainer.global_step
        self._saved_at = time.monotonic()
        if self.stop.signal_number is not None:
            raise Interrupted(self.stop.signal_number, f"stopped after step {trainer.global_step}; checkpoint saved")
