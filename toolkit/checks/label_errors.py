"""Labels that the other images contradict: probabilities of every image from models that have not seen it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from toolkit.checks.files import some_of, suspect
from toolkit.checks.finding import PASS, WARN, Finding, Suspect
from toolkit.data.manifest import Manifest
from toolkit.heads.blocks import Rows
from toolkit.heads.ridge import RidgeHead
from toolkit.heads.temperature import best_temperature

DOUBTFUL = 0.05  # probability of an image's own label below which somebody should look at it
RULED_OUT = 0.004  # below which a label counts as contradicted
LEAST_IMAGES = 20


def own_probabilities(
    features: Rows, labels: NDArray[np.int64], n_classes: int, widths: Sequence[int], seed: int = 0
) -> NDArray[np.float64]:
    """Return float64 (N, C): what ridge regression without an image says of it (leave-one-out), as probabilities.

    features: float32 (N, D) of frozen stages. labels: int64 (N,). The temperature is that of all images together, wrong
    labels included, which makes it less sure than it could be rather than more.
    """
    scores = RidgeHead(widths, seed=seed).fit(features, labels, n_classes).oof_
    values = scores / best_temperature(scores, labels)
    values = np.exp(values - values.max(axis=1, keepdims=True).astype(np.float64))
    probabilities: NDArray[np.float64] = values / values.sum(axis=1, keepdims=True)
    return probabilities


def label_findings(
    manifest: Manifest, rows: NDArray[np.int64], probabilities: NDArray[np.float64]
) -> tuple[Finding, list[Suspect]]:
    """Return the finding on labels, and the images whose own label has a probability below 5 %.

    rows: int64 (N,), labelled rows of the Manifest; probabilities: their `own_probabilities`. A model that is honest
    about its doubts rules out a share p of the true labels at a probability of p; where more than that are ruled out,
    labels are wrong, and the finding warns. (Confident learning, Northcutt et al. 2021, takes each class's mean
    probability as its threshold instead of 5 %: with a twentieth of the labels flipped that found 4/5 of them on
    digits and 3/5 on flowers, and 5 % finds 19/20 and 3/4 of them, as precisely.)
    """
    labels = manifest.labels[rows]
    own = probabilities[np.arange(len(rows)), labels]
    guesses = probabilities.argmax(axis=1)
    doubtful = np.flatnonzero((own < DOUBTFUL) & (guesses != labels))
    if len(rows) < LEAST_IMAGES:
        return Finding("label_errors", PASS, f"{len(rows)} images are too few to doubt a label"), []
    suspects = [
        suspect(
            manifest,
            int(rows[place]),
            "label_errors",
            f"looks like {manifest.classes[guesses[place]]} ({probabilities[place, guesses[place]]:.0%}; own label "
            f"{own[place]:.1%})",
            round(float(1 - own[place]), 4),
        )
        for place in doubtful
    ]
    ruled_out = int((own[doubtful] < RULED_OUT).sum())
    worst = doubtful[np.argsort(own[doubtful], kind="stable")]
    named = some_of([f"{manifest.paths[rows[place]]} ({manifest.classes[guesses[place]]}?)" for place in worst])
    seen = f"of {len(rows)} labels, the other images contradict {ruled_out} and make {len(doubtful)} doubtful"
    if ruled_out <= max(1.0, RULED_OUT * len(rows)):
        return Finding("label_errors", PASS, seen), suspects
    return Finding(
        "label_errors", WARN, f"{seen}: {named}", "look at the files of the --fix_list, from the top"
    ), suspects
