"""From a scanned Manifest to everything that training needs: usable files, splits, features, plan, head, views."""

from __future__ import annotations

import csv
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.artifacts.run_folder import PLAN, QUARANTINE, RunFolder
from toolkit.backbones.taps import tap_widths
from toolkit.data.loading import Failure
from toolkit.data.manifest import TRAIN, Manifest
from toolkit.data.split import assign_splits
from toolkit.data.verify import unreadable
from toolkit.data.views import augmentation
from toolkit.errors import ArtifactError
from toolkit.features.passes import NoRoomError
from toolkit.features.stored import PooledRows, Stored
from toolkit.heads.choose import ChosenHead, choose_head
from toolkit.options import Options
from toolkit.plan import TransferPlan
from toolkit.progress import say
from toolkit.tasks.foresee import foreseen
from toolkit.tasks.job import Job, plan_ahead, plan_for, some_left, worker_count
from toolkit.tasks.measure import counted, measured
from toolkit.tasks.prepared import Prepared
from toolkit.tasks.training_pass import fit_to_disk, fitted, training_views


def prepare(manifest: Manifest, job: Job) -> Prepared:
    """Extract, split, plan, train the instant head, and store what a tail will train on."""
    while True:
        scratch = job.options.strategy == "scratch"
        prepared = _prepare_scratch(manifest, job) if scratch else _prepare_transfer(manifest, job)
        prepared, failures = _store_views(prepared, job)
        if not failures:
            return prepared
        manifest = _without(manifest, prepared.manifest, failures)  # they vanished since the first pass


def recorded(folder: RunFolder, manifest: Manifest, options: Options) -> Manifest:
    """Return the images that a run used, split as it split them, by its quarantine; raises ArtifactError."""
    try:
        with open(folder.path / QUARANTINE, encoding="utf-8", newline="") as file:
            reasons = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise ArtifactError(f"{folder.path / QUARANTINE} cannot be read; start the run again") from error
    failed = [(row, reasons[path]) for row, path in enumerate(manifest.paths) if path in reasons]
    return assign_splits(some_left(manifest.without(failed)), val=options.val, seed=options.seed)


def prepare_again(folder: RunFolder, manifest: Manifest, job: Job) -> Prepared:
    """Return what `prepare` gave before the checkpoint: plan and quarantine are read, the views are stored already."""
    usable = recorded(folder, manifest, job.options)
    with job.clock.part("plan"):
        prepared = Prepared(usable, read_plan(folder))
    if prepared.plan.strategy == "head" or not job.options.cache:
        return prepared
    with job.clock.part("extract"):
        views, failures = training_views(job, prepared.plan, usable)
    if failures:
        row, reason = failures[0]
        raise ArtifactError(f"{usable.file(row)}: {reason}; the run began with it: put it back, or start a new run")
    return replace(prepared, views=views)


def read_plan(folder: RunFolder) -> TransferPlan:
    """Return the plan that a run has written; raises ArtifactError."""
    try:
        return TransferPlan.from_dict(folder.read(PLAN))
    except (AttributeError, TypeError) as error:
        raise ArtifactError(f"{folder.path / PLAN} is not a plan that a run wrote ({error})") from error


def _prepare_scratch(manifest: Manifest, job: Job) -> Prepared:
    options = job.options
    with job.clock.part("extract"):
        workers = worker_count(options, len(manifest))
        failures = unreadable(manifest, workers=workers, max_pixels=options.max_pixels)
    usable = assign_splits(some_left(manifest.without(failures)), val=options.val, seed=options.seed)
    with job.clock.part("plan"):
        return Prepared(usable, plan_for(counted(usable, job), options, job.backbone))


def _prepare_transfer(manifest: Manifest, job: Job) -> Prepared:
    options = job.options
    with job.clock.part("plan"):
        ahead = plan_ahead(manifest, options, job.backbone)
        request = (
            job.all_taps if options.strategy == "auto" else job.request
        )  # its precision is decided by a trial on sample images
    with job.clock.part("extract"):
        try:
            probe = job.fetch(replace(request, cut=_probe_cut(ahead, job)), manifest)
        except NoRoomError:
            if _probe_cut(ahead, job) is None:
                raise
            probe = job.fetch(request, manifest)  # pooled features are small; the rest is seen to below
    usable = assign_splits(some_left(manifest.without(probe.failures)), val=options.val, seed=options.seed)
    probe = replace(probe, rows=np.arange(len(usable)), failures=())
    with job.clock.part("plan"):
        if options.strategy == "auto":
            found = measured(usable, probe, job)
            plan = foreseen(plan_for(found.evidence, options, job.backbone), found, usable, job, all_ways=False)
        else:
            plan = plan_for(counted(usable, job), options, job.backbone)
        plan = replace(plan, reasons=(*plan.reasons, *job.remarks))
    features, rows, images, failures = _head_rows(usable, plan, probe, job)
    if failures:  # since the first pass
        return _prepare_transfer(_without(manifest, usable, failures), job)
    with job.clock.part("fit"):
        chosen = choose_head(
            features,
            usable.labels[rows],
            len(usable.classes),
            tap_widths(job.backbone, plan.taps),
            images=images,
            **head_settings(options, len(plan.taps), plan.strategy),
        )
    return Prepared(usable, _with_head(plan, chosen), probe, chosen, competing=plan.taps)


