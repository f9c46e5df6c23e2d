"""Objective: what a trial is judged by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from toolkit.tuning.outcomes import Judged


class Objective(Protocol):
    """A training without a fold of the training images, and how it does on the fold.

    short: a fraction of the training, for the coarse stage. Raises ToolkitError where the settings cannot be trained.
    """

    def n_folds(self, short: bool) -> int: ...

    def judge(self, options: Mapping[str, Any], fold: int, short: bool) -> Judged: ...


def all_folds(objective: Objective, options: Mapping[str, Any]) -> Judged:
    """Return how settings do on all folds, at full length."""
    return Judged.joined([objective.judge(options, fold, False) for fold in range(objective.n_folds(False))])
