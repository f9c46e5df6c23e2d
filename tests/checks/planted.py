"""What a planted defect is: how it is made, which finding must show it, and the sound case that lies next to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

PASS, WARN, FAIL = "pass", "warn", "fail"  # written out: the catalogue stands without the code that it judges
ORDER = (PASS, WARN, FAIL)


@dataclass(frozen=True)
class Planted:
    """What to check: a folder or CSV, with settings of `toolkit.check`.

    files: names of files of which the suspects of the finding must hold one at least; empty if it is of no file.
    """

    data: Path
    files: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataDefect:
    """A defect that is seen through the public door.

    plant, sound: change a copy of a sound folder DIR/CLASS/… in place. finding: the one that must have at least
    `status` on the planted folder, and at most `sound_status` on the sound one. word: its text must hold it.
    needs_weights: random features cannot tell these pictures apart. least_px: smaller images cannot carry the defect.
    """

    name: str
    wrong: str
    finding: str
    status: str
    plant: Callable[[Path], Planted]
    sound: Callable[[Path], Planted]
    word: str = ""
    sound_status: str = PASS
    needs_weights: bool = False
    least_px: int = 0


@dataclass(frozen=True)
class Case:
    """A network with what it learns: the arguments of the pure checks.

    inputs: (N, …). labels: int64 (N,). settings: of the Learner, beside the network. batch: for `overfit`, the inputs
    and labels by step; the same ones at every step if it is None.
    """

    network: nn.Module
    inputs: Tensor
    labels: Tensor
    settings: Mapping[str, Any]
    batch: Callable[[int], tuple[Tensor, Tensor]] | None = None


@dataclass(frozen=True)
class ModelDefect:
    """A defect of a network or of its training; `finding` names the pure check as well. The rest as in DataDefect."""

    name: str
    wrong: str
    finding: str
    status: str
    plant: Callable[[int], Case]
    sound: Callable[[int], Case]
    word: str = ""
    sound_status: str = PASS


def at_least(status: str, expected: str) -> bool:
    """Return whether a status is as grave as expected, or graver."""
    return ORDER.index(status) >= ORDER.index(expected)
