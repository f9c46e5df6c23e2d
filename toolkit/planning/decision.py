"""The decision of a plan: how much of the network to train, from what was measured; short pure functions.

The notes' table, as what it comes to here: little data, like ImageNet's: a head on the last stages; little and unlike
it: a head that sees earlier stages too (the probes choose them); more and like it: the top stages at 1/10 of the rate;
more and unlike it: those below at 1/100 as well; much: everything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from toolkit.plan import partial_cut
from toolkit.planning.evidence import Evidence

# Share of the head's errors that a strategy takes away: constant, per doubling of the training images beyond 100, per
# unit of dissimilarity (1 − similarity). Least squares over scripts/bench/results/plan_regret.jsonl (64 and 96 px, 200
# steps at most), by scripts/bench/regret --fit; what they predict of a data set that was left out is in
# scripts/bench/results. `full` by all seeds, which goes with the long trainings of scripts/bench/finetune too: of 700,
# 1,002 and 7,000 garments it took away 11, 15 and 22 % of the errors, and 14, 15 and 21 % are expected. The others by
# the first seed: by all three they are 0.029, 0, 0 and 0.035, 0, 0, but at 224 px `partial` takes away 13 % of the
# errors of 490 photographs and 6 % of those of 238 stamps, of which these expect 7 and 6 % and those 4.
COEFFICIENTS: dict[str, tuple[float, float, float]] = {
    "late": (0.025, 0.008, 0.0),
    "partial": (0.042, 0.013, 0.0),
    "full": (0.080, 0.022, 0.0),
}
# To train on: the trial of fewer never was sure enough to keep anything (10 flowers a class, six seeds of two
# strategies, scripts/bench/finetune), and the notes have small sets freeze everything.
FEWEST_IMAGES = 100
FEWEST_A_CLASS = 5  # in the median class: smaller ones were not tried
LEAST_GAIN = 0.005  # half a point of accuracy: less is not worth a training
BACKWARD = 3  # times the work of a forward pass that a training step is
TRAININGS = 1.8  # of all images: a trial without a fifth of them, and then the training that is kept


@dataclass(frozen=True)
class Way:
    """One way to go. cut: the first stage that trains, the number of stages for a head. gain: accuracy that it is
    expected to win over the head. operations: multiply-adds of its whole training. affordable: whether they fit into
    the budget."""

    strategy: str
    cut: int
    gain: float
    operations: float
    affordable: bool = True

    def name(self, n_stages: int) -> str:
        """Return what it is called: the strategy, and which stages train where that does not say it."""
        if self.strategy != "partial":
            return self.strategy
        some = f"stage {self.cut}" if self.cut == n_stages - 1 else f"stages {self.cut} to {n_stages - 1}"
        return f"{self.strategy} ({some})"


@dataclass(frozen=True)
class Decision:
    """The way to go, the next best one, all that were considered, and why."""

    way: Way
    runner_up: Way | None
    ways: tuple[Way, ...]
    reasons: tuple[str, ...]


def ways_of(
    evidence: Evidence,
    stage_sizes: Sequence[int],
    images: Mapping[str, int],
    strategies: Sequence[str],
    cut: int | None = None,
    coefficients: Mapping[str, tuple[float, float, float]] | None = None,
) -> tuple[Way, ...]:
    """Return the ways that are open, the head first.

    images: that each strategy passes through its training, epochs times images. strategies: that may be chosen. cut:
    the only one of `partial`, where it was set. coefficients: of the expected gains; COEFFICIENTS by default.
    """
    n_stages, work = len(stage_sizes), evidence.operations
    ways = [Way("head", n_stages, 0.0, 0.0)] if "head" in strategies else []
    if ways and (is_few(evidence) or not sum(stage_sizes)):
        return tuple(ways)
    late, usual = late_cut(stage_sizes), partial_cut(stage_sizes)
    for first in dict.fromkeys((late, usual) if cut is None else (cut,)):
        is_full = "full" in strategies and not sum(stage_sizes[:first])  # nothing with weights stays frozen
        if "partial" in strategies and not is_full:
            name = "late" if first >= late > usual else "partial"
            training = TRAININGS * images["partial"] * BACKWARD * sum(work[first:])
            ways.append(Way("partial", first, expected_gain(name, evidence, coefficients), training))
    if "full" in strategies:
        training = TRAININGS * images["full"] * BACKWARD * sum(work)
        ways.append(Way("full", 0, expected_gain("full", evidence, coefficients), training))
    return tuple(ways)


def is_few(evidence: Evidence) -> bool:
    """Return whether there are too few images for anything but a head."""
    facts = evidence.facts
    return facts.n_train < FEWEST_IMAGES or facts.median_per_class < FEWEST_A_CLASS


def way_name(way: Way, stage_sizes: Sequence[int]) -> str:
    """Return which of COEFFICIENTS a way that trains goes by."""
    late = late_cut(stage_sizes)
    return "full" if way.strategy == "full" else "late" if way.cut >= late > partial_cut(stage_sizes) else "partial"


def late_cut(stage_sizes: Sequence[int]) -> int:
    """Return the last stage but one of those that have weights: the notes' top and middle, and nothing below."""
    weighty = [stage for stage, size in enumerate(stage_sizes) if size]
    return max(min(1, len(stage_sizes) - 1), weighty[-2]) if len(weighty) > 1 else 0


