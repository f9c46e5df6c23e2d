"""The pictures of a finished run whose drawing was interrupted: the same ones, from what the run left."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from toolkit.artifacts.model_folder import load_model
from toolkit.artifacts.run_folder import RunFolder
from toolkit.backbones.catalog import as_backbone
from toolkit.baselines.options import BaselineOptions
from toolkit.data.scan import scan
from toolkit.hardware import resolve_device
from toolkit.options import Options
from toolkit.progress import say
from toolkit.tasks.baseline_inputs import open_source
from toolkit.tasks.choose_backbone import open_job
from toolkit.tasks.job import Stopwatch
from toolkit.tasks.pictures import Images, draw_baseline, draw_run
from toolkit.tasks.prepare import read_plan, recorded
from toolkit.tasks.stores import open_store


def draw_run_again(folder: RunFolder, data: Path, options: Options) -> None:
    """Draw the pictures of a finished run of `finetune`, and remove the checkpoints that were left."""

    def draw() -> None:
        plan = read_plan(folder)
        own = None if isinstance(options.backbone, str) else as_backbone(copy.deepcopy(options.backbone)).stages
        model = load_model(folder.path, stages=own)
        manifest = recorded(folder, scan(data, max_pixels=options.max_pixels), options)
        images = Images(manifest, model.preprocessing, model.max_pixels)
        with open_store(options.cache, options.cache_dir) as store:
            stored = None
            if plan.strategy == "head":
                job = open_job(options, manifest, store, Stopwatch(), plan.backbone)
                stored = job.fetch(job.all_taps if options.strategy == "auto" else job.request, manifest)
                stored = replace(stored, rows=np.arange(len(manifest)))
            draw_run(folder, model, plan, images, stored, resolve_device(options.device))

    _finish(folder, draw if options.pictures else None)


def draw_baseline_again(folder: RunFolder, data: Path, options: BaselineOptions) -> None:
    """Draw the pictures of a finished run of a baseline, and remove the checkpoints that were left."""

    def draw() -> None:
        source, model = open_source(data, options), load_model(folder.path)
        draw_baseline(
            folder, model, options, Images(source.manifest, model.preprocessing, model.max_pixels, source.images)
        )

    _finish(folder, draw if options.pictures else None)


def _finish(folder: RunFolder, draw: Callable[[], None] | None) -> None:
    """Draw, if that is wanted; a run that is finished stays so, whatever has become of its data since."""
    try:
        with folder.held():
            if not folder.finished:  # another run was begun in its place meanwhile: these are its checkpoints
                return
            if draw is not None:
                draw()
            folder.drop_checkpoints()
    except Exception as error:
        say(f"note: the pictures could not be drawn: {' '.join(str(error).split()) or type(error).__name__}")
