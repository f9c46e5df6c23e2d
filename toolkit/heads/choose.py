"""choose_head: which instant head, on which taps; the simplest that is as good as the best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from toolkit.allocator import hand_back_freed_memory
from toolkit.errors import SettingError, unknown_name
from toolkit.heads.blocks import Rows
from toolkit.heads.candidates import Candidate, Entry, better, scored_entry, simplest
from toolkit.heads.examples import Examples, Trial
from toolkit.heads.linear import LinearHead
from toolkit.heads.logistic import logistic_trial
from toolkit.heads.neighbours import neighbour_trial
from toolkit.heads.ridge import ridge_trial, ridges_at_once
from toolkit.heads.temperature import fold_temperature
from toolkit.heads.threads import at_once, few_threads
from toolkit.heads.votes import NeighbourVotes

AUTO, LINEAR = "auto", "linear"
TRIALS: dict[str, Callable[[Examples, Sequence[int], NDArray[np.int64]], Trial]] = {
    "ridge": ridge_trial,
    "logistic": logistic_trial,
    "knn": neighbour_trial,
}
KINDS = tuple(TRIALS)
OWN_TAPS_UP_TO = 1_000  # rows; above, ridge regression chooses the taps for the other kinds too
LOGISTIC_UP_TO = 5e9  # rows × features × classes; above, a descent takes longer than it is worth
NEIGHBOURS_UP_TO = 5_000  # rows; above, the head would be larger than its backbone


@dataclass(frozen=True, eq=False)
class ChosenHead:
    """The head that won, and the field it won against.

    head: (N, D) raw features of `taps`, side by side → (N, C) scores whose softmax is calibrated: the temperature is
    in it. taps: positions into the widths. strength: λ, C or k. candidates: in the order in which they were tried.
    """

    head: nn.Module
    kind: str
    taps: tuple[int, ...]
    strength: float
    temperature: float
    candidates: tuple[Candidate, ...]

    @property
    def candidate(self) -> Candidate:
        """The winner's own line."""
        return next(one for one in self.candidates if (one.kind, one.taps) == (self.kind, self.taps))

    def __str__(self) -> str:
        return "\n".join(f"{'→' if one is self.candidate else ' '} {one}" for one in self.candidates)


def choose_head(
    X: Rows,
    y: NDArray[np.int64],
    n_classes: int,
    widths: Sequence[int],
    *,
    kind: str = AUTO,
    tap_sets: Sequence[Sequence[int]] | None = None,
    images: NDArray[np.int64] | None = None,
    balanced: bool = False,
    seed: int = 0,
) -> ChosenHead:
    """Return the simplest head that is as good as the best but for chance, fitted to all rows.

    X: raw pooled features float32 (N, D) of one or more taps side by side, `widths` features each. y: int64 (N,).
    kind: ridge, logistic, knn, auto, where all compete, or linear, where those do that can be trained further.
    tap_sets: positions into `widths` that compete; by default every suffix: the last tap, the last two, and so on.
    images: int64 (N,), equal for the views of an image.

    All candidates are scored on the same images, each on its first row (the clean view), by models that have seen none
    of its views: ridge and k-NN without that image alone, logistic regression without a fold. One is worse than
    another if the mean difference over these images is more than one paired standard error. The tap set with the
    fewest taps wins that is not worse than the best by even half of one, neither in errors nor in NLL after temperature
    scaling: more taps cost nothing, since the pass goes by them anyway. In `auto` ridge regression chooses the taps,
    and another kind takes its place on them only if ridge is worse in both. With `balanced`, images count in these
    means by their class's weight.

    (The unpaired error, that of the accuracy itself, gave a point of accuracy away on 130 to 500 images. Over 80 splits
    of three data sets, letting all kinds compete on all tap sets was as accurate as this and three times as slow.)

    What is tried depends on counts alone. With one kind given, tap sets compete by that kind up to 1,000 rows and by
    ridge above. In `auto`, logistic regression is tried while rows × features × classes ≤ 5e9, k-NN up to 5,000 rows;
    60,000 rows of 1,900 features and 10 classes take half a minute to a minute on 2 cores. Memory: see RidgeHead.

    Raises SettingError for an unknown kind or tap, DataError for features that are not finite, ValueError for shapes
    that do not fit.
    """
    if kind not in (AUTO, LINEAR, *KINDS):
        raise unknown_name("head", kind, (AUTO, *KINDS))
    sets = checked_tap_sets(tap_sets, len(widths))
    examples = Examples(X, y, n_classes, widths, images=images, balanced=balanced, seed=seed)
    with few_threads(*X.shape):
        winner, entries = _compete(examples, sets, kind)
        head = winner.trial.build()
    if isinstance(head, LinearHead):
        fold_temperature(head, winner.temperature, examples.seen)
    elif isinstance(head, NeighbourVotes):
        head.temperature.fill_(winner.temperature)
    won = winner.candidate
    tried = tuple(entry.candidate for entry in entries)
    return ChosenHead(head, won.kind, won.taps, won.strength, winner.temperature, tried)


def checked_tap_sets(tap_sets: Sequence[Sequence[int]] | None, n_taps: int) -> list[tuple[int, ...]]:
    """Return the tap sets, each ascending and once, those with fewer taps first; raises SettingError."""
    if tap_sets is None:
        tap_sets = [range(start, n_taps) for start in range(n_taps)]
    sets = list(dict.fromkeys(tuple(sorted(set(taps))) for taps in tap_sets))
    if not sets:
        raise SettingError("head: at least one set of taps expected, got none")
    for taps in sets:
        if not taps or taps[0] < 0 or taps[-1] >= n_taps:
            raise SettingError(f"head: taps 0 to {n_taps - 1} expected, got {list(taps)}")
    return sorted(sets, key=len)


def _compete(examples: Examples, sets: list[tuple[int, ...]], kind: str) -> tuple[Entry, list[Entry]]:
    """Return the winner and all entries, in the order in which they were tried."""
    weights = examples.image_weights(examples.scored)
    several = kind in (AUTO, LINEAR)
    own_taps = not several and (len(examples.labels) <= OWN_TAPS_UP_TO or len(sets) == 1)
    first = kind if own_taps else "ridge"
    n_threads = ridges_at_once(examples) if first == "ridge" else 1
    entries = at_once(lambda taps: _entry(examples, first, taps), sets, n_threads)
    winner = simplest(entries, weights)
    if several:
        for other in _challengers(examples, kind):
            entries.append(_entry(examples, other, winner.candidate.taps))
            if better(entries[-1], winner, weights):
                winner = entries[-1]
    elif kind != first:
        winner = _entry(examples, kind, winner.candidate.taps)
        entries.append(winner)
    return winner, entries


def _challengers(examples: Examples, kind: str) -> list[str]:
    """Return the kinds that compete with ridge in `auto` and `linear`."""
    n_rows, width = examples.features.shape
    logistic = n_rows * width * examples.n_classes <= LOGISTIC_UP_TO
    return ["logistic"] * logistic + ["knn"] * (kind == AUTO and n_rows <= NEIGHBOURS_UP_TO)


def _entry(examples: Examples, kind: str, taps: tuple[int, ...]) -> Entry:
    entry = scored_entry(kind, taps, TRIALS[kind](examples, taps, examples.scored), examples)
    hand_back_freed_memory()  # the next one's matrices are of other sizes
    return entry
