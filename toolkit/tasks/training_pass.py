"""The training pass: what a tail trains on is stored, as far as the disk has room for it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from toolkit.data.loading import Failure
from toolkit.data.manifest import TRAIN, Manifest
from toolkit.data.views import augmentation
from toolkit.errors import SettingError
from toolkit.features.dataset import StoredViews
from toolkit.features.passes import NoRoomError
from toolkit.features.request import Request
from toolkit.plan import TransferPlan
from toolkit.progress import say
from toolkit.tasks.job import Job
from toolkit.training.able import check_able

FEWEST_VIEWS = 2  # with a single one, a tail sees no augmentation at all: then rather a later cut


@dataclass(frozen=True)
class Fit:
    """What of a plan is stored: the cut and the views that fit on the disk, or nothing (`live`), and why."""

    cut: int
    views: int
    live: bool = False
    reason: str | None = None


def training_requests(job: Job, plan: TransferPlan) -> tuple[Request, Request]:
    """Return what is wanted of the training images, V views, and of the others, view 0, where a tail trains."""
    before = tuple(tap for tap in plan.taps if tap < plan.cut)
    others = replace(job.request, cut=plan.cut, taps=before)
    train = replace(others, augmentation=augmentation(plan.augmentation))
    if plan.cut == 0:  # nothing is frozen: what can be kept is the decoding
        return replace(train, source=True), others
    return replace(train, views=plan.views), others


def fit_to_disk(job: Job, plan: TransferPlan, manifest: Manifest) -> Fit:
    """Return the plan's cut and views, or what is stored instead where they do not fit on the disk.

    First fewer views, then a later cut (fewer stages train), then nothing: the frozen stages run in every epoch. What
    the user set is not touched.
    """
    store, free = job.store, job.store.free_bytes()
    rows = manifest.rows(TRAIN)
    rest = np.flatnonzero(manifest.splits != TRAIN)
    later = [] if "cut" in plan.overridden or not plan.cut else range(plan.cut + 1, len(job.backbone))
    cuts = [plan.cut, *(cut for cut in later if _is_able(job, plan, cut))]
    views = [plan.views]  # which cost nothing where sources are stored
    while plan.cut and "views" not in plan.overridden and views[-1] > FEWEST_VIEWS:
        views.append(max(FEWEST_VIEWS, views[-1] // 2))
    for cut in cuts:
        for count in views:
            train, others = training_requests(job, replace(plan, cut=cut, views=count))
            needed = store.missing_bytes(train, manifest, rows) + store.missing_bytes(others, manifest, rest)
            if needed <= free:
                changed = [f"{count} views instead of {plan.views}"] if count != plan.views else []
                changed += [f"cut {cut} instead of {plan.cut}"] if cut != plan.cut else []
                reason = f"{', '.join(changed)}: more does not fit on the cache's disk ({free / 1e9:.1f} GB free)"
                return Fit(cut, count, reason=reason if changed else None)
    reason = f"the activations do not fit on the cache's disk ({free / 1e9:.1f} GB free): the frozen stages run anew"
    return Fit(plan.cut, plan.views, live=True, reason=reason)


def _is_able(job: Job, plan: TransferPlan, cut: int) -> bool:
    """Return whether the stages from a cut on can be trained by the plan's recipe."""
    try:
        if plan.recipe is not None:
            check_able(job.backbone, plan.recipe, cut)
    except SettingError:
        return False
    return True


def fitted(plan: TransferPlan, fit: Fit) -> TransferPlan:
    """Return the plan with what fits on the disk: what still trains keeps its rate."""
    if fit.reason is None:
        return plan
    multipliers = (*(0.0,) * fit.cut, *plan.multipliers[fit.cut :])
    return replace(plan, cut=fit.cut, views=fit.views, multipliers=multipliers, reasons=(*plan.reasons, fit.reason))


def training_views(job: Job, plan: TransferPlan, manifest: Manifest) -> tuple[StoredViews | None, tuple[Failure, ...]]:
    """Return the stored views that a tail trains and is validated on, and the files that failed on the way.

    None where the disk ran full all the same: the frozen stages then run in every epoch, with the same result.
    """
    train, others = training_requests(job, plan)
    try:
        parts = [
            job.fetch(train, manifest, manifest.rows(TRAIN)),
            job.fetch(others, manifest, np.flatnonzero(manifest.splits != TRAIN)),
        ]
    except NoRoomError as error:
        say(f"note: {error}; the frozen stages run in every epoch instead")
        return None, ()
    return StoredViews(manifest, parts), tuple(failure for part in parts for failure in part.failures)
