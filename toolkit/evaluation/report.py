"""Predictions → scores by split."""

from __future__ import annotations

import torch

from toolkit.data.manifest import SPLIT_NAMES, TEST, VAL
from toolkit.evaluation.predictions import Predictions
from toolkit.scores import Scores, score


def evaluate(predictions: Predictions, *, seed: int = 0) -> dict[str, Scores | None]:
    """Return the scores of `val` and `test`; None for a split without a labelled image.

    seed: of the bootstrap interval. Raises what `score` raises.
    """
    return {SPLIT_NAMES[split]: _score_split(predictions.of(split), seed) for split in (VAL, TEST)}


def _score_split(predictions: Predictions, seed: int) -> Scores | None:
    known = predictions.labelled()
    if not len(known):
        return None
    return score(known.probabilities, torch.from_numpy(known.labels), seed=seed)
