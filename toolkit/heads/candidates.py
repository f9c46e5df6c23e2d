"""Candidates: how heads do on images that their models have not seen, and which of them is good enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.heads.examples import Examples, Trial
from toolkit.heads.temperature import among_seen, best_temperature, negative_log_likelihoods

MEASURES = ("errors", "nll")
# More taps cost nothing, as the pass goes by them anyway: over 64 splits of three data sets half a standard error was
# 0.1 points more accurate than a whole one, on each of them, and likelier.
TAPS_ERRORS = 0.5
STRENGTH_NAMES = {"ridge": "λ", "logistic": "C", "knn": "k"}


@dataclass(frozen=True)
class Candidate:
    """How one kind of head on some taps does on images that its model has not seen.

    accuracy: share of the images that is right, with its standard error `se`. nll: mean negative log-likelihood in
    nats, after temperature scaling on the same scores, of images whose class has another one. strength: λ, C or k.
    """

    kind: str
    taps: tuple[int, ...]
    accuracy: float
    se: float
    nll: float
    strength: float

    def __str__(self) -> str:
        taps = "+".join(map(str, self.taps))
        return (
            f"{self.kind} on tap {taps}: accuracy {self.accuracy:.3f} ± {self.se:.3f}, NLL {self.nll:.3f} "
            f"({STRENGTH_NAMES[self.kind]} {self.strength:.3g})"
        )


@dataclass(frozen=True, eq=False)
class Entry:
    """A candidate with its trial, its temperature, and its losses on every scored image, float64 (n,) by measure."""

    candidate: Candidate
    trial: Trial
    temperature: float
    losses: dict[str, NDArray[np.float64]]


def scored_entry(kind: str, taps: tuple[int, ...], trial: Trial, examples: Examples) -> Entry:
    """Return the Entry of a trial whose scores are those of `examples.scored`."""
    rows = examples.scored
    learnable = examples.learnable[rows]
    scores, positions = among_seen(trial.scores, examples.labels[rows], examples.seen)
    temperature = best_temperature(scores[learnable], positions[learnable])
    nll = negative_log_likelihoods(scores, positions, temperature) * learnable
    errors = (scores.argmax(axis=1) != positions).astype(np.float64)
    accuracy = 1.0 - float(errors.mean())
    candidate = Candidate(
        kind,
        taps,
        accuracy=accuracy,
        se=float(np.sqrt(accuracy * (1.0 - accuracy) / len(rows))),
        nll=float(nll.sum() / max(1, learnable.sum())),
        strength=trial.strength,
    )
    return Entry(candidate, trial, temperature, {"errors": errors, "nll": nll})


def simplest(entries: Sequence[Entry], weights: NDArray[np.float64]) -> Entry:
    """Return the first of the entries, simple ones first, that is not worse than the best by half a standard error.

    weights: float64 (n,), of the scored images. The best by errors and the best by likelihood are what all are held
    against; where none is as good as both, the best likelihood wins.
    """
    best = [min(entries, key=lambda one: float(weights @ one.losses[measure])) for measure in MEASURES]
    for entry in entries:
        if not any(
            worse(entry, one, measure, weights, TAPS_ERRORS) for one, measure in zip(best, MEASURES, strict=True)
        ):
            return entry
    return best[-1]


def better(one: Entry, other: Entry, weights: NDArray[np.float64]) -> bool:
    """Say whether `one` is better than `other` by more than chance in every measure."""
    return all(worse(other, one, measure, weights) for measure in MEASURES)


def worse(one: Entry, other: Entry, measure: str, weights: NDArray[np.float64], errors: float = 1.0) -> bool:
    """Say whether `one` is worse than `other` by more than so many paired standard errors of the mean difference."""
    share = weights / weights.sum()
    difference = one.losses[measure] - other.losses[measure]
    mean = float(share @ difference)
    return mean > errors * float(np.sqrt(share**2 @ (difference - mean) ** 2))
