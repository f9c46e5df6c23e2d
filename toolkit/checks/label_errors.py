"""Labels that the other images contradict: scores of every image from a model that has not seen it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.checks.files import some_of, suspect
from toolkit.checks.finding import PASS, WARN, Finding, Suspect
from toolkit.checks.label_noise import label_noise, probabilities
from toolkit.data.manifest import SPLIT_NAMES, TEST, TRAIN, VAL, Manifest
from toolkit.heads.blocks import Rows
from toolkit.heads.ridge import RidgeHead

DOUBTFUL = 0.05  # probability of an image's own label below which somebody should look at it
LEAST_IMAGES, LEAST_OF_A_CLASS = 20, 3
MANY = 1 / 3  # of the labels: if so many are doubtful, it is not the labels
LEAST_CHANCE = 1e-2  # that a split is contradicted so much more often than train by accident


def unseen_scores(
    features: Rows, labels: NDArray[np.int64], n_classes: int, widths: Sequence[int], seed: int = 0
) -> NDArray[np.float32]:
    """Return float32 (N, C): for every image the scores of the ridge regression without it (leave-one-image-out).

    features: float32 (N, D) of frozen stages, `widths` of each. labels: int64 (N,).
    """
    scores: NDArray[np.float32] = RidgeHead(widths, seed=seed).fit(features, labels, n_classes).oof_
    return scores


def label_findings(
    manifest: Manifest, rows: NDArray[np.int64], scores: NDArray[Any], exchanged: str | None = None
) -> tuple[Finding, list[Suspect]]:
    """Return the finding on labels, and the images whose own label has a probability below 5 %.

    rows: int64 (N,), labelled rows of the Manifest; scores: their `unseen_scores`. exchanged: what is told of
    classes that changed places (`toolkit.checks.exchanged`). It warns of that, and where LabelNoise says that
    some labels are drawn at random. With a twentieth of the labels flipped, the images below 5 % are 95 to 100 % of the
    flipped ones among 800 digits, 80 to 94 % among 700 flowers; 83 to 89 % and 61 to 72 % of those that are named are
    flipped. (Confident learning, Northcutt et al. 2021, whose threshold is each class's mean probability, found 80 and
    51 to 74 % of them there, nearly all digits and two thirds of the flowers rightly.)
    """
    several = (
        np.bincount(manifest.labels[rows], minlength=len(manifest.classes))[manifest.labels[rows]] >= LEAST_OF_A_CLASS
    )
    rows, scores = rows[several], scores[several]  # nobody else could know the class of the others
    if len(rows) < LEAST_IMAGES:
        seen = f"{len(rows)} images of classes with {LEAST_OF_A_CLASS} or more are too few to doubt a label"
        return Finding("label_errors", PASS, seen), []
    labels = manifest.labels[rows]
    noise = label_noise(scores, labels)
    found = probabilities(scores, noise.temperature)
    own, guesses = found[np.arange(len(rows)), labels], found.argmax(axis=1)
    doubtful = np.flatnonzero((own < DOUBTFUL) & (guesses != labels))
    doubtful = doubtful[np.argsort(own[doubtful], kind="stable")]
    suspects = []
    for place in doubtful:
        guess = f"looks like {manifest.classes[guesses[place]]} ({found[place, guesses[place]]:.0%}"
        detail = f"{guess}; own label {own[place]:.1%})"
        suspects.append(suspect(manifest, int(rows[place]), "label_errors", detail, round(float(1 - own[place]), 4)))
    odd = exchanged or _unrelated(labels, guesses) or _worse_split(manifest.splits[rows], labels, guesses)
    if odd is not None:
        return Finding(
            "label_errors", WARN, odd, "are labels and files in the same order, and classes rightly named?"
        ), suspects
    if not noise.is_there or not len(doubtful):
        why = (
            "no more than hard images make"
            if len(doubtful) < len(rows) / 3
            else "as the frozen network hardly tells them"
        )
        seen = f"of {len(rows)} labels {len(doubtful)} are doubtful, {why}"
        return Finding("label_errors", PASS, seen), suspects
    named = some_of([f"{manifest.paths[rows[place]]} ({manifest.classes[guesses[place]]}?)" for place in doubtful])
    seen = f"about {noise.rate:.1%} of {len(rows)} labels look random; {len(doubtful)} are doubtful: {named}"
    return Finding("label_errors", WARN, seen, "look at the files of the --fix_list, from the top"), suspects


def _unrelated(labels: NDArray[np.int64], guesses: NDArray[np.int64]) -> str | None:
    """Return a sentence where guesses are right no more often than always naming the largest class would be."""
    right, chance = float((guesses == labels).mean()), float(np.bincount(labels).max() / len(labels))
    if right > chance + 2 * np.sqrt(chance * (1 - chance) / len(labels)):
        return None
    return f"labels have nothing to do with the images: {right:.0%} can be told from the others, {chance:.0%} by chance"


def _worse_split(splits: NDArray[np.int8], labels: NDArray[np.int64], guesses: NDArray[np.int64]) -> str | None:
    """Return a sentence where labels of val or test are contradicted far more often than those of train.

    By Fisher's exact test, one-sided.
    """
    from scipy.stats import fisher_exact

    wrong = guesses != labels
    in_train = splits == TRAIN
    for split in (VAL, TEST):
        here = splits == split
        table = [[int((wrong & one).sum()), int((~wrong & one).sum())] for one in (here, in_train)]
        if here.any() and fisher_exact(table, alternative="greater").pvalue < LEAST_CHANCE:
            (bad, good), (bad_train, good_train) = table
            told = f"of {SPLIT_NAMES[split]} the other images contradict {bad} of {bad + good} labels"
            return f"{told}, of train {bad_train} of {bad_train + good_train}"
    return None
