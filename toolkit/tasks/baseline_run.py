"""The straight line of a baseline: data → inputs → net or neighbours → scores → run folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from toolkit.artifacts.model_folder import Model
from toolkit.artifacts.run_folder import HISTORY, METRICS, MODEL, TENSORBOARD, RunFolder
from toolkit.baselines.approximate import need_faiss
from toolkit.baselines.inputs import BLOCK, pixel_preprocessing, statistics
from toolkit.baselines.loading import BaselineData
from toolkit.baselines.model import BaselineModel, BaselineNetwork, Body
from toolkit.baselines.module import BaselineModule, threads_for
from toolkit.baselines.neighbours import Neighbours
from toolkit.baselines.net import CentredNet, NetSpec
from toolkit.baselines.options import NEIGHBOURS, BaselineOptions
from toolkit.data.manifest import TRAIN, VAL
from toolkit.errors import ArtifactError, SettingError
from toolkit.evaluation.predictions import Predictions
from toolkit.evaluation.report import evaluate
from toolkit.evaluation.scoring import predictions_of
from toolkit.features.prefix import Activations
from toolkit.features.store import FeatureStore
from toolkit.hardware import resolve_device
from toolkit.plan import FreezeSpec
from toolkit.progress import say
from toolkit.tasks.apart import check_apart, check_cache_apart
from toolkit.tasks.baseline_inputs import Examples, Source, check_room, open_source, read_examples
from toolkit.tasks.ending import diagnosis_of, file_lines, metrics_of, publish_results, score_lines
from toolkit.tasks.job import Stopwatch
from toolkit.tasks.stores import open_store
from toolkit.training.fit import FitSettings, fit
from toolkit.training.need_tensorboard import need_tensorboard
from toolkit.training.network import TransferNetwork
from toolkit.training.trained import TrainedModel


@dataclass(frozen=True, eq=False)
class BaselineRun:
    """A finished run of a baseline: where it is and what came out."""

    path: Path
    metrics: dict[str, Any]

    @property
    def model_path(self) -> Path:
        """The model folder."""
        return self.path / MODEL

    def __str__(self) -> str:
        metrics = self.metrics
        seen = metrics["on"] if metrics["backbone"] is None else f"features of {metrics['backbone']}"
        first = f"{metrics['model']} on {seen}: {metrics['train']['n']} training images"
        first += f", {metrics['seconds']['total']:.1f} s"
        return "\n".join([first, *score_lines(metrics), *file_lines(metrics, self.path)])


def start_baseline(
    data: str | os.PathLike[str], out: str, options: BaselineOptions, *, overwrite: bool = False
) -> BaselineRun:
    """Run the whole line into a new run folder; what can be refused is refused before the run begins there."""
    _check_machine(options)
    where = Path(out).expanduser().absolute()
    check_apart(data, where)
    check_cache_apart(data, options.cache_dir)
    folder = RunFolder(where)
    with folder.claimed(overwrite=overwrite):
        clock = Stopwatch()
        with clock.part("scan"):
            source = open_source(data, options)
        config = {"data": str(Path(data).expanduser().absolute()), "out": str(where), **options.to_dict()}
        with open_store(options.cache, options.cache_dir) as store:
            check_room(source, options, store)
            folder.begin(config)
            folder.write_quarantine(source.manifest)  # so far; from here on the folder is known as a run's
            say(str(source.manifest))
            return _go(folder, source, options, store, clock)


def resume_baseline(path: str | os.PathLike[str]) -> BaselineRun:
    """Go on with an interrupted run; a finished one is returned as it is."""
    folder = RunFolder.open(path)
    folder.check_own()
    config = folder.config()
    if "strategy" in config:
        raise ArtifactError(f"{folder.path} is a run of finetune; go on with it by toolkit finetune --resume")
    if folder.finished and folder.tidied:
        return _as_it_is(folder)
    try:
        options = BaselineOptions(**{key: value for key, value in config.items() if key not in ("data", "out")})
        data = Path(config["data"])
    except (TypeError, KeyError) as error:
        raise ArtifactError(f"{folder.path}: config.yaml is not one that a run wrote ({error})") from error
    if folder.finished:
        from toolkit.tasks.draw_again import draw_baseline_again

        draw_baseline_again(folder, data, options)
        return _as_it_is(folder)
    _check_machine(options)
    clock = Stopwatch()
    with clock.part("scan"):
        source = open_source(data, options)
    with folder.held(), open_store(options.cache, options.cache_dir) as store:
        folder.check_still(config)
        return _go(folder, source, options, store, clock)


def _as_it_is(folder: RunFolder) -> BaselineRun:
    say(f"{folder.path} is finished; nothing to do")
    return BaselineRun(folder.path, folder.read(METRICS))


def _check_machine(options: BaselineOptions) -> None:
    if options.track:
        need_tensorboard()
    if options.search == "approximate":
        need_faiss()
    if resolve_device(options.device).type == "mps" and options.precision == "64-true":
        raise SettingError("precision: this device knows no 64-true; take --device cpu")


def _go(
    folder: RunFolder, source: Source, options: BaselineOptions, store: FeatureStore, clock: Stopwatch
) -> BaselineRun:
    if folder.finished:  # by another process, while this one read the data
        folder.drop_checkpoints()  # the place of the lock
        return _as_it_is(folder)
    with clock.part("extract"):
        examples = read_examples(source, options, store)
    manifest = examples.manifest
    folder.write_quarantine(manifest)
    for remark in manifest.remarks:
        say(f"note: {remark}")
    say(f"{options.model} on {options.on}: {examples.inputs}")
    with clock.part("fit"):
        body: Body
        if options.model in NEIGHBOURS:
            body = _neighbours(examples, options)
        else:
            settings = FitSettings(
                options.value("epochs"),
                "32-true",
                clip=None,
                patience=options.patience,
                track=folder.path / TENSORBOARD / "history" if options.track else None,
            )
            body = trained_net(examples, options, settings, folder.checkpoints, folder.path / HISTORY)
        model = _model(body, examples, options)
    with clock.part("evaluate"):
        predictions = _predicted(model, examples, options)
        scores = evaluate(predictions, seed=options.seed)
        publish_results(folder, model, predictions, manifest)
    backbone = None if examples.backbone is None else examples.backbone.name
    metrics = {
        **metrics_of(manifest, scores, clock, strategy="baseline", backbone=backbone),
        "val_chose": "nothing" if options.patience is None else "epoch",
        "folds": None,
        "diagnosis": diagnosis_of(folder, n_val=len(manifest.rows(VAL)), keeps_best=options.patience is not None),
        "model": options.model,
        "on": options.on,
    }
    folder.write(METRICS, metrics)  # from here on the run is finished, whatever becomes of its pictures
    if options.pictures:
        from toolkit.tasks.pictures import Images, draw_baseline

        images = Images(manifest, model.preprocessing, model.max_pixels, source.images)
        draw_baseline(folder, model, options, images)
    folder.drop_checkpoints()
    return BaselineRun(folder.path, metrics)


def _neighbours(examples: Examples, options: BaselineOptions) -> Neighbours:
    rows = examples.manifest.rows(TRAIN)
    labels = torch.from_numpy(examples.manifest.labels[rows])
    settings = {key: options.value(key) for key in ("k", "metric", "search")}
    return Neighbours(examples.inputs.take(rows), labels, len(examples.manifest.classes), **settings)


def trained_net(
    examples: Examples, options: BaselineOptions, settings: FitSettings, folder: Path, history: Path
) -> CentredNet:
    """Return the trained net, in float32; goes on from the folder's checkpoint if there is one."""
    net, batch_size = untrained(examples, options), options.value("batch_size")
    data = BaselineData(examples.manifest, examples.inputs, batch_size=batch_size, seed=options.seed)
    module = BaselineModule(
        net,
        total_steps=data.steps_an_epoch * settings.epochs,
        batch_size=batch_size,
        **{key: options.value(key) for key in ("loss", "optimizer", "lr", "schedule", "l1", "l2")},
    )
    torch.manual_seed(options.seed)  # dropout
    with threads_for(net, batch_size):
        fit(module, data, settings, folder=folder, history=history, device=resolve_device(options.device))
    return net.float()


