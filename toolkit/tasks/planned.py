"""A plan of a data set, with everything that was measured for it and what each way would take."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np

from toolkit.data.scan import scan
from toolkit.data.split import assign_splits
from toolkit.options import Options
from toolkit.plan import TransferPlan
from toolkit.progress import say
from toolkit.tasks.choose_backbone import open_job
from toolkit.tasks.foresee import foreseen
from toolkit.tasks.job import Stopwatch, plan_ahead, plan_for, some_left
from toolkit.tasks.measure import counted, measured
from toolkit.tasks.stores import open_store


def planned(data: str | os.PathLike[str], options: Options) -> TransferPlan:
    """Return the plan for a data set, its frozen features computed and stored on the way; scratch measures nothing."""
    manifest = scan(data, max_pixels=options.max_pixels)
    say(str(manifest))
    with open_store(options.cache, options.cache_dir) as store:
        job = open_job(options, manifest, store, Stopwatch())
        plan_ahead(manifest, job.options, job.backbone)
        if options.strategy == "scratch":
            split = assign_splits(some_left(manifest), val=options.val, seed=options.seed)
            return plan_for(counted(split, job), options, job.backbone)
        probe = job.fetch(job.all_taps, manifest)
        usable = assign_splits(some_left(manifest.without(probe.failures)), val=options.val, seed=options.seed)
        probe = replace(probe, rows=np.arange(len(usable)), failures=())
        found = measured(usable, probe, job)
        plan = plan_for(found.evidence, job.options, job.backbone)
        plan = replace(plan, reasons=(*plan.reasons, *job.remarks))
        return foreseen(plan, found, usable, job, all_ways=True)
