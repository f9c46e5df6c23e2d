"""Prepared: everything that training needs, as it passes from one part of a run to the next."""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.data.manifest import Manifest
from toolkit.features.dataset import StoredViews
from toolkit.features.stored import Stored
from toolkit.heads.choose import ChosenHead
from toolkit.plan import TransferPlan


@dataclass(frozen=True, eq=False)
class Prepared:
    """What is known before the tail trains.

    manifest: usable images, split. probe: stored pooled features of view 0, position by position those of the
    Manifest's rows; None where nothing was extracted. chosen: the head trained on them, None for `scratch` and for a
    resumed run. views: what a tail trains on and is validated on, where it is stored. competing: the taps that the head
    was chosen from.
    """

    manifest: Manifest
    plan: TransferPlan
    probe: Stored | None = None
    chosen: ChosenHead | None = None
    views: StoredViews | None = None
    competing: tuple[int, ...] = ()
