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

PROBED_AT_MOST = 1_000  # images: then a standard error is 1.6 points at most, and all depths take seconds


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
    1,000 images a stratified sample is probed. wanted: other taps together, last of all. Raises DataError for features
    that are not finite.
    """
    rows = stratified(labels, PROBED_AT_MOST, seed)
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
