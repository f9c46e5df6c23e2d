"""Whether the cache's disk has room for what a run cannot do without: asked before it begins."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from toolkit.data.manifest import TRAIN, VAL, Manifest
from toolkit.data.split import assign_splits
from toolkit.data.views import augmentation
from toolkit.plan import TransferPlan
from toolkit.tasks.job import Job, some_left


def check_room(job: Job, manifest: Manifest, plan: TransferPlan, *, every_stage: bool) -> None:
    """Raise NoRoomError where the disk has no room for the pooled features of a scanned Manifest, or for the views that
    a head was told to see, as far as the contents of the files are known.

    What a tail trains on is not asked for: that makes do with what there is. plan: of `plan_ahead`. every_stage:
    whether features of all stages are computed, as for whatever is chosen by them.
    """
    if job.options.strategy == "scratch":
        return
    every_stage = every_stage or job.options.strategy == "auto"
    pooled = job.all_taps if every_stage else job.request
    split, rows, views = manifest, np.empty(0, np.int64), pooled
    if plan.strategy == "head" and plan.views > 1:
        options = job.options
        split = assign_splits(some_left(manifest), val=options.val, seed=options.seed)
        seen = (split.splits == TRAIN) | ((split.splits == VAL) & (options.folds is not None))
        rows = np.flatnonzero(seen & (split.labels >= 0))
        taps = pooled.taps if every_stage else plan.taps
        views = replace(pooled, taps=taps, views=plan.views, augmentation=augmentation(plan.augmentation))
    most = len(manifest) * pooled.with_stages_on_the_way().bytes_per_view
    if most + len(rows) * views.views * views.bytes_per_view <= job.store.free_bytes():
        return  # even if nothing of it is stored yet: no file has to be looked at
    stored = job.store.room_for(pooled, manifest)
    job.store.room_for(views, split, rows, after=stored, clean_there=True)
