"""Ensemble: one or several models, each asked once or with dropout several times, and what they say together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from toolkit.data.preprocessing import Preprocessing
from toolkit.errors import SettingError
from toolkit.settings import checked
from toolkit.training.trained import Predictor


class Judgement(NamedTuple):
    """What an Ensemble says of N images.

    probabilities: float32 (N, C), the mean over all opinions: summed up in float64, so that equals stay equal. spread:
    float64 (N,), the standard deviation over the opinions of the most probable class's probability; None where there
    is a single opinion. votes: int64 (M, N), the class that each model would have named alone.
    """

    probabilities: Tensor
    spread: Tensor | None
    votes: Tensor


@dataclass(frozen=True, eq=False)
class Ensemble:
    """M models that know the same classes: their probabilities are averaged, all with the same weight.

    passes: 0, or how often each model is asked with units dropped. mirrored: whether each is asked about the mirror
    image as well. classes: in the first model's order.
    """

    members: tuple[Predictor, ...]
    passes: int
    orders: tuple[Tensor, ...]
    mirrored: bool = False

    @classmethod
    def of(
        cls,
        members: Sequence[Predictor],
        *,
        passes: int | None = None,
        mirrored: bool = False,
        names: Sequence[str] = (),
    ) -> Ensemble:
        """Return the ensemble; raises SettingError for models of other classes, and for a single pass.

        names: what the models are called in errors.
        """
        passes = None if passes is None else checked("mc", passes)
        classes = members[0].classes
        orders = []
        for number, member in enumerate(members):
            if set(member.classes) != set(classes):
                name = names[number] if names else f"model {number + 1}"
                raise SettingError(f"ensemble: {name} knows other classes: {_difference(classes, member.classes)}")
            orders.append(torch.tensor([member.classes.index(label) for label in classes]))
        return cls(tuple(members), passes or 0, tuple(orders), mirrored)

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes, in the order of the probabilities."""
        return self.members[0].classes

    @property
    def max_pixels(self) -> int:
        """Return the size above which one of the models refuses an image."""
        return min(member.max_pixels for member in self.members)

    @property
    def decodings(self) -> tuple[Preprocessing, ...]:
        """Return the different ways in which the models want pixels; what is done to values later is left out."""
        return tuple(dict.fromkeys(member.preprocessing.decoding for member in self.members))

    def judge(self, pixels: Mapping[Preprocessing, Tensor], device: torch.device) -> Judgement:
        """Return the Judgement of N >= 1 images, given as uint8 (N, 3, S, S) in every one of the `decodings`."""
        opinions, votes = [], []
        for member, order in zip(self.members, self.orders, strict=True):
            own = pixels[member.preprocessing.decoding]
            views = [own, own.flip(-1)] if self.mirrored else [own]
            chances = torch.cat([self._ask(member, view, device) for view in views])[..., order]
            opinions.append(chances)
            votes.append(_mean(chances).argmax(dim=1))
        together = torch.cat(opinions)
        probabilities = _mean(together).float()
        best = probabilities.argmax(dim=1)
        spread = _deviation(together[:, torch.arange(len(best)), best]) if len(together) > 1 else None
        return Judgement(probabilities, spread, torch.stack(votes))

    def _ask(self, member: Predictor, pixels: Tensor, device: torch.device) -> Tensor:
        """Return float64 (K, N, C), a model's probabilities in all of its passes."""
        if self.passes:
            return member.sampled_logits(pixels, self.passes, device).double().softmax(dim=-1)
        return member.logits(pixels, device)[None].double().softmax(dim=-1)


def _mean(opinions: Tensor) -> Tensor:
    """Return the mean over the first axis; torch's own adds up in an order that depends on the number of images."""
    total: Tensor = reduce(torch.add, opinions)
    return total / len(opinions)


def _deviation(opinions: Tensor) -> Tensor:
    """Return the standard deviation over the first axis (n − 1), in the same way."""
    total: Tensor = reduce(torch.add, (opinions - _mean(opinions)).square())
    return (total / (len(opinions) - 1)).sqrt()


def _difference(ours: Sequence[str], theirs: Sequence[str]) -> str:
    more, less = sorted(set(theirs) - set(ours)), sorted(set(ours) - set(theirs))
    parts = [("has", more)] if more else []
    parts += [("lacks", less)] if less else []
    return ", ".join(
        f"it {verb} {names[0]!r}" + (f" and {len(names) - 1} more" * (len(names) > 1)) for verb, names in parts
    )
