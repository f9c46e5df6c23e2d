"""What a check finds in the inputs of a network: their statistics, and whether prediction makes the same ones."""

from __future__ import annotations

import json
from contextlib import suppress

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toolkit.backbones.normalise import Normalise
from toolkit.checks.files import suspect
from toolkit.checks.finding import Finding, Suspect
from toolkit.checks.inputs import input_statistics, is_blank, predict_preprocessing
from toolkit.data.loading import ViewDataset, clean_batches
from toolkit.data.manifest import TRAIN, Manifest
from toolkit.data.preprocessing import Preprocessing
from toolkit.data.samplers import SeededSampler
from toolkit.data.views import AUGMENTATIONS
from toolkit.planning.probes import stratified
from toolkit.planning.similarity import SAMPLE, similarity_of
from toolkit.tasks.job import Job, worker_count
from toolkit.tasks.squeezed import Pictures

COMPARED = 8  # files


def input_findings(manifest: Manifest, pictures: Pictures, job: Job) -> tuple[list[Finding], list[Suspect]]:
    """Return what is to be said of the inputs that the images of a split Manifest make."""
    blank = np.concatenate([rows[is_blank(pictures.of(rows)).numpy()] for rows in pictures.blocks()])
    pixels = _clean(manifest, _sample(manifest, SAMPLE, job), job.backbone.preprocessing, job)
    similarity = None
    with suppress(RuntimeError, ValueError, TypeError, AttributeError, IndexError):  # say, of batches of one size alone
        similarity = similarity_of(job.backbone, pixels, job.device)
    statistics = input_statistics(pixels, job.backbone.preprocessing, similarity, len(blank), len(manifest))
    suspects = [suspect(manifest, int(row), "input_statistics", "one colour", 0.95) for row in blank]
    return [statistics, _same_in_prediction(manifest, job)], suspects


def _same_in_prediction(manifest: Manifest, job: Job) -> Finding:
    """Hold the clean views that training has against what a saved model makes of the same files."""
    rows = _sample(manifest, COMPARED, job)
    own = job.backbone.preprocessing
    dataset = ViewDataset(
        manifest, own, AUGMENTATIONS["standard"], seed=job.options.seed, max_pixels=job.options.max_pixels
    )
    keys = list(SeededSampler(rows, views=1, seed=job.options.seed, shuffle=False))
    trained = dataset.collate([dataset[key] for key in keys]).inputs
    saved = Preprocessing.from_dict(json.loads(json.dumps(own.to_dict())))
    predicted = _clean(manifest, rows, saved, job)
    return predict_preprocessing(Normalise(own)(trained), Normalise(saved)(predicted))


def _sample(manifest: Manifest, most: int, job: Job) -> NDArray[np.int64]:
    train = manifest.rows(TRAIN)
    return train[stratified(manifest.labels[train], most, job.options.seed)]


def _clean(manifest: Manifest, rows: NDArray[np.int64], preprocessing: Preprocessing, job: Job) -> Tensor:
    """Return the clean views uint8 (n, 3, S, S) of those rows that can be read."""
    batches = clean_batches(
        manifest,
        rows,
        preprocessing,
        batch_size=16,
        workers=min(worker_count(job.options, len(rows)), 4),
        max_pixels=job.options.max_pixels,
        turns=job.device.type == "cpu",
    )
    return torch.cat([batch.inputs for batch in batches])