def untrained(examples: Examples, options: BaselineOptions) -> CentredNet:
    """Return the net as it is before training, its inputs centred by the training images."""
    manifest = examples.manifest
    mean, scale = statistics(examples.inputs, manifest.rows(TRAIN))
    spec = NetSpec(
        n_inputs=len(mean),
        n_classes=len(manifest.classes),
        hidden=tuple(options.value("hidden")),
        batchnorm=options.batchnorm,
        **{key: options.value(key) for key in ("activation", "init", "dropout", "layers")},
    )
    dtype = torch.float64 if options.value("precision") == "64-true" else torch.float32
    return CentredNet(spec, mean, scale, seed=options.seed, dtype=dtype)


def _model(body: Body, examples: Examples, options: BaselineOptions) -> Model:
    classes = examples.manifest.classes
    if examples.backbone is not None:
        n_stages = len(examples.backbone)
        spec = FreezeSpec.at_cut(n_stages, n_stages)
        network = TransferNetwork(examples.backbone, body, spec, taps=examples.taps)
        return TrainedModel.of(network, examples.backbone, classes, options.max_pixels)
    assert examples.reading is not None
    preprocessing = pixel_preprocessing(examples.side_px)
    return BaselineModel(BaselineNetwork(examples.reading, body), classes, preprocessing, options.max_pixels)


def _predicted(model: Model, examples: Examples, options: BaselineOptions) -> Predictions:
    """Return the predictions for val and test by the model that is shipped."""
    manifest = examples.manifest
    rows = np.flatnonzero(manifest.splits != TRAIN)
    device = resolve_device(options.device)
    logits = [torch.empty(0, len(manifest.classes))]
    for start in range(0, len(rows), BLOCK):
        inputs = examples.inputs.take(rows[start : start + BLOCK])
        logits.append(model.logits(inputs if examples.backbone is None else Activations(None, (inputs,)), device))
    return predictions_of(manifest.classes, manifest, rows, torch.cat(logits))
