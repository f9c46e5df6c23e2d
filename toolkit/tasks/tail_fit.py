"""One training of a tail: module and data of a plan, from starting weights that a kill cannot lose."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from toolkit.artifacts.run_folder import AGAIN, START
from toolkit.data.datamodule import ImageFolderData
from toolkit.data.manifest import TRAIN, VAL, Manifest
from toolkit.hardware import resolve_precision
from toolkit.progress import say
from toolkit.storage import publishing
from toolkit.tasks.job import Job, worker_count
from toolkit.tasks.prepare import Prepared
from toolkit.training.collapse import CollapsedError
from toolkit.training.fit import FitSettings, fit
from toolkit.training.groups import parameter_groups, rates_table
from toolkit.training.mixing import put_mixture, trained_state
from toolkit.training.module import TransferModule

SMALLER_RATE = 0.1  # after a collapse


@dataclass(frozen=True)
class Phase:
    """A training from the starting weights in its own folder: on what, with whose history, watching which epoch."""

    folder: Path
    history: Path
    manifest: Manifest
    patience: int | None


def fit_from_start(
    module: TransferModule, phase: Phase, prepared: Prepared, job: Job, share: float
) -> tuple[dict[int, str], dict[str, Tensor] | None]:
    """Train from the phase's starting weights, or those of the module, and mix; return failures and the end's weights.

    After a collapse it begins again with a tenth of the rates; after a second one the module has the weights that it
    began with, and the end is None.
    """
    if not (phase.folder / START).exists():
        write_start(phase.folder, module, start_row(prepared))
    start, row = read_start(phase.folder)
    put_mixture(module.network, start, start, 0.0)
    data = make_data(prepared, phase.manifest, job)
    for folder in (phase.folder, phase.folder / AGAIN):
        if folder == phase.folder and (phase.folder / AGAIN).exists():
            continue  # it collapsed before this run was resumed
        if folder != phase.folder:
            module.recipe = replace(module.recipe, lr=module.recipe.lr * SMALLER_RATE)
            folder.mkdir(exist_ok=True)
        try:
            run_fit(module, data, replace(phase, folder=folder), prepared, job, row=row)
        except CollapsedError as error:
            module.cpu()
            put_mixture(module.network, start, start, 0.0)
            again = (
                f"it begins again with {SMALLER_RATE:g} of the rates" if folder == phase.folder else "the head stays"
            )
            say(f"note: {error}; {again}")
            continue
        end = trained_state(module.network)
        put_mixture(module.network, start, end, share)
        return data.failures, end
    return data.failures, None


def write_start(folder: Path, module: TransferModule, row: dict[str, float] | None) -> None:
    """Publish the weights that a training begins with, and how they do on the validation images."""
    folder.mkdir(parents=True, exist_ok=True)
    with publishing(folder / START) as temporary:
        state = {name: value.contiguous() for name, value in trained_state(module.network).items()}
        save_file(state, temporary, metadata={key: repr(value) for key, value in (row or {}).items()})


def read_start(folder: Path) -> tuple[dict[str, Tensor], dict[str, float] | None]:
    """Return what `write_start` was given."""
    with safe_open(folder / START, "pt") as file:
        row = {key: float(value) for key, value in (file.metadata() or {}).items()}
        return {name: file.get_tensor(name) for name in file.keys()}, row or None  # noqa: SIM118


def make_module(prepared: Prepared, job: Job, head: nn.Module | None) -> TransferModule:
    """Return the plan's network on the job's backbone, with a head, or one of zeros, as it is to be trained."""
    plan, options = prepared.plan, job.options
    torch.manual_seed(options.seed)  # a head of random weights; dropout and stochastic depth of the tail
    module = TransferModule(
        job.backbone,
        len(prepared.manifest.classes),
        spec=plan.freeze_spec(),
        taps=plan.taps,
        head=head,
        recipe=plan.recipe,
        class_weights=_class_weights(prepared) if options.class_weights == "balanced" else None,
    )
    module.network.prefix_dtype = job.dtype
    return module


def make_data(prepared: Prepared, manifest: Manifest, job: Job) -> ImageFolderData:
    """Return the plan's views of the images of a Manifest: from the store, or live."""
    plan, options = prepared.plan, job.options
    assert plan.recipe is not None
    return ImageFolderData(
        manifest,
        job.backbone.preprocessing,
        batch_size=plan.recipe.batch_size,
        augment=plan.augmentation,
        views=plan.views,
        seed=options.seed,
        workers=_workers(prepared, job),
        max_pixels=options.max_pixels,
        stored=prepared.views,
        by_source=plan.cut == 0,
    )


def run_fit(
    module: TransferModule,
    data: ImageFolderData,
    phase: Phase,
    prepared: Prepared,
    job: Job,
    row: dict[str, float] | None,
) -> None:
    """Train the module as the phase says; the data collect the files that fail."""
    plan, options = prepared.plan, job.options
    assert plan.epochs is not None
    module.network.prefix_dtype = job.dtype
    say(rates_table(parameter_groups(module.network, module.recipe)))
    settings = FitSettings(
        epochs=plan.epochs,
        precision=resolve_precision(options.precision, job.device),
        accumulate=options.accumulate or 1,
        clip=1.0 if options.clip is None else options.clip,
        patience=phase.patience,
        guarded=plan.strategy != "scratch",
    )
    torch.manual_seed(options.seed)
    fit(module, data, settings, folder=phase.folder, history=phase.history, device=job.device, start=row)


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


def start_row(prepared: Prepared) -> dict[str, float] | None:
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
