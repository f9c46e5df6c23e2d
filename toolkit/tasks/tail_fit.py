"""One training of a tail: module and data of a plan, from starting weights that a kill cannot lose."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from toolkit.artifacts.run_folder import AGAIN, START, TENSORBOARD
from toolkit.backbones.weights import state_sha256
from toolkit.data.datamodule import OTHER_DATA, ImageFolderData
from toolkit.data.manifest import TRAIN, VAL, Manifest
from toolkit.errors import ArtifactError
from toolkit.hardware import resolve_precision
from toolkit.progress import say
from toolkit.storage import publishing
from toolkit.tasks.job import Job, worker_count
from toolkit.tasks.prepared import Prepared
from toolkit.training.collapse import CollapsedError
from toolkit.training.depthwise import quick_depthwise
from toolkit.training.finite import NonFiniteError
from toolkit.training.fit import FitSettings, fit
from toolkit.training.groups import parameter_groups, rates_table
from toolkit.training.mixing import State, load_state, put_mixture, trained_state
from toolkit.training.module import TransferModule

SMALLER_RATE = 0.1  # after a collapse
# What a training began with, in the file of its starting weights: the list of its images, what is in them, and the
# stages that do not train. A run that is gone on with has to find them as they were.
FINGERPRINT, CONTENTS, FROZEN = "fingerprint", "contents", "frozen"
OTHER_CONTENTS = "{}: images hold something else than when this run began; put them as they were, or start a new run"
OTHER_NETWORK = (
    "{}: its weights are others than when this run began (a weights file was replaced?); put them back, or start a "
    "new run"
)


@dataclass(frozen=True)
class Phase:
    """One training and where it leaves its traces.

    folder: its checkpoints, and the weights that it begins with. history: the CSV with a row an epoch. manifest: the
    images, split. patience: epochs without a lower validation loss after which it stops; None for all epochs. brief: it
    leaves no traces, and is done again rather than gone on with.
    """

    folder: Path
    history: Path
    manifest: Manifest
    patience: int | None
    brief: bool = False


@dataclass(frozen=True, eq=False)
class Fitted:
    """What a training came to. failures: files that failed on the way (row: reason). end: the weights at its end, None
    where it collapsed at both rates. rate: the factor on the recipe's rates with which it got there."""

    failures: dict[int, str]
    end: dict[str, Tensor] | None
    rate: float


def fit_from_start(
    module: TransferModule, phase: Phase, prepared: Prepared, job: Job, share: float, rate: float = 1.0
) -> Fitted:
    """Train from the starting weights in the phase's folder and leave a mixture, `share` of it the end, in the module.

    After a collapse it begins again with a tenth of the rates; after a second one the module has the weights that it
    began with. A loss that is no number counts as one, but for two cases, which end the run: single images are the
    cause, or a person has set the rate, which is theirs to mend; resumed, it begins again with a tenth of it.
    """
    start, row = read_start(phase.folder, prepared, job)
    data = make_data(prepared, phase.manifest, job)
    recipe = module.recipe
    again = phase.folder / AGAIN  # where this is, it collapsed before the run was resumed
    for folder, factor in ((phase.folder, rate), (again, rate * SMALLER_RATE)):
        if folder != again and again.exists():
            continue
        folder.mkdir(exist_ok=True)
        load_state(module.network, start)
        module.recipe = replace(recipe, lr=recipe.lr * factor)
        try:
            run_fit(module, data, replace(phase, folder=folder), prepared, job, row=row, start=start)
        except (CollapsedError, NonFiniteError) as error:
            if isinstance(error, NonFiniteError) and (error.by_image or (job.options.sets("lr") and folder != again)):
                raise _with_way_on(error, phase, again) from error
            outcome = "the head stays" if folder == again else f"it begins again with {SMALLER_RATE:g} of the rates"
            say(f"note: {error}; {outcome}")
            module.cpu()
            continue
        end = trained_state(module.network)
        put_mixture(module.network, start, end, share)
        return Fitted(data.failures, end, factor)
    load_state(module.network, start)
    return Fitted(data.failures, None, rate * SMALLER_RATE)


