"""The scores of a run: the model that is shipped, on the images that it has not trained on."""

from __future__ import annotations

import numpy as np
import torch

from toolkit.data.manifest import TRAIN, UNASSIGNED, Manifest
from toolkit.evaluation.predictions import Predictions
from toolkit.evaluation.scoring import predict_rows, predictions_of
from toolkit.features.stored import Stored
from toolkit.tasks.job import Job, worker_count
from toolkit.tasks.prepared import Prepared
from toolkit.training.trained import TrainedModel

BLOCK = 256  # images read at a time


def score(model: TrainedModel, prepared: Prepared, failures: dict[int, str], job: Job) -> tuple[Manifest, Predictions]:
    """Return the Manifest less the files that failed since, and the predictions for val and test.

    What frozen stages gave for these images in float32, the shipped model's own precision, is read from the store.
    """
    manifest = prepared.manifest
    rows = np.flatnonzero((manifest.splits != TRAIN) & (manifest.splits != UNASSIGNED))
    stored = prepared.probe if prepared.plan.strategy == "head" else None
    if prepared.views is not None:
        stored = prepared.views.parts[1]  # the images that do not train
    with job.clock.part("evaluate"):
        if stored is not None and stored.request.dtype == torch.float32:
            return manifest, _from_store(model, stored, prepared, rows, job)
        rows = rows[~np.isin(rows, list(failures))]  # a file that failed once is not scored if it comes back
        workers = worker_count(job.options, len(manifest))
        predictions, lost = predict_rows(model, manifest, rows, device=job.device, workers=workers)
    return manifest.without([*failures.items(), *lost]), predictions


def _from_store(model: TrainedModel, stored: Stored, prepared: Prepared, rows: np.ndarray, job: Job) -> Predictions:
    positions = np.searchsorted(stored.rows, rows)
    logits = [torch.empty(0, len(model.classes))]
    for start in range(0, len(positions), BLOCK):
        inputs = stored.inputs(positions[start : start + BLOCK], taps=prepared.plan.taps)
        logits.append(model.logits(inputs, job.device))
    return predictions_of(model.classes, prepared.manifest, rows, torch.cat(logits))
