"""What instant heads make of each depth of the frozen network: the evidence that a plan rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.allocator import hand_back_freed_memory
from toolkit.heads.blocks import Picked, Rows
from toolkit.heads.candidates import scored_entry
from toolkit.heads.examples import Examples
from toolkit.heads.ridge import ridge_trial, ridges_at_once
from toolkit.heads.threads import at_once, few_threads

# Images: a standard error of 1,000 is 1.6 points at most, and all depths take seconds. But a handful of a class tells
# little of it: of 200 noisy classes with 30 images each (normal clouds, 64 features) ridge regression on 5 a class is
# right for 0.586, on 20 for 0.905, and a head on all for 0.944 of fresh ones. So there are 20 of each class; at most as
# many as that are of 1,000 classes, for the work grows with images and classes.
PROBED, PROBED_A_CLASS, PROBED_AT_MOST = 1_000, 20, 20_000


@dataclass(frozen=True)
class Probe:
    """How ridge regression on the pooled outputs of some stages does on images that it has not seen.

    taps: the stages. accuracy: share of the images that is right, each judged without itself (leave-one-image-out), and
    its standard error `se`. nll: mean negative log-likelihood in nats, after temperature scaling. n: images.
    """

    taps: tuple[int, ...]
    accuracy: float
    se: float
    nll: float
    n: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, as a run has them of its other heads."""
        return {"head": "ridge", **asdict(self), "taps": list(self.taps)}


def probe_stages(
    features: Rows,
    labels: NDArray[np.int64],
    n_classes: int,
    widths: Sequence[int],
    taps: Sequence[int],
    seed: int = 0,
    wanted: Sequence[int] | None = None,
) -> tuple[Probe, ...]:
    """Return a Probe of every tap alone, in their order, then of the last two together, the last three, and so on.

    features: float32 (N, D), pooled outputs of `taps` side by side, `widths` of each. labels: int64 (N,). Of more than
    1,000 images, and more than 20 a class, a stratified sample is probed. wanted: other taps together, last of all. No
    probe at all where most images of the sample are the only ones of their class: each judged without itself, none of
    them could be right, whatever the features. Raises DataError for features that are not finite.

    For 2,064 random features of 8 taps it takes one core 3 s with 50 classes of 20 images, 29 s with 200 of 20 and 73 s
    with 1,500 of 6, and 250 to 270 MB beside the features each time (see RidgeHead).
    """
    rows = stratified(labels, probed_images(len(labels), n_classes), seed)
    if 2 * (np.bincount(labels[rows]) == 1).sum() > len(rows):
        return ()
    some, alone = Picked(features, rows), len(taps)
    sets = [(place,) for place in range(alone)] + [tuple(range(first, alone)) for first in range(alone - 2, -1, -1)]
    if wanted is not None:
        sets.append(tuple(list(taps).index(tap) for tap in wanted))
    whole = Examples(some, labels[rows], n_classes, widths, seed=seed)

    def probe(places: tuple[int, ...]) -> Probe:
        one = scored_entry("ridge", places, ridge_trial(whole, places, whole.scored), whole).candidate
        return Probe(tuple(taps[place] for place in places), one.accuracy, one.se, one.nll, len(whole.scored))

    with few_threads(len(rows), features.shape[1]):
        found = tuple(at_once(probe, dict.fromkeys(sets), ridges_at_once(whole)))
    hand_back_freed_memory()
    return found


def probed_images(n_images: int, n_classes: int) -> int:
    """Return how many of the images are probed."""
    return min(n_images, max(PROBED, PROBED_A_CLASS * n_classes), PROBED_AT_MOST)


def stratified(labels: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    """Return `most` of the rows, ascending, or all if they are no more: of each class its share, to within one."""
    if len(labels) <= most:
        return np.arange(len(labels))
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):  # the k-th of a class's n images stands at (k + ½) / n of the line
        mine = np.flatnonzero(labels[shuffled] == label)
        place[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
    return np.sort(shuffled[np.argsort(place, kind="stable")[:most]])
