"""How far to go from the head: mixtures of the starting and the fine-tuned weights, judged on images held out of both.

Interpolation between a zero-shot or linear-probe start and its fine-tuned end, "WiSE-FT": Wortsman et al. 2022, "Robust
fine-tuning of zero-shot models". Frozen BatchNorm statistics make it safe here: there are none that would have to be
taken anew for a mixture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from toolkit.heads.temperature import best_temperature, negative_log_likelihoods

LEAST_GAIN = 1e-3  # nats an image: less is not worth a training
# Standard errors that a gain must have. With one, what was kept of `partial` on the word of 50 flowers (gains of 1.0 to
# 1.6 of them) changed the validation accuracy by -1.0, 0.9 and 0.5 points: by nothing. On the word of 98 the gains that
# were kept had 3.6 and 3.5, and won 3.4 and 1.4 points.
SURE = 2.0
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the fine-tuned weights; 0 is the head on the frozen features

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Mixture:
    """How one mixture did on the images held out: its share of the fine-tuned weights, its accuracy, and its negative
    log-likelihood in nats after a temperature of its own (sharpness is no merit and no fault)."""

    share: float
    accuracy: float
    nll: float
    temperature: float = 1.0


@dataclass(frozen=True)
class Verdict:
    """Which share of the fine-tuned weights to keep, and the evidence.

    share: 0 to 1. n: images held out. gain, gain_se: nats an image that the choice wins over the head, and the standard
    error of that mean, image by image; where the head stays, of the mixture that came nearest to being kept, 0 if none
    came near. mixtures: of SHARES, in their order. reason: why the head stays, where these do not tell. trials: how
    many trainings were judged; each image was held out of one of them.
    """

    share: float
    n: int
    gain: float
    gain_se: float
    mixtures: tuple[Mixture, ...]
    reason: str = ""
    trials: int = 1

    def could_become_sure(self, times: float) -> bool:
        """Return whether the head stays and a mixture would be kept if so many times the images said the same."""
        return self.share == 0 and self.gain > SURE * self.gain_se / times**0.5

    @property
    def temperature(self) -> float:
        """What scores of the mixture that is kept are divided by; 1 for the head, which has its own already."""
        return next((m.temperature for m in self.mixtures if m.share == self.share and self.share), 1.0)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; the NLL of scores that were no numbers is None."""
        values = asdict(self)
        for mixture in values["mixtures"]:
            mixture |= {key: mixture[key] if math.isfinite(mixture[key]) else None for key in ("nll", "temperature")}
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Verdict:
        """Rebuild from `to_dict`'s values."""
        known = ({key: math.nan if value is None else value for key, value in m.items()} for m in values["mixtures"])
        mixtures = tuple(Mixture(**mixture) for mixture in known)
        return cls(**{**values, "mixtures": mixtures})

    def __str__(self) -> str:
        if self.reason:
            return f"fine-tuning steps aside: {self.reason}; the head is kept"
        start = self.mixtures[0]
        best = next(m for m in self.mixtures if m.share == self.share)
        told = f"on {self.n} training images held out of {'it' if self.trials == 1 else f'{self.trials} trials'}"
        if self.share == 0:
            end = self.mixtures[-1]
            return (
                f"fine-tuning steps aside: {told}, it reached {end.accuracy:.3f} (NLL {end.nll:.3f}) and the head "
                f"alone {start.accuracy:.3f} (NLL {start.nll:.3f}); the head is kept"
            )
        what = "fine-tuned weights" if self.share == 1 else f"{self.share:.0%} fine-tuned, the rest as it began"
        return (
            f"kept: {what}; {told}, {best.accuracy:.3f} against the head's {start.accuracy:.3f}, "
            f"NLL {best.nll:.3f} against {start.nll:.3f} (gain {self.gain:.3f} ± {self.gain_se:.3f})"
        )


NO_JUDGE = Verdict(0.0, 0, 0.0, 0.0, (), "there are no images to judge it by")
WENT_ASTRAY = Verdict(0.0, 0, 0.0, 0.0, (), "it lost what the head could do, and again with smaller rates")


