"""A LightningModule and its data, trained by Lightning's Trainer with our checkpoints, history and signals."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer

from toolkit.data.datamodule import ManifestData
from toolkit.data.manifest import VAL
from toolkit.errors import Interrupted
from toolkit.hardware import true_float32
from toolkit.training.best import BestWeights
from toolkit.training.brief import StopAtOnce
from toolkit.training.checkpoints import LAST, Checkpoints, WholeCheckpointIO
from toolkit.training.collapse import CollapsedError, CollapseGuard
from toolkit.training.finite import FiniteGuard, NonFiniteError, NotFinite
from toolkit.training.history import History, StepProgress
from toolkit.training.mixing import State
from toolkit.training.signals import stop_on_signals
from toolkit.training.track import Track


@dataclass(frozen=True)
class FitSettings:
    """How the Trainer runs: epochs ≥ 1, a resolved precision, gradient accumulation ≥ 1, clipping by norm or None,
    early stopping after `patience` epochs without a lower validation loss, or never. start: weights (`trained_state`)
    that know something already; if training loses that, CollapsedError ends it. track: where TensorBoard's event files
    go, if any are wanted. brief: nothing is written and nothing said, and a signal ends it at once: for a training that
    is done again rather than gone on with."""

    epochs: int
    precision: str
    accumulate: int = 1
    clip: float | None = 1.0
    patience: int | None = None
    start: State | None = None
    track: Path | None = None
    brief: bool = False


def fit(
    module: LightningModule,
    data: ManifestData,
    settings: FitSettings,
    *,
    folder: Path,
    history: Path,
    device: torch.device,
    row: dict[str, float] | None = None,
) -> int:
    """Train `module` in place and return the number of optimizer steps; goes on from `folder`'s checkpoint if any.

    module: its training_step returns loss_sum, hits and size (see `History`), and its part `network` is what early
    stopping keeps and gives back. folder: where checkpoints live. history: the CSV to publish. row: val_loss and
    val_accuracy of the starting weights, where they are known. Raises Interrupted after SIGINT or SIGTERM, once a
    checkpoint is on the disk, and NonFiniteError before a step whose loss or gradient is no number.
    """
    checkpoint = folder / LAST
    validates = len(data.manifest.rows(VAL)) > 0
    with stop_on_signals() as stop, _quiet(), true_float32():
        guard, checkpoints = FiniteGuard(data, history.parent), Checkpoints(folder, stop)
        rows = History(history, row)
        callbacks: list[Callback] = [] if settings.brief else [StepProgress(), guard, rows]
        if settings.track is not None:
            callbacks.append(Track(settings.track, rows))
        if settings.start is not None:
            callbacks.append(CollapseGuard(len(data.manifest.classes), settings.start))
        best = None
        if settings.patience is not None and validates:
            best = BestWeights(folder, settings.patience, (row or {}).get("val_loss", math.inf))
            callbacks.append(best)
        # last: it saves the state of the others
        callbacks.append(StopAtOnce(stop) if settings.brief else checkpoints)
        trainer = Trainer(
            accelerator={"cuda": "gpu"}.get(device.type, device.type),
            devices=[device.index or 0] if device.type == "cuda" else 1,
            precision=settings.precision,  # type: ignore[arg-type]
            max_epochs=settings.epochs,
            accumulate_grad_batches=settings.accumulate,
            gradient_clip_val=settings.clip,
            limit_val_batches=None if validates else 0,
            num_sanity_val_steps=0,
            callbacks=callbacks,
            plugins=[WholeCheckpointIO(), LightningEnvironment()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        try:
            trainer.fit(module, data, ckpt_path=checkpoint if checkpoint.exists() else None, weights_only=True)
        except (CollapsedError, NotFinite) as error:
            if stop.signal_number is not None:
                raise Interrupted(stop.signal_number, "stopped; the last checkpoint is kept") from error
            if guard.error is None:
                raise
            kept = "there was no checkpoint yet"
            if checkpoints.saved_step is not None:
                kept = f"the checkpoint of step {checkpoints.saved_step} is kept"
            raise NonFiniteError(f"{guard.error}; {kept}", by_image=guard.error.by_image) from error
        if best is not None:
            best.put_back(module)
        if stop.signal_number is not None:  # it came after the last save
            raise Interrupted(stop.signal_number, "stopped after the training; checkpoint saved")
    module.cpu()
    return trainer.global_step


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's tips, banners and warnings about choices made here on purpose off the terminal."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
