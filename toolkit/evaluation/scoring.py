"""Models on the rows of a Manifest: the predictions that are scored are those that will be shipped."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from toolkit.data.loading import Failure
from toolkit.data.manifest import Manifest
from toolkit.evaluation.blocks import Block, file_blocks
from toolkit.evaluation.ensemble import Ensemble, Judgement
from toolkit.evaluation.predictions import Predictions
from toolkit.progress import counting
from toolkit.training.trained import Predictor


@dataclass(frozen=True, eq=False)
class Answers:
    """What an Ensemble of M models said of N images, and the files that could not be read.

    spread: float64 (N,), as in a Judgement, or None. votes: int64 (M, N), what each model would have said alone.
    """

    predictions: Predictions
    spread: NDArray[np.float64] | None
    votes: NDArray[np.int64]
    failures: tuple[Failure, ...]


def answers_to(
    ensemble: Ensemble, manifest: Manifest, blocks: Iterable[Block], n_images: int, *, device: torch.device
) -> Answers:
    """Return what an ensemble says of the images in `blocks`, rows of a Manifest."""
    rows: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    found: list[Judgement] = []
    failures: list[Failure] = []
    with counting("scoring", n_images) as counter:
        for block in blocks:
            failures.extend(block.failures)
            if len(block.rows):
                found.append(ensemble.judge(block.pixels, device))
                rows.append(block.rows)
            counter.advance(len(block.rows) + len(block.failures))
    n_classes, n_models = len(ensemble.classes), len(ensemble.members)
    chances = torch.cat([torch.empty(0, n_classes), *(part.probabilities for part in found)])
    votes = torch.cat([torch.empty(n_models, 0, dtype=torch.int64), *(part.votes for part in found)], dim=1)
    spreads = [part.spread for part in found if part.spread is not None]
    spread = torch.cat(spreads).numpy() if spreads else None
    predictions = _predictions(ensemble.classes, manifest, np.concatenate(rows), chances)
    return Answers(predictions, spread, votes.numpy(), tuple(failures))


def predict_rows(
    model: Predictor, manifest: Manifest, rows: NDArray[np.int64], *, device: torch.device, workers: int
) -> tuple[Predictions, tuple[Failure, ...]]:
    """Return one model's predictions for rows of a Manifest, and the files that could not be read any more."""
    alone = Ensemble.of([model])
    blocks = file_blocks(alone, manifest, rows, workers=workers, device=device)
    answers = answers_to(alone, manifest, blocks, len(rows), device=device)
    return answers.predictions, answers.failures


def predictions_of(
    classes: tuple[str, ...], manifest: Manifest, rows: NDArray[np.int64], logits: torch.Tensor
) -> Predictions:
    """Return scores float (N, C) of the given rows as Predictions."""
    return _predictions(classes, manifest, rows, logits.double().softmax(dim=1))


def _predictions(
    classes: tuple[str, ...], manifest: Manifest, rows: NDArray[np.int64], chances: torch.Tensor
) -> Predictions:
    paths = tuple(manifest.paths[row] for row in rows)
    return Predictions(paths, manifest.splits[rows], manifest.labels[rows], chances.float(), classes)
