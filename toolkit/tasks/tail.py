"""The trained part of a run: a tail and its head from their starting weights, or everything from scratch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from toolkit.artifacts.run_folder import HISTORY, RunFolder
from toolkit.data.datamodule import ImageFolderData
from toolkit.data.manifest import TRAIN, VAL
from toolkit.hardware import resolve_precision
from toolkit.planning.policy import RECIPES
from toolkit.progress import say
from toolkit.tasks.job import Job, worker_count
from toolkit.tasks.prepare import Prepared
from toolkit.training.fit import FitSettings, fit
from toolkit.training.groups import parameter_groups, rates_table
from toolkit.training.module import TransferModule
from toolkit.training.network import TransferNetwork


def train_tail(folder: RunFolder, prepared: Prepared, job: Job) -> tuple[TransferNetwork, dict[int, str]]:
    """Return the trained network, and the files that failed while it trained (row: reason)."""
    plan, recipe, options = prepared.plan, RECIPES[prepared.plan.strategy], job.options
    assert plan.epochs is not None and plan.lr is not None and plan.weight_decay is not None
    backbone, manifest = job.backbone, prepared.manifest
    batch_size = options.batch_size or recipe.batch_size
    smoothing = recipe.label_smoothing if options.label_smoothing is None else options.label_smoothing
    torch.manual_seed(options.seed)  # dropout and stochastic depth of the tail
    module = TransferModule(
        backbone,
        len(manifest.classes),
        spec=plan.freeze_spec(),
        taps=plan.taps,
        head=None if prepared.chosen is None else prepared.chosen.head,
        lr=plan.lr,
        weight_decay=plan.weight_decay,
        optimizer=options.optimizer or "adamw",
        label_smoothing=smoothing,
        class_weights=_class_weights(prepared) if options.class_weights == "balanced" else None,
        update_batchnorm=plan.strategy == "scratch",
    )
    module.network.prefix_dtype = job.dtype
    say(rates_table(parameter_groups(module.network, lr=plan.lr, weight_decay=plan.weight_decay)))
    data = ImageFolderData(
        manifest,
        backbone.preprocessing,
        batch_size=batch_size,
        augment=plan.augmentation,
        views=plan.views,
        seed=options.seed,
        workers=_workers(prepared, job),
        max_pixels=options.max_pixels,
        stored=prepared.views,
        by_source=plan.cut == 0,
    )
    settings = FitSettings(
        epochs=plan.epochs,
        precision=resolve_precision(options.precision, job.device),
        accumulate=options.accumulate or 1,
        clip=1.0 if options.clip is None else options.clip,
        patience=options.patience,
    )
    fit(
        module,
        data,
        settings,
        folder=folder.checkpoints,
        history=folder.path / HISTORY,
        device=job.device,
        start=_start_row(prepared),
    )
    module.network.prefix_dtype = None  # what is shipped runs in float32
    return module.network, data.failures


def _workers(prepared: Prepared, job: Job) -> int:
    """Return how many processes make the batches.

    None by itself where a CPU trains on stored images: cutting a view from one takes 1 % of a step or less, and each
    process that begins makes the system copy, page by page, the memory that training then writes to.
    """
    if prepared.views is not None and job.device.type == "cpu" and job.options.workers is None:
        return 0
    return worker_count(job.options, len(prepared.manifest))


def _class_weights(prepared: Prepared) -> list[float]:
    """Return weights inverse to the classes' sizes, 1 on average over the images (scikit-learn's "balanced")."""
    counts = prepared.manifest.class_counts(TRAIN)
    present = max(1, int((counts > 0).sum()))
    return [float(counts.sum() / (present * n)) if n else 0.0 for n in counts]


def _start_row(prepared: Prepared) -> dict[str, float] | None:
    """Return how the starting head does on the validation images, from the features that it was trained on."""
    if prepared.chosen is None or prepared.probe is None:
        return None
    rows = prepared.manifest.rows(VAL)
    if not len(rows):
        return None
    labels = torch.from_numpy(prepared.manifest.labels[rows])
    features = prepared.probe.pooled(rows, taps=prepared.plan.taps)
    with torch.inference_mode():
        scores = prepared.chosen.head(torch.from_numpy(features[:]))
        accuracy = (scores.argmax(dim=1) == labels).float().mean()
        return {"val_loss": float(F.cross_entropy(scores, labels)), "val_accuracy": float(accuracy)}
