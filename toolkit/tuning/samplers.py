"""Which point a trial takes: by its number and the seed, and where that is the idea, by what earlier trials found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from toolkit.tuning.outcomes import COARSE, DEFAULT, FINE
from toolkit.tuning.points import best_region, grid_levels, grid_point, random_point
from toolkit.tuning.space import Number, Space, point_of, settings_at

# Accuracy on new images did not tell them apart; the first trains the fewest epochs (scripts/bench/search).
COARSE_TO_FINE, RANDOM, GRID, TPE = "coarse_to_fine", "random", "grid", "tpe"
COARSE_SHARE = 0.5  # of the trials after the first


@dataclass(frozen=True)
class Schedule:
    """Which stage a trial belongs to.

    Trial 0 has the default settings. n_trials: how many the study was begun with: half of the others are the coarse
    stage, or they are laid out as a grid. Going on beyond them adds fine ones, and none to a grid.
    """

    sampler: str
    space: Space
    seed: int
    n_trials: int

    @property
    def n_coarse(self) -> int:
        """Trials of the coarse stage, which are numbered from 1."""
        return int(COARSE_SHARE * (self.n_trials - 1)) if self.sampler == COARSE_TO_FINE else 0

    @property
    def levels(self) -> tuple[int, ...]:
        """Levels of the grid, by part of the space."""
        return grid_levels(self.space, max(1, self.n_trials - 1))

    def most(self, n_trials: int) -> int:
        """Return how many trials there are, of so many that are wanted: a grid comes to an end."""
        return min(n_trials, 1 + int(np.prod(self.levels))) if self.sampler == GRID else n_trials

    def stage(self, number: int) -> str:
        """Return the stage of a trial."""
        if number == 0:
            return DEFAULT
        if self.sampler == COARSE_TO_FINE:
            return COARSE if number <= self.n_coarse else FINE
        return self.sampler

    def waits(self, number: int) -> bool:
        """Return whether a trial needs to know all of the coarse stage."""
        return self.stage(number) == FINE


class Sampler(BaseSampler):
    """Gives Optuna the parameters of a trial, as the Schedule has it.

    Random, grid and coarse-to-fine draw from (seed, number) alone, so that it does not matter which process asks, or
    what was killed before. TPE (Bergstra et al. 2011) looks at all trials that have ended, in this process or another.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.distributions = distributions_of(schedule.space)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the whole space."""
        return self.distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the parameters of a trial."""
        schedule, number = self.schedule, trial.number
        space, stage = schedule.space, schedule.stage(number)
        if stage == DEFAULT:
            return settings_at(space, point_of(space, {}))
        if stage == TPE:
            return self._by_tpe(study, trial)
        if stage == GRID:
            return settings_at(space, grid_point(space, schedule.levels, schedule.seed, number - 1))
        point = random_point(len(space), schedule.seed, number)
        if stage != FINE:
            return settings_at(space, point)
        ended = coarse_trials(study, schedule)
        values = [float(one.value) for one in ended if one.value is not None]
        points = [point_of(space, one.params) for one in ended]
        if ended and number == schedule.n_coarse + 1:  # the best of the short ones, at full length
            return dict(ended[int(np.argmax(values))].params)
        region = best_region(space, points, values)
        return settings_at(space, point if region is None else region.at(point))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return the default of a part: everything is sampled together, so nobody asks."""
        return next(part.default for part in self.schedule.space if part.name == param_name)

    def _by_tpe(self, study: Study, trial: FrozenTrial) -> dict[str, Any]:
        """Return what Optuna's TPE takes, its random numbers from (seed, number)."""
        seed = int(np.random.SeedSequence([self.schedule.seed, trial.number]).generate_state(1)[0])
        sampler = TPESampler(seed=seed)
        return {
            name: sampler.sample_independent(study, trial, name, distribution)
            for name, distribution in self.distributions.items()
        }


def coarse_trials(study: Study, schedule: Schedule) -> list[FrozenTrial]:
    """Return the coarse trials that finished, by their numbers; where none did, those that were pruned."""
    coarse = [t for t in study.get_trials(deepcopy=False) if schedule.stage(t.number) == COARSE and t.value is not None]
    finished = [trial for trial in coarse if trial.state == TrialState.COMPLETE]
    return finished or coarse


def distributions_of(space: Space) -> dict[str, BaseDistribution]:
    """Return Optuna's words for a space."""
    found: dict[str, BaseDistribution] = {}
    for part in space:
        if not isinstance(part, Number):
            found[part.name] = CategoricalDistribution(part.values)
        elif part.whole:
            found[part.name] = IntDistribution(int(part.low), int(part.high), log=part.log)
        else:
            found[part.name] = FloatDistribution(part.low, part.high, log=part.log)
    return found
