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
    """Classes of which each looks like the next, the last like the first. n: their images; n_fit: those that look like
    the other class; n_own: like their own."""

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
    """Return calibrated probabilities float64 (M, C) of other images by ridge regression on these.

    The doubt that LabelNoise found in these images' own labels is a part of them. features: float32 (N, D) of frozen
    stages, `widths` of each. labels: int64 (N,). others: float32 (M, D).
    """
    head = RidgeHead(widths, seed=seed).fit(features, labels, n_classes)
    with torch.no_grad():
        scores = head.head_(torch.from_numpy(np.ascontiguousarray(others))).double().numpy()
    seen = np.flatnonzero(np.bincount(labels, minlength=n_classes))
    noise = label_noise(head.oof_[:, seen], np.searchsorted(seen, labels))
    rate = max(noise.rate, DOUBT)
    return (1 - rate) * probabilities(scores, noise.temperature) + rate / n_classes


def told(
    manifest: Manifest,
    rows: NDArray[np.int64],
    features: Rows,
    widths: Sequence[int],
    splits: Sequence[int],
    seed: int = 0,
) -> str | None:
    """Return in words which classes changed places in some splits, or None.

    rows: int64 (N,), labelled rows of the Manifest; features: float32 (N, D), theirs. Where they are many, 5,000 that
    are spread over the training split say it of 2,000.
    """
    labels, split_of = manifest.labels[rows], manifest.splits[rows]
    train = _spread(np.flatnonzero(split_of == TRAIN), MOST_IMAGES)
    if len(train) < LEAST_IMAGES or len(np.unique(labels[train])) < 2:
        return None
    sentences = []
    for split in splits:
        others = _spread(np.flatnonzero(split_of == split), MOST_ASKED)
        if not len(others):
            continue
        chances = scores_by(features[train], labels[train], len(manifest.classes), widths, features[others], seed)
        for one in exchanges(chances, labels[others], np.unique(labels[train])):
            names = [manifest.classes[label] for label in one.classes]
            other = "the other" if len(names) == 2 else "another of them"
            sentences.append(
                f"in {SPLIT_NAMES[split]} {', '.join(names[:-1])} and {names[-1]} seem to have changed places: of "
                f"their {one.n} images {one.n_fit} look like {other}, going by train, and {one.n_own} like their own "
                "class"
            )
    return "; ".join(sentences) or None


def exchanges(
    chances: NDArray[np.float64], labels: NDArray[np.int64], known: NDArray[np.int64] | None = None
) -> list[Exchange]:
    """Return which classes look as if they had changed places, in a circle of two or more.

    chances: float64 (M, C), above 0, calibrated, from a model that has seen other images, whose labels are right.
    labels: int64 (M,). known: classes that it has seen; all by default. Of all ways to give the known classes of these
    images each other's names the most probable one is found (Kuhn's assignment) and taken apart into circles. One is
    reported if its odds against the names as they are exceed 100 to 1, times the number of circles as long as it, and
    if most of its images look like the other class. Of independent images chance would hardly give such odds to a
    hundredth of sets (Markov's inequality); of ten views of one image it might, hence the second.
    """
    from scipy.optimize import linear_sum_assignment

    n_classes = chances.shape[1]
    there = np.flatnonzero(np.bincount(labels, minlength=n_classes))
    classes = there if known is None else np.intersect1d(there, known)
    if len(classes) < 2:
        return []
    totals = np.zeros((n_classes, n_classes))  # of the images labelled a, were they b
    np.add.at(totals, labels, np.log(chances))
    named = np.arange(n_classes)
    named[classes] = classes[linear_sum_assignment(-totals[np.ix_(classes, classes)])[1]]
    guesses = chances.argmax(axis=1)
    found = []
    for circle in _circles(named):
        gain = sum(totals[one, named[one]] - totals[one, one] for one in circle)
        mine = np.isin(labels, circle)
        n, n_fit = int(mine.sum()), int((guesses[mine] == named[labels[mine]]).sum())
        if n_fit > n / 2 and gain > math.log(LEAST_ODDS) + len(circle) * math.log(len(classes)):
            found.append(Exchange(tuple(circle), n, n_fit, int((guesses[mine] == labels[mine]).sum())))
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
