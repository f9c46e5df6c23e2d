"""Classes that changed places in val or test: what a model of the training images would call them, name by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from toolkit.checks.label_noise import label_noise, probabilities
from toolkit.data.manifest import SPLIT_NAMES, TRAIN, Manifest
from toolkit.heads.blocks import Rows
from toolkit.heads.ridge import RidgeHead

LEAST_IMAGES, MOST_IMAGES = 20, 5_000  # to train on
MOST_ASKED = 2_000  # images of a split
DOUBT = 0.02  # of a calibrated probability that is spread over all classes: no single image decides
LEAST_ODDS = 100.0  # to 1, beyond what so many ways of changing places give by chance


@dataclass(frozen=True)
class Exchange:
    """Classes of which each looks like the next, the last like the first. n: their images; n_fit: those that are called
    by the other name; n_own: by their own."""

    classes: tuple[int, ...]
    n: int
    n_fit: int
    n_own: int


def scores_by(
    features: Rows,
    labels: NDArray[np.int64],
    n_classes: int,
    widths: Sequence[int],
    others: NDArray[np.float32],
    seed: int = 0,
) -> NDArray[np.float64]:
    """Return probabilities float64 (M, C) of other images by ridge regression on these.

    features: float32 (N, D) of frozen stages, `widths` of each. labels: int64 (N,). others: float32 (M, D).
    """
    head = RidgeHead(widths, seed=seed).fit(features, labels, n_classes)
    with torch.no_grad():
        scores = head.head_(torch.from_numpy(np.ascontiguousarray(others))).double().numpy()
    seen = np.flatnonzero(np.bincount(labels, minlength=n_classes))
    noise = label_noise(head.oof_[:, seen], np.searchsorted(seen, labels))
    return probabilities(scores, noise.temperature)


def told(
    manifest: Manifest,
    rows: NDArray[np.int64],
    features: Rows,
    widths: Sequence[int],
    splits: Sequence[int],
    seed: int = 0,
) -> str | None:
    """Return a sentence on classes that changed places in one of some splits, or None.

    rows: int64 (N,), labelled rows of the Manifest; features: float32 (N, D), theirs. Where they are many, 5,000 that
    are spread over the training split say it of 2,000.
    """
    labels, split_of = manifest.labels[rows], manifest.splits[rows]
    train = _spread(np.flatnonzero(split_of == TRAIN), MOST_IMAGES)
    if len(train) < LEAST_IMAGES or len(np.unique(labels[train])) < 2:
        return None
    for split in splits:
        others = _spread(np.flatnonzero(split_of == split), MOST_ASKED)
        if not len(others):
            continue
        chances = scores_by(features[train], labels[train], len(manifest.classes), widths, features[others], seed)
        for one in exchanges(chances, labels[others]):
            names = [manifest.classes[label] for label in one.classes]
            other = "the other" if len(names) == 2 else "another of them"
            who = f"{', '.join(names[:-1])} and {names[-1]}"
            return (
                f"in {SPLIT_NAMES[split]} {who} seem to have changed places: of their {one.n} images {one.n_fit} look "
                f"like {other}, going by train, and {one.n_own} like their own class"
            )
    return None


def exchanges(chances: NDArray[np.float64], labels: NDArray[np.int64]) -> list[Exchange]:
    """Return which classes look as if they had changed places, in a circle of two or more.

    chances: float64 (M, C), calibrated, from a model that has seen other images, whose labels are right. labels: int64
    (M,). Of all ways to give the classes of these images other names the most probable one is found (Kuhn's assignment)
    and taken apart into circles. One is reported if its odds against the names as they are exceed 100 to 1, times the
    number of circles as long as it: by chance that happens in less than a hundredth of sets (Markov's inequality).
    """
    from scipy.optimize import linear_sum_assignment

    n_classes = chances.shape[1]
    logs = np.log((1 - DOUBT) * chances + DOUBT / n_classes)
    totals = np.zeros((n_classes, n_classes))  # of the images labelled a, were they b
    np.add.at(totals, labels, logs)
    there = np.bincount(labels, minlength=n_classes) > 0
    named = linear_sum_assignment(-totals)[1]
    guesses = chances.argmax(axis=1)
    found = []
    for circle in _circles(named):
        gain = sum(totals[one, named[one]] - totals[one, one] for one in circle)
        if gain <= math.log(LEAST_ODDS) + len(circle) * math.log(n_classes) or not there[list(circle)].any():
            continue
        mine = np.isin(labels, circle)
        fits = guesses[mine] == named[labels[mine]]
        n_own = int((guesses[mine] == labels[mine]).sum())
        found.append(Exchange(tuple(circle), int(mine.sum()), int(fits.sum()), n_own))
    return found


def _spread(places: NDArray[np.int64], at_most: int) -> NDArray[np.int64]:
    """Return so many places, evenly spread: they are sorted by class and name."""
    return places if len(places) <= at_most else places[np.linspace(0, len(places) - 1, at_most).astype(np.int64)]


def _circles(named: NDArray[np.int64]) -> list[list[int]]:
    """Return the circles of a permutation, without those of one."""
    found, left = [], set(range(len(named)))
    while left:
        circle = [min(left)]
        while (following := int(named[circle[-1]])) != circle[0]:
            circle.append(following)
        left -= set(circle)
        if len(circle) > 1:
            found.append(circle)
    return found