def _probe_cut(plan: TransferPlan, job: Job) -> int | None:
    """Return the cut whose activations come with the probe pass, so that view 0 is not computed twice."""
    foreseen = plan.strategy == "partial" and plan.cut > 0 and job.options.cache
    return plan.cut if foreseen else None


def head_settings(options: Options, n_taps: int, strategy: str = "head") -> dict[str, Any]:
    """Return what the choice of a head follows: taps that were set do not compete, nor neighbours where a tail trains.

    Neighbours cannot be trained, and would compare what a trained tail gives with what it once gave.
    """
    kind = options.head or "auto"
    return {
        "kind": "linear" if kind == "auto" and strategy != "head" else kind,
        "tap_sets": None if options.taps is None else (tuple(range(n_taps)),),
        "balanced": options.class_weights == "balanced",
        "seed": options.seed,
    }


def _head_rows(
    manifest: Manifest, plan: TransferPlan, probe: Stored, job: Job
) -> tuple[PooledRows, NDArray[np.int64], NDArray[np.int64] | None, tuple[Failure, ...]]:
    """Return the features that the head trains on, their rows, whose views they are, and the files that failed."""
    train = manifest.rows(TRAIN)
    if plan.strategy != "head" or plan.views == 1:
        return probe.pooled(train, taps=plan.taps), train, None, ()
    request = replace(
        probe.request, taps=plan.taps, cut=None, views=plan.views, augmentation=augmentation(plan.augmentation)
    )
    with job.clock.part("extract"):
        stored = job.fetch(request, manifest, train)
    positions = np.repeat(np.arange(len(stored)), plan.views)  # the clean view of each image comes first
    rows = stored.rows[positions]
    features = stored.pooled(positions, np.tile(np.arange(plan.views), len(stored)))
    return features, rows, rows, stored.failures


def _without(scanned: Manifest, usable: Manifest, failures: tuple[Failure, ...]) -> Manifest:
    """Return the scanned Manifest less the files of another one, made of it, that failed."""
    gone = {usable.paths[row]: reason for row, reason in failures}
    return scanned.without([(row, gone[path]) for row, path in enumerate(scanned.paths) if path in gone])


def _store_views(prepared: Prepared, job: Job) -> tuple[Prepared, tuple[Failure, ...]]:
    """Store what the tail of a plan trains on, as far as the disk has room; and the files that failed on the way."""
    if prepared.plan.strategy == "head" or not job.options.cache:
        return prepared, ()
    with job.clock.part("extract"):
        fit = fit_to_disk(job, prepared.plan, prepared.manifest)
        if fit.reason is not None:
            say(f"note: {fit.reason}")
        prepared = replace(prepared, plan=fitted(prepared.plan, fit))
        if fit.live:
            return prepared, ()
        views, failures = training_views(job, prepared.plan, prepared.manifest)
    return replace(prepared, views=views), failures


def _with_head(plan: TransferPlan, chosen: ChosenHead) -> TransferPlan:
    """Return the plan with the head that won: its kind, its taps, and how all candidates did."""
    taps = tuple(plan.taps[position] for position in chosen.taps)
    probes = tuple(
        {
            "head": candidate.kind,
            "taps": [plan.taps[position] for position in candidate.taps],
            "accuracy": candidate.accuracy,
            "se": candidate.se,
            "nll": candidate.nll,
        }
        for candidate in chosen.candidates
    )
    won = next(c for c in chosen.candidates if (c.kind, c.taps) == (chosen.kind, chosen.taps))
    stages = f"stage {taps[0]}" if len(taps) == 1 else f"stages {', '.join(map(str, taps))}"
    reason = (
        f"head: {chosen.kind} on {stages}, right for {won.accuracy:.3f} ± {won.se:.3f} of training images that it had "
        f"not seen when it judged them ({len(chosen.candidates)} candidates)"
    )
    return replace(plan, taps=taps, head=chosen.kind, probes=(*plan.probes, *probes), reasons=(*plan.reasons, reason))