def judge(scores: Sequence[NDArray[Any]], labels: NDArray[np.int64], shares: Sequence[float] = SHARES) -> Verdict:
    """Return the Verdict on mixtures of `shares`, the first of which is 0.

    scores: float (n, C) of each, by the classes that have training images. labels: int64 (n,). A mixture may be kept if
    it wins negative log-likelihood over the head, more than SURE standard errors of the mean gain and LEAST_GAIN, and
    is right for no fewer images. Of those, the one with the largest share is, unless it is worse than the best of them
    by more than the standard error of their difference. (The likelihood, and not the accuracy, which a hundred images
    hardly tell apart. The largest share, since what is judged here has seen fewer images than what is kept will have.
    On the validation images of 31 trainings by `scripts/bench/recipes`, nearly all of them `full` on photographs of
    flowers, the end was right for 0.6 points more than the half-way mixture, and that for 1.1 points more than the
    head; NLL 0.402, 0.392 and 0.436.)
    """
    n = len(labels)
    if n == 0:
        return NO_JUDGE
    temperatures = [best_temperature(some, labels) for some in scores]
    losses = [negative_log_likelihoods(some, labels, T) for some, T in zip(scores, temperatures, strict=True)]
    hits = [int((some.argmax(axis=1) == labels).sum()) for some in scores]
    mixtures = tuple(
        Mixture(share, right / n, float(loss.mean()), temperature)
        for share, right, loss, temperature in zip(shares, hits, losses, temperatures, strict=True)
    )
    gains = [losses[0] - loss for loss in losses]
    kept = [
        number
        for number in range(1, len(shares))
        if gains[number].mean() > max(SURE * _error(gains[number]), LEAST_GAIN) and hits[number] >= hits[0]
    ]
    if not kept:
        near = [gain for gain, right in zip(gains, hits, strict=True) if right >= hits[0]]
        return Verdict(shares[0], n, *_nearest(near), mixtures)
    best = min(kept, key=lambda number: mixtures[number].nll)
    lost = {number: losses[number] - losses[best] for number in kept}
    as_good = [number for number in kept if number == best or lost[number].mean() <= _error(lost[number])]
    chosen = max(as_good, key=lambda number: shares[number])
    return Verdict(shares[chosen], n, float(gains[chosen].mean()), _error(gains[chosen]), mixtures)


def is_no_worse(scores: NDArray[Any], others: NDArray[Any], labels: NDArray[np.int64]) -> bool:
    """Return whether scores float (n, C), as for `judge`, are no clearly less likely than others are, each at the
    temperature that suits it; False where they are no numbers.

    What one image with a bit of every class costs, which keeps temperatures from 0, is no difference.
    """
    losses = [negative_log_likelihoods(some, labels, best_temperature(some, labels)) for some in (scores, others)]
    worse = losses[0] - losses[1]
    slack = math.log(scores.shape[1]) / len(labels)
    return bool(worse.mean() <= max(LEAST_GAIN, SURE * _error(worse), slack))


def _nearest(gains: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """Return mean and error of the gain that is most of its errors above nothing; zeros if none is worth it."""
    found = [(float(gain.mean()), _error(gain)) for gain in gains]
    won = [(mean, error) for mean, error in found if mean > LEAST_GAIN and 0 < error < math.inf]
    return max(won, key=lambda pair: pair[0] / pair[1], default=(0.0, 0.0))


def _error(values: NDArray[np.float64]) -> float:
    """Return the standard error of the mean."""
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else math.inf


def trained_state(network: nn.Module) -> dict[str, Tensor]:
    """Return copies, on the CPU, of everything in a network that training may change."""
    changing = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    frozen = {name for name, parameter in network.named_parameters()} - changing
    state = network.state_dict()
    return {name: value.detach().cpu().clone() for name, value in state.items() if name not in frozen}


def load_state(network: nn.Module, state: State) -> None:
    """Set a network to what `trained_state` returned."""
    put_mixture(network, state, state, 1.0)


def put_mixture(network: nn.Module, start: State, end: State, share: float) -> None:
    """Set a network to start + share · (end − start), both of `trained_state`; whole numbers are those of `end`.

    Buffers that hold those values already, such as the statistics of frozen stages, are not written to: what frozen
    stages run as is made anew as soon as one of their tensors is.
    """
    learnt = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name in end:
                given = end[name]
                mixed = given
                if share < 1 and given.is_floating_point():
                    mixed = start[name] if share == 0 else torch.lerp(start[name], given, share)
                if name in learnt or not torch.equal(value, mixed.to(value.device)):
                    value.copy_(mixed)