def _with_way_on(error: NonFiniteError, phase: Phase, again: Path) -> NonFiniteError:
    """Return the error with what a resume would do, and see to it that it does."""
    onwards = "then --resume goes on"
    if not error.by_image:
        again.mkdir(exist_ok=True)
        onwards = f"--resume begins again with {SMALLER_RATE:g} of the rates"
    return NonFiniteError(f"{error}; {onwards}: {phase.history.parent}", by_image=error.by_image)


def write_start(
    folder: Path, module: TransferModule, prepared: Prepared, job: Job, row: dict[str, float] | None
) -> None:
    """Publish the weights that a training begins with, how they do on the validation images, and what else it began
    with."""
    folder.mkdir(parents=True, exist_ok=True)
    with publishing(folder / START) as temporary:
        state = {name: value.contiguous() for name, value in trained_state(module.network).items()}
        about = {**_origin(prepared, job), **{key: repr(value) for key, value in (row or {}).items()}}
        save_file(state, temporary, metadata=about)


def read_start(folder: Path, prepared: Prepared, job: Job) -> tuple[dict[str, Tensor], dict[str, float] | None]:
    """Return the weights and the row that `write_start` was given.

    Raises ArtifactError where they are missing or damaged, or the images or the frozen stages were others.
    """
    path = folder / START
    try:
        with safe_open(path, "pt") as file:
            about = dict(file.metadata() or {})
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        origin = {FINGERPRINT: about.pop(FINGERPRINT), CONTENTS: about.pop(CONTENTS, ""), FROZEN: about.pop(FROZEN, "")}
        row = {key: float(value) for key, value in about.items()}
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        problem = "is missing" if isinstance(error, FileNotFoundError) else "is damaged"
        raise ArtifactError(f"{path} {problem}: this run cannot be gone on with; start it again") from error
    now = _origin(prepared, job)
    for key, message, what in (
        (FINGERPRINT, OTHER_DATA, prepared.manifest.root),
        (CONTENTS, OTHER_CONTENTS, prepared.manifest.root),
        (FROZEN, OTHER_NETWORK, job.backbone.name),
    ):
        if origin[key] and now[key] and origin[key] != now[key]:
            raise ArtifactError(message.format(what))
    return state, row or None


def _origin(prepared: Prepared, job: Job) -> dict[str, str]:
    """Return what a training begins with beside its weights; "" for contents that nobody has read."""
    frozen = nn.ModuleList(job.backbone.stages[: prepared.plan.cut or 0])
    contents = "" if prepared.views is None else prepared.views.contents()
    return {
        FINGERPRINT: prepared.manifest.fingerprint(),
        CONTENTS: contents,
        FROZEN: state_sha256(frozen, "") if len(frozen) else "",
    }


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
        by_source=prepared.manifest.splits == TRAIN if plan.cut == 0 else None,
    )


def run_fit(
    module: TransferModule,
    data: ImageFolderData,
    phase: Phase,
    prepared: Prepared,
    job: Job,
    row: dict[str, float] | None,
    start: State | None,
) -> None:
    """Train the module as the phase says; the data collect the files that fail.

    row: how the starting weights do. start: those of a head, below which training must not fall.
    """
    plan, options = prepared.plan, job.options
    assert plan.epochs is not None
    module.network.prefix_dtype = job.dtype
    if not phase.brief:
        say(rates_table(parameter_groups(module.network, module.recipe)))
    settings = FitSettings(
        epochs=plan.epochs,
        precision=resolve_precision(options.precision, job.device),
        accumulate=options.accumulate or 1,
        clip=1.0 if options.clip is None else options.clip,
        patience=phase.patience,
        start=start,
        track=_events(phase) if options.track and not phase.brief else None,
        brief=phase.brief,
    )
    in_full = settings.precision == "32-true"  # in half precision folding is less exact than the norm
    trained = module.network.stages[module.network.spec.cut :]
    with module.network.folded() if in_full else nullcontext(), quick_depthwise(trained):
        torch.manual_seed(options.seed)
        fit(module, data, settings, folder=phase.folder, history=phase.history, device=job.device, row=row)


def _events(phase: Phase) -> Path:
    """Return where the event files of a training go."""
    again = f"_{AGAIN}" if phase.folder.name == AGAIN else ""
    return phase.history.parent / TENSORBOARD / f"{phase.history.stem}{again}"


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
