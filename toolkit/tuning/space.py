"""What a search may vary: numbers between two ends, on a logarithmic axis where they act by factors, and choices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Point = NDArray[np.float64]  # (D,), one share in [0, 1] for each part of a space
Plain = str | int | float | bool


@dataclass(frozen=True)
class Number:
    """A number from `low` to `high`; log: equal factors are equally likely, 10**uniform (notes: Hyperparameter
    Optimization), so `low` is above 0; whole: rounded. default: what is taken without a search, maybe beyond an end
    (a decay of 0, which no logarithmic axis has)."""

    name: str
    low: float
    high: float
    default: float
    log: bool = True
    whole: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"{self.name}: low < high expected, above 0 on a log axis, got {self.low} to {self.high}")

    def at(self, share: float) -> float | int:
        """Return the value at a share of the axis; of whole numbers each has an equal part of a linear one."""
        low, high = self._ends()
        value = low + (high - low) * min(max(share, 0.0), 1.0)
        value = math.exp(value) if self.log else value
        if self.whole:
            return int(min(max(round(value), self.low), self.high))
        return float(f"{min(max(value, self.low), self.high):.6g}")  # as it is written, so it is tried

    def share(self, value: Any) -> float:
        """Return where a value lies on the axis, 0 to 1; beyond the ends, at the nearer one."""
        low, high = self._ends()
        value = min(max(float(value), self.low), self.high)
        place = math.log(value) if self.log else value
        return min(max((place - low) / (high - low), 0.0), 1.0)

    def _ends(self) -> tuple[float, float]:
        """Return the ends of the axis; half a step is added where whole numbers are rounded."""
        half = 0.5 * (1 - 1e-9) if self.whole else 0.0
        low, high = self.low - half, self.high + half
        return (math.log(low), math.log(high)) if self.log else (low, high)


@dataclass(frozen=True)
class Choice:
    """One of some values, each with an equal part of the axis."""

    name: str
    values: tuple[Plain, ...]
    default: Plain

    def __post_init__(self) -> None:
        if len(set(self.values)) < 2:
            raise ValueError(f"{self.name}: two different values at least expected, got {self.values}")

    def at(self, share: float) -> Plain:
        """Return the value whose part of the axis a share is in."""
        return self.values[min(int(max(share, 0.0) * len(self.values)), len(self.values) - 1)]

    def share(self, value: Any) -> float:
        """Return the middle of a value's part; of the first one for a value that is not among them."""
        return ((self.values.index(value) if value in self.values else 0) + 0.5) / len(self.values)


Part = Number | Choice
Space = tuple[Part, ...]


def settings_at(space: Sequence[Part], point: Point) -> dict[str, Any]:
    """Return the values at a point, by name."""
    return {part.name: part.at(float(share)) for part, share in zip(space, point, strict=True)}


def point_of(space: Sequence[Part], settings: Mapping[str, Any]) -> Point:
    """Return the point of some settings; the default's share where one is missing."""
    return np.array([part.share(settings.get(part.name, part.default)) for part in space])


def described(space: Sequence[Part]) -> list[dict[str, Any]]:
    """Return plain values for JSON, equal for equal spaces."""
    return [{key: list(v) if isinstance(v, tuple) else v for key, v in asdict(part).items()} for part in space]
