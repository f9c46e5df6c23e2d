"""A saved model on files: one record an image, whatever is wrong with some of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from toolkit.data.loading import clean_batches
from toolkit.data.manifest import UNASSIGNED, UNLABELLED, Manifest
from toolkit.features.prefix import CHUNK
from toolkit.training.trained import Predictor

TOP = 5


def loose_files(paths: Sequence[str | Path]) -> Manifest:
    """Return a Manifest of single files, unlabelled, in the order given."""
    n = len(paths)
    names = tuple(str(path) for path in paths)
    return Manifest(Path(), (), names, np.full(n, UNLABELLED, np.int64), np.full(n, UNASSIGNED, np.int8))


def predict_paths(
    model: Predictor, paths: Sequence[str | Path], *, device: torch.device, workers: int
) -> Iterator[dict[str, Any]]:
    """Yield a record a path, in order: path, label, probability and top (at most 5), or path and error.

    Decoding and preprocessing are those of the training.
    """
    manifest = loose_files(paths)
    batches = clean_batches(
        manifest,
        np.arange(len(manifest)),
        model.preprocessing,
        batch_size=CHUNK,
        workers=workers,
        max_pixels=model.max_pixels,
    )
    for batch in batches:
        records = {row: {"path": manifest.paths[row], "error": reason} for row, reason in batch.failures}
        if len(batch.rows):
            probabilities = model.logits(batch.inputs, device).double().softmax(dim=1)
            for row, distribution in zip(batch.rows.tolist(), probabilities, strict=True):
                records[row] = {"path": manifest.paths[row], **_record(model.classes, distribution)}
        yield from (records[row] for row in sorted(records))


def _record(classes: Sequence[str], distribution: torch.Tensor) -> dict[str, Any]:
    values, order = distribution.topk(min(TOP, len(classes)))
    top = [
        {"label": classes[label], "probability": value}
        for label, value in zip(order.tolist(), values.tolist(), strict=True)
    ]
    return {**top[0], "top": top}
