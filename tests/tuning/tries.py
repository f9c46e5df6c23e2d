"""A search whose trials take no time: the closer a rate is to 0.01, the more of 100 images are right."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.errors import ToolkitError
from toolkit.tuning.outcomes import Judged, Outcome
from toolkit.tuning.samplers import Schedule
from toolkit.tuning.space import Choice, Number, Space
from toolkit.tuning.study import Study

SPACE: Space = (Number("lr", 1e-5, 10.0, 1e-3), Choice("kind", ("a", "b"), "a"))
ABOUT = {"data": "some", "settings": {"seed": 0, "epochs": 3}}
TOO_LARGE = 3.0


class KilledError(BaseException):
    """What a kill looks like from inside: nothing is cleaned up but the locks."""


class Tries:
    """An Objective that notes what it was asked, and may be killed at the n-th question."""

    def __init__(self, killed_at: int | None = None) -> None:
        self.asked: list[tuple[Mapping[str, Any], int, bool]] = []
        self.killed_at = killed_at

    def n_folds(self, short: bool) -> int:
        return 4

    def judge(self, options: Mapping[str, Any], fold: int, short: bool) -> Judged:
        if len(self.asked) == self.killed_at:
            raise KilledError
        self.asked.append((options, fold, short))
        lr = options.get("lr", 1e-3)
        if lr > TOO_LARGE:
            raise ToolkitError("the loss is not finite any more")
        chance = 0.95 - 0.15 * abs(np.log10(lr) + 2) - 0.1 * short
        images = np.arange(25) * 4 + fold
        right = np.random.default_rng([7, fold]).random(25) < chance
        return Judged(images, right, np.full(25, 1 - chance))


def study_in(folder: Path, sampler: str = "coarse_to_fine", n_trials: int = 12, seed: int = 0) -> Study:
    return Study(folder, Schedule(sampler, SPACE, seed, n_trials), ABOUT, dict)


def run(folder: Path, sampler: str = "coarse_to_fine", n_trials: int = 12, seed: int = 0) -> list[Outcome]:
    return study_in(folder, sampler, n_trials, seed).run(n_trials, Tries(), lambda outcome: None)


def told(outcomes: list[Outcome]) -> list[tuple[Any, ...]]:
    """Return what must be equal in a search that was killed and in one that was not: all but the clock."""
    return [(o.number, o.stage, o.state, dict(o.params), o.value, o.accuracy, o.nll, o.reason) for o in outcomes]
