"""Evidence: what was counted and measured of a data set and a backbone before a plan is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.planning.facts import Facts
from toolkit.planning.probes import Probe
from toolkit.planning.similarity import Similarity

# Heads that could see six or eight stages instead of four were right for 0.7 and 0.8 points more of images unlike
# ImageNet's (22 sets: flowers at 96 px, also grey, tiny and in false colours; digits), and for as many of photographs
# and stamps at 224 px.
ALL_STAGES_BELOW = 0.75
USUAL_TAPS = 4


@dataclass(frozen=True)
class Evidence:
    """What a plan is decided from.

    facts: counts of the split. similarity: to what the backbone was trained on; None where nobody measured it, or it
    cannot be. probes: of instant heads at every depth, alone and together; empty likewise. operations: multiply-adds by
    stage for one image. capacity: of them a second, that count as what the device does; a number by its kind and its
    cores, never a measurement, so that one machine always decides alike. taps: those that the head was told to see.
    """

    facts: Facts
    similarity: Similarity | None = None
    probes: tuple[Probe, ...] = ()
    operations: tuple[int, ...] = ()
    capacity: float = 0.0
    taps: tuple[int, ...] | None = None

    @property
    def head(self) -> Probe | None:
        """The best of the probes that stand for what the head may see; None where there are none."""
        return head_of(self.probes, None if self.similarity is None else self.similarity.value, self.taps)


def head_of(probes: Sequence[Probe], similarity: float | None, taps: tuple[int, ...] | None = None) -> Probe | None:
    """Return the best probe of those that a head may be: on these taps, if they are given, else on the last stages, up
    to four of them, or any number where images are unlike those of the training; with fewer taps of equals."""
    if taps is not None:
        return next((probe for probe in probes if probe.taps == taps), None)
    most = len(probes) if similarity is not None and similarity < ALL_STAGES_BELOW else USUAL_TAPS
    last = max((probe.taps[-1] for probe in probes), default=0)
    heads = [probe for probe in probes if probe.taps[-1] == last and len(probe.taps) <= most]
    return max(heads, key=lambda probe: (probe.accuracy, -len(probe.taps)), default=None)
