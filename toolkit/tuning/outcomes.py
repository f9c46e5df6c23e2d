"""What came of the trials of a search: outcomes, their counts, the best of them, and the table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.evaluation.csv_text import csv_text

DEFAULT, COARSE, FINE = "default", "coarse", "fine"  # stages; those of other samplers have the sampler's name
FINISHED, PRUNED, FAILED, RUNNING = "finished", "pruned", "failed", "running"
WITHIN = 0.5  # standard errors of the best accuracy
WORST_NLL = 100.0  # nats an image; more, or no number at all, counts as this


@dataclass(frozen=True, eq=False)
class Judged:
    """How a training did on images that it had not seen.

    images: int64 (n,), which ones. right: bool (n,). nll: float64 (n,), negative log-likelihood in nats.
    """

    images: NDArray[np.int64]
    right: NDArray[np.bool_]
    nll: NDArray[np.float64]

    @staticmethod
    def joined(parts: Sequence[Judged]) -> Judged:
        """Return all parts as one, in the order of the images."""
        images = np.concatenate([part.images for part in parts])
        order = np.argsort(images, kind="stable")
        columns = (np.concatenate([getattr(part, name) for part in parts])[order] for name in ("right", "nll"))
        return Judged(images[order], *columns)

    @property
    def accuracy(self) -> float:
        """Share of the images that is right."""
        return float(self.right.mean())

    @property
    def se(self) -> float:
        """Standard error of the accuracy."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / len(self.right))

    @property
    def mean_nll(self) -> float:
        """Mean negative log-likelihood in nats, at most WORST_NLL an image."""
        return float(np.minimum(np.nan_to_num(self.nll, nan=WORST_NLL), WORST_NLL).mean())

    @property
    def value(self) -> float:
        """What a search maximises: the accuracy, and between equal ones the likelihood, which never adds up to an
        image."""
        return self.accuracy - 0.5 / len(self.right) * self.mean_nll / WORST_NLL


@dataclass(frozen=True)
class Outcome:
    """A trial and what came of it.

    params: its values in the space. options: the keys that it set, empty for the defaults. accuracy with its standard
    error se, and nll: over all held-out images; None where it did not finish. reason: why it failed.
    """

    number: int
    stage: str
    state: str
    params: Mapping[str, Any]
    options: Mapping[str, Any]
    value: float | None = None
    accuracy: float | None = None
    se: float | None = None
    nll: float | None = None
    seconds: float | None = None
    reason: str = field(default="")

    @property
    def counts(self) -> bool:
        """Whether it may be the best: finished, at full length."""
        return self.state == FINISHED and self.stage != COARSE and self.value is not None


def best_of(outcomes: Sequence[Outcome]) -> Outcome | None:
    """Return the likeliest of those that count and are not less accurate than the best by half its standard error; the
    earliest of equals, None without any.

    Accuracies of a few hundred images tie, or differ by luck, where likelihoods still tell. (Tried by hand on `mlp` and
    `softmax` of scripts/bench/search, with three other seeds: of 30 random trials the most accurate had a test accuracy
    of 0.744 and 0.787, the likeliest within half a standard error 0.752 and 0.793.)
    """
    counting = [one for one in outcomes if one.counts]
    if not counting:
        return None
    top = max(counting, key=lambda one: (one.value, -one.number))
    assert top.accuracy is not None and top.se is not None
    least = top.accuracy - WITHIN * top.se
    near = [one for one in counting if one.accuracy is not None and one.accuracy >= least]
    return min(near, key=lambda one: (one.nll, one.number))


def best_values(outcomes: Sequence[Outcome], n: int) -> list[Outcome]:
    """Return the n outcomes that count with the largest values, of equal options the first one, in that order."""
    order = sorted((one for one in outcomes if one.counts), key=lambda one: (-(one.value or 0.0), one.number))
    different: list[Outcome] = []
    for one in order:
        if all(one.options != other.options for other in different):
            different.append(one)
    return different[:n]


def counts_of(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """Return how many trials were spent, by state, and in all."""
    states = [one.state for one in outcomes]
    return {"trials": len(outcomes), **{state: states.count(state) for state in (FINISHED, PRUNED, FAILED)}}


def trials_csv(outcomes: Sequence[Outcome], defaults: Mapping[str, Any]) -> str:
    """Return the table of all trials: number, stage, state, score, se, nll, seconds, the options, why it failed.

    defaults: what stands for an option that a trial did not set.
    """
    keys = list(dict.fromkeys(key for one in outcomes for key in one.options))
    rows: list[tuple[str | int, ...]] = []
    for one in outcomes:
        scores = [_cell(value) for value in (one.accuracy, one.se, one.nll)]
        options = [_cell(one.options.get(key, defaults.get(key))) for key in keys]
        seconds = "" if one.seconds is None else f"{one.seconds:.2f}"
        rows.append((one.number, one.stage, one.state, *scores, seconds, *options, one.reason))
    return csv_text(("number", "stage", "state", "score", "se", "nll", "seconds", *keys, "reason"), rows)


def spelled(value: Any) -> str:
    """Return an option's value as a flag takes it: 256,128 for a list."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _cell(value: Any) -> str:
    return "" if value is None else spelled(value)
