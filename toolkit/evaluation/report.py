"""Predictions → scores by split, and the lines a person reads."""

from __future__ import annotations

from collections.abc import Mapping

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


def summary_text(scores: Mapping[str, Scores | None]) -> str:
    """Return a line a scored split: accuracy with its interval, and the other scores."""
    lines = [f"{name}: {scored}" for name, scored in scores.items() if scored is not None]
    return "\n".join(lines) or "nothing scored: no labelled images outside the training split"
