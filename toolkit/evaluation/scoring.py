"""A trained model on the rows of a Manifest: the predictions that are scored are those that will be shipped."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from toolkit.data.loading import Failure, clean_batches
from toolkit.data.manifest import Manifest
from toolkit.data.views import clean_view
from toolkit.evaluation.predictions import Predictions
from toolkit.features.prefix import CHUNK
from toolkit.progress import counting
from toolkit.training.trained import Predictor


def predict_rows(
    model: Predictor, manifest: Manifest, rows: NDArray[np.int64], *, device: torch.device, workers: int
) -> tuple[Predictions, tuple[Failure, ...]]:
    """Return the predictions for rows of a Manifest, and the files that could not be read any more."""
    batches = clean_batches(
        manifest, rows, model.preprocessing, batch_size=CHUNK, workers=workers, max_pixels=model.max_pixels
    )
    kept: list[NDArray[np.int64]] = []
    logits = [torch.empty(0, len(model.classes))]
    failures: list[Failure] = []
    with counting("scoring", len(rows)) as counter:
        for batch in batches:
            failures.extend(batch.failures)
            if len(batch.rows):
                logits.append(model.logits(batch.inputs, device))
                kept.append(batch.rows.numpy())
            counter.advance(len(batch.rows) + len(batch.failures))
    found = np.concatenate(kept) if kept else np.empty(0, np.int64)
    return predictions_of(model.classes, manifest, found, torch.cat(logits)), tuple(failures)


def predict_arrays(
    model: Predictor, manifest: Manifest, images: NDArray[np.uint8], rows: NDArray[np.int64], *, device: torch.device
) -> Predictions:
    """Return the predictions for rows of a Manifest whose images are grey arrays (N, H, W), not files."""
    logits = [torch.empty(0, len(model.classes))]
    with counting("scoring", len(rows)) as counter:
        for start in range(0, len(rows), CHUNK):
            some = (Image.fromarray(image).convert("RGB") for image in images[rows[start : start + CHUNK]])
            pixels = np.stack([clean_view(image, model.preprocessing) for image in some])
            logits.append(model.logits(torch.from_numpy(pixels), device))
            counter.advance(len(pixels))
    return predictions_of(model.classes, manifest, rows, torch.cat(logits))


def predictions_of(
    classes: tuple[str, ...], manifest: Manifest, rows: NDArray[np.int64], logits: torch.Tensor
) -> Predictions:
    """Return scores float (N, C) of the given rows as Predictions."""
    return Predictions(
        tuple(manifest.paths[row] for row in rows),
        manifest.splits[rows],
        manifest.labels[rows],
        logits.double().softmax(dim=1).float(),
        classes,
    )