def expected_gain(
    name: str, evidence: Evidence, coefficients: Mapping[str, tuple[float, float, float]] | None = None
) -> float:
    """Return the accuracy that a way is expected to win over the head: a share of the head's errors."""
    head = evidence.head
    if head is None:
        return 0.0
    constant, a_doubling, unlike = (coefficients or COEFFICIENTS)[name]
    doublings = math.log2(max(1, evidence.facts.n_train) / 100)
    dissimilarity = 0.0 if evidence.similarity is None else 1 - evidence.similarity.value
    share = constant + a_doubling * doublings + unlike * dissimilarity
    return min(1.0, max(-1.0, share)) * (1 - head.accuracy)


def decide(evidence: Evidence, ways: Sequence[Way], budget_s: float) -> Decision:
    """Return the way with the largest expected gain of those whose work fits into a budget of seconds.

    Work is counted, and held against what the device counts for: one machine always decides alike. Of ways whose gains
    differ by less than half a point the one with less work is taken; but the head, where it is open, if no other way
    is expected to win half a point over it. Where nothing fits, the least work is taken.
    """
    limit = budget_s * evidence.capacity
    ways = [replace(way, affordable=way.operations <= limit) for way in ways]
    open_ways = [way for way in ways if way.affordable] or [min(ways, key=lambda way: way.operations)]
    worth = open_ways
    if open_ways[0].strategy == "head":
        worth = [way for way in open_ways if way.gain >= LEAST_GAIN] or open_ways[:1]
    best = max(way.gain for way in worth)
    chosen = min((way for way in worth if way.gain > best - LEAST_GAIN), key=lambda way: way.operations)
    others = [way for way in ways if way is not chosen]
    runner_up = max(others, key=lambda way: (way.affordable, way.gain), default=None)
    reasons = _reasons(evidence, ways, chosen, budget_s)
    return Decision(chosen, runner_up, tuple(ways), tuple(reasons))


def _reasons(evidence: Evidence, ways: Sequence[Way], chosen: Way, budget_s: float) -> list[str]:
    """Return in words what decided."""
    facts, similarity, head, n_stages = evidence.facts, evidence.similarity, evidence.head, len(evidence.operations)
    assert head is not None
    like = "" if similarity is None else f" that are {similarity.in_words()} (similarity {similarity.value:.2f})"
    stages = "stage " if len(head.taps) == 1 else "stages "
    reasons = [
        f"{facts.n_train} training images{like}",
        f"ridge regression on {stages}{'+'.join(map(str, head.taps))} is right for {head.accuracy:.3f} ± {head.se:.3f} "
        "of those it has not seen",
    ]
    others = [way for way in ways if way.strategy != "head"]
    if others:
        gains = ", ".join(f"{way.name(n_stages)} {100 * way.gain:+.1f}" for way in others)
        reasons.append(f"expected over that head, in points of accuracy: {gains}")
    dear = [way.name(n_stages) for way in ways if not way.affordable]
    if dear:
        reasons.append(f"beyond the budget of {budget_s / 60:g} minutes by the count of operations: {', '.join(dear)}")
    return [*reasons, _conclusion(evidence, others, chosen, n_stages)]


def _conclusion(evidence: Evidence, others: Sequence[Way], chosen: Way, n_stages: int) -> str:
    if not chosen.affordable:
        return f"{chosen.name(n_stages)} all the same: it is the least work of what is open"
    if chosen.strategy != "head":
        return f"{chosen.name(n_stages)}: the least work of what is within half a point of the best"
    if not others:
        few = f"fewer than {FEWEST_IMAGES} of them, or than {FEWEST_A_CLASS} a class: the pretrained stages stay"
        return few if is_few(evidence) else "nothing but a head goes with what is set"
    if any(way.gain >= LEAST_GAIN for way in others):
        return "what is expected to win half a point is beyond the budget: the pretrained stages stay as they are"
    return "nothing else is expected to win half a point: the pretrained stages stay as they are"
