"""What a plan, and what else was weighed, would take and reach: seconds, bytes, accuracy; tried out on this machine."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from toolkit.data.manifest import TRAIN, Manifest
from toolkit.data.views import augmentation
from toolkit.features.prefix import chunk_of
from toolkit.features.request import Request
from toolkit.features.sample import sample_images
from toolkit.hardware import resolve_precision
from toolkit.options import AUTO_RATE
from toolkit.plan import TransferPlan
from toolkit.planning.decision import Way, expected_gain, way_name
from toolkit.planning.evidence import Evidence
from toolkit.planning.forecast import accuracy_range, seconds
from toolkit.planning.probes import probed_images
from toolkit.tasks.job import Job, plan_for
from toolkit.tasks.measure import Measured, clean_pixels
from toolkit.tasks.training_pass import fit_to_disk, fitted, training_requests
from toolkit.training.pace import image_seconds

DECODED = 32  # images, to see how long that takes
# How much longer than the probes the choice of a head takes, with its cross-validations, and how that grows with the
# images: 1.0 to 1.4 times as long for as many as were probed, 3.6 for 2.4 times, 20 for 48 times as many (2 cores).
HEAD_TO_PROBES, HEAD_GROWTH = 1.6, 2 / 3


def foreseen(plan: TransferPlan, found: Measured, manifest: Manifest, job: Job, *, all_ways: bool) -> TransferPlan:
    """Return a plan with what it is predicted to take and reach, and where `all_ways` what the others would.

    A tail's step is tried out on copies of the stages, so that this takes a second or two a way; what cannot be tried
    is None.
    """
    evidence = found.evidence
    if evidence.head is None:
        return plan
    ways, predicted = [], None
    for way in plan.ways or (_as_way(plan, evidence, job),):
        chosen = (way["strategy"], way["cut"]) == (plan.strategy, plan.cut)
        told: dict[str, Any] = {"seconds": None, "bytes": None, "accuracy": None}
        if all_ways or chosen:
            told |= _cost(plan if chosen else _as_if(way, evidence, job), found, manifest, job)
        if evidence.facts.n_val:
            told["accuracy"] = list(accuracy_range(evidence.head, way["gain"], evidence.facts.n_val))
        ways.append({**way, **told})
        predicted = told if chosen else predicted
    return replace(plan, ways=tuple(ways) if plan.ways else (), predicted=predicted)


def _as_way(plan: TransferPlan, evidence: Evidence, job: Job) -> dict[str, Any]:
    """Return the way of a plan whose strategy was set."""
    way = Way(plan.strategy, plan.cut, 0.0, 0.0)
    gain = 0.0 if plan.strategy == "head" else expected_gain(way_name(way, job.backbone.stage_sizes()), evidence)
    return asdict(replace(way, gain=gain))


def _as_if(way: dict[str, Any], evidence: Evidence, job: Job) -> TransferPlan:
    """Return the plan that there would be if a person had set the way."""
    cut = way["cut"] if way["strategy"] == "partial" else None
    return plan_for(
        evidence, replace(job.options, strategy=way["strategy"], cut=cut or None, budget=None), job.backbone
    )


def _cost(plan: TransferPlan, found: Measured, manifest: Manifest, job: Job) -> dict[str, Any]:
    """Return seconds and bytes from here to the end of a plan."""
    assert found.evidence.head is not None
    plan = replace(plan, taps=found.evidence.head.taps)  # as far as is known before the head is chosen
    options = job.options
    finds_rate = options.lr == AUTO_RATE
    judged = plan.strategy in ("partial", "full") and options.mixing is None and options.patience is None
    try:
        if plan.recipe is None:
            n_bytes, views_s = _extraction(_head_requests(plan, job, manifest), manifest, job)
            taken = views_s + HEAD_TO_PROBES * found.probing_s * (_scale(found.evidence) * plan.views) ** HEAD_GROWTH
            return {"seconds": round(taken, 1), "bytes": n_bytes if job.options.cache else 0}
        precision = resolve_precision(job.options.precision, job.device)
        spec, n_classes = plan.freeze_spec(), len(manifest.classes)
        image_s = image_seconds(job.backbone, spec, plan.taps, n_classes, job.device, precision)
        fit = fit_to_disk(job, plan, manifest) if job.options.cache else None
        if fit is None or fit.live:  # the frozen stages run for every image of every epoch
            view_s = _view_seconds(training_requests(job, plan)[0], manifest, job)
            taken = seconds(plan, 0.0, view_s + image_s, judged=judged, finds_rate=finds_rate)
            return {"seconds": round(taken, 1), "bytes": 0}
        plan = fitted(plan, fit)
        train, others = training_requests(job, plan)
        parts = [(train, manifest.rows(TRAIN)), (others, np.flatnonzero(manifest.splits != TRAIN))]
        n_bytes, views_s = _extraction(parts, manifest, job)
        taken = seconds(plan, views_s, image_s, judged=judged, finds_rate=finds_rate)
        return {"seconds": round(taken, 1), "bytes": n_bytes}
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, MemoryError):
        return {}  # no decision rests on it


Parts = list[tuple[Request, NDArray[np.int64]]]


def _head_requests(plan: TransferPlan, job: Job, manifest: Manifest) -> Parts:
    """Return what a head of several views trains on beside the clean ones, which are stored already."""
    if plan.views == 1:
        return []
    request = replace(job.request, taps=plan.taps, views=plan.views, augmentation=augmentation(plan.augmentation))
    return [(request, manifest.rows(TRAIN))]


def _extraction(parts: Parts, manifest: Manifest, job: Job) -> tuple[int, float]:
    """Return the bytes that are not stored yet, and the seconds until they are."""
    n_bytes = [job.store.missing_bytes(request, manifest, rows) for request, rows in parts]
    if not sum(n_bytes):
        return 0, 0.0
    views = sum(n // request.bytes_per_view for n, (request, _) in zip(n_bytes, parts, strict=True))
    return int(sum(n_bytes)), views * _view_seconds(parts[0][0], manifest, job)


def _scale(evidence: Evidence) -> float:
    """Return how many times as many images a head trains on as were probed."""
    facts = evidence.facts
    return facts.n_train / max(1, probed_images(facts.n_train, facts.n_classes))


def _view_seconds(request: Request, manifest: Manifest, job: Job) -> float:
    """Return the seconds that a view takes: decoding some images, and one pass of the frozen stages."""
    rows = manifest.rows(TRAIN)
    picked = rows[np.linspace(0, len(rows) - 1, min(DECODED, len(rows))).round().astype(int)]
    start = time.perf_counter()
    clean_pixels(manifest, picked, job)
    decode_s = (time.perf_counter() - start) / len(picked)
    if request.cut == 0:
        return decode_s
    pass_s = job.tried.get("pass_s")
    if pass_s is None:  # of all stages, which is a little more than those before a cut
        make = job.request.maker()
        sample = sample_images(chunk_of(job.device), job.backbone.preprocessing.crop_px)
        _on_cpu(make(sample))
        start = time.perf_counter()
        _on_cpu(make(sample))
        pass_s = job.tried["pass_s"] = (time.perf_counter() - start) / len(sample)
    return decode_s + pass_s if job.device.type == "cpu" else max(decode_s, pass_s)


def _on_cpu(outputs: dict[str, Tensor]) -> None:
    """Have all of a pass done: a GPU goes on by itself until somebody wants to see."""
    for part in outputs.values():
        part.cpu()
