"""The final: the best trials are judged again on other folds, and the winner against the defaults on yet others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from toolkit.errors import ToolkitError
from toolkit.tuning.gain import Gain
from toolkit.tuning.objective import Objective, all_folds
from toolkit.tuning.outcomes import Judged, Outcome, best_of, best_values

FINALISTS = 3
SECOND_DEAL, THIRD_DEAL = 1, 2  # of the folds; the trials had the first


@dataclass(frozen=True)
class Final:
    """What came of a search.

    best: the winner, as its trial found it. finalists: (number of the trial, accuracy on the folds of the search, on
    the second deal). gain: of the winner over the defaults, on the third deal; None where the defaults won.
    """

    best: Outcome
    finalists: tuple[tuple[int, float, float], ...]
    gain: Gain | None


def play_final(outcomes: Sequence[Outcome], deal: Callable[[int], Objective]) -> Final | None:
    """Return the Final of some trials; None where none of them counts and can be trained again.

    deal: gives the objective on other folds. The three best trials are judged again, since the luck of its folds is
    part of why a trial is the best of many; the mean of both deals decides, and between those within half a standard
    error the likelihood. Then the winner and the defaults are judged on a third deal, which chose neither.
    """
    finalists = best_values(outcomes, FINALISTS)
    if not finalists:
        return None
    if [one.number for one in finalists] == [0]:
        return Final(finalists[0], (), None)
    second = deal(SECOND_DEAL)
    again: dict[int, Judged] = {}
    for one in finalists:
        with suppress(ToolkitError):  # what diverges on other folds is out
            again[one.number] = all_folds(second, one.options)
    finalists = [one for one in finalists if one.number in again]
    means = []
    for one in finalists:
        other = again[one.number]
        assert one.value is not None and one.accuracy is not None and one.nll is not None
        accuracy, value = (one.accuracy + other.accuracy) / 2, (one.value + other.value) / 2
        means.append(replace(one, value=value, accuracy=accuracy, nll=(one.nll + other.mean_nll) / 2))
    winner = best_of(means)
    if winner is None:
        return None
    best = next(one for one in finalists if one.number == winner.number)
    told = tuple((one.number, one.accuracy or 0.0, again[one.number].accuracy) for one in finalists)
    if best.number == 0:
        return Final(best, told, None)
    third = deal(THIRD_DEAL)
    try:
        ours = all_folds(third, best.options)
    except ToolkitError:  # what diverges on some folds is no better than the defaults
        return Final(outcomes[0], told, None)
    try:
        return Final(best, told, Gain.of(ours, all_folds(third, {})))
    except ToolkitError:  # how much is won is unknown
        return Final(best, told, None)
