"""`--backbone auto`: the pretrained networks of this machine, held against each other by what a head makes of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from toolkit.backbones.catalog import catalog
from toolkit.backbones.operations import stage_operations
from toolkit.data.manifest import Manifest
from toolkit.data.split import assign_splits
from toolkit.errors import ToolkitError
from toolkit.features.passes import NoRoomError
from toolkit.features.store import FeatureStore
from toolkit.options import AUTO_BACKBONE, Options
from toolkit.planning.evidence import head_of
from toolkit.planning.policy import BUDGET_MINUTES
from toolkit.planning.probes import Probe
from toolkit.progress import say
from toolkit.tasks.job import Job, Stopwatch, open_backbone, plan_ahead, some_left
from toolkit.tasks.measure import capacity_of, probes_of

DEFAULT = Options.backbone
RANDOM = "random weights alone"


def local_backbones() -> tuple[str, ...]:
    """Return the names of the networks whose pretrained weights are on this machine, the default one first."""
    found = [entry.name for entry in catalog() if entry.is_local and entry.parameters_m and entry.source != RANDOM]
    return (DEFAULT, *(name for name in found if name != DEFAULT))


def settled(options: Options, manifest: Manifest, store: FeatureStore, clock: Stopwatch) -> tuple[Options, str | None]:
    """Return the options with a backbone in the place of `auto`, and why it is that one.

    All images pass through each of them, so that `finetune` finds the features of the chosen one. One whose pass would
    be beyond the budget, by the count of operations, takes no part, but for the default one. Of those within a standard
    error of the best probe the one with the least work is taken (the rule of one standard error: Breiman et al. 1984).
    """
    if options.backbone != AUTO_BACKBONE:
        return options, None
    minutes = BUDGET_MINUTES if options.budget is None else options.budget
    found: list[tuple[str, int, Probe]] = []
    for name in local_backbones():
        mine = replace(options, backbone=name)
        try:
            job = Job(mine, open_backbone(mine), store, clock)
            plan_ahead(manifest, mine, job.backbone)  # a cut may be none of its own, or a recipe ask too much of it
            taps = None if options.taps is None else job.taps
        except ToolkitError as error:
            if name == DEFAULT:
                raise
            say(f"{name}: takes no part: {error}")
            continue
        work = sum(stage_operations(job.backbone))
        if name != DEFAULT and work * len(manifest) > 60 * minutes * capacity_of(job.device):
            say(f"{name}: takes no part, its pass is beyond the budget of {minutes:g} minutes")
            continue
        try:
            with clock.part("extract"):
                stored = job.fetch(job.all_taps, manifest)
        except NoRoomError as error:
            if name == DEFAULT:
                raise
            say(f"{name}: takes no part: {error}")
            continue
        usable = assign_splits(some_left(manifest.without(stored.failures)), val=options.val, seed=options.seed)
        with clock.part("plan"):
            probes = probes_of(usable, replace(stored, rows=np.arange(len(usable)), failures=()), job)
        best = head_of(probes, None, taps)
        if best is None:  # which is by the counts of images, and so of all networks alike
            return replace(options, backbone=DEFAULT), f"backbone: {DEFAULT}, the default one: no stage could be probed"
        found.append((name, work, best))
        say(f"{name}: a head is right for {best.accuracy:.3f} ± {best.se:.3f}, {work / 1e9:.2f} G operations an image")
    top = max((probe for _, _, probe in found), key=lambda probe: probe.accuracy)
    good = [one for one in found if one[2].accuracy >= top.accuracy - top.se]
    name, work, probe = min(good, key=lambda one: one[1])
    others = ", ".join(f"{other} {p.accuracy:.3f}" for other, _, p in found if other != name) or "no other is here"
    reason = f"backbone: {name} {probe.accuracy:.3f}, the least work within a standard error of the best ({others})"
    return replace(options, backbone=name), reason


def open_job(
    options: Options, manifest: Manifest, store: FeatureStore, clock: Stopwatch, known: str | None = None
) -> Job:
    """Return a Job with an open backbone; `auto` is settled first, unless it is known what it came to."""
    if options.backbone == AUTO_BACKBONE and known is not None:
        options = replace(options, backbone=known)
    options, reason = settled(options, manifest, store, clock)
    return Job(options, open_backbone(options), store, clock, () if reason is None else (reason,))
