"""`folds`: what a head is worth on new images, from all labelled images, where a single split is too small to tell."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from toolkit.backbones.taps import tap_widths
from toolkit.data.manifest import TRAIN, VAL
from toolkit.data.views import augmentation
from toolkit.heads.folds import FoldScores, repeated_folds
from toolkit.tasks.job import Job
from toolkit.tasks.prepare import head_settings
from toolkit.tasks.prepared import Prepared


def cross_validate(prepared: Prepared, job: Job) -> dict[str, Any] | None:
    """Return the scores of repeated stratified folds over training and validation images; None where none are wanted.

    The features are in the store, so only heads are trained. Test images take no part.
    """
    k = job.options.folds
    if k is None or prepared.probe is None:
        return None
    manifest, plan, views = prepared.manifest, prepared.plan, prepared.plan.views
    rows = np.flatnonzero(((manifest.splits == TRAIN) | (manifest.splits == VAL)) & (manifest.labels >= 0))
    taps = prepared.competing
    if views == 1:
        features, images = prepared.probe.pooled(rows, taps=taps), None
    else:
        request = replace(
            prepared.probe.request, taps=taps, cut=None, views=views, augmentation=augmentation(plan.augmentation)
        )
        with job.clock.part("extract"):
            stored = job.fetch(request, manifest, rows)
        positions = np.repeat(np.arange(len(stored)), views)
        features, rows = stored.pooled(positions, np.tile(np.arange(views), len(stored))), stored.rows[positions]
        images = rows
    with job.clock.part("evaluate"):
        scores = repeated_folds(
            features,
            manifest.labels[rows],
            len(manifest.classes),
            tap_widths(job.backbone, taps),
            k=k,
            images=images,
            **head_settings(job.options, len(taps)),
        )
    return to_dict(scores)


def to_dict(scores: FoldScores) -> dict[str, Any]:
    """Return plain values for `metrics.json`."""
    return {
        "k": scores.k,
        "repeats": scores.repeats,
        "n": scores.n,
        "accuracy": scores.mean,
        "accuracy_ci95": list(scores.interval),
        "accuracies": list(scores.accuracies),
    }


def in_words(folds: dict[str, Any]) -> str:
    """Return the line that stands beside the single split's scores."""
    low, high = folds["accuracy_ci95"]
    return (
        f"folds: accuracy {folds['accuracy']:.3f} (95 % interval {low:.3f} to {high:.3f}; {folds['repeats']} × "
        f"{folds['k']} folds of the {folds['n']} training and validation images, the head chosen anew in each)"
    )
