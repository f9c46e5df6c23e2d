"""From a scanned Manifest to everything that training needs: usable files, splits, features, plan, instant head."""

from __future__ import annotations

import copy
import csv
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from toolkit.artifacts.run_folder import PLAN, QUARANTINE, RunFolder
from toolkit.backbones.backbone import Backbone
from toolkit.backbones.catalog import as_backbone, build_backbone
from toolkit.backbones.taps import check_taps, default_taps, tap_widths
from toolkit.data.manifest import TRAIN, Manifest
from toolkit.data.split import assign_splits
from toolkit.errors import ArtifactError, DataError, SettingError
from toolkit.features.extract import extract
from toolkit.hardware import resolve_precision
from toolkit.heads.linear import LinearHead
from toolkit.heads.logistic import LogisticHead
from toolkit.options import Options
from toolkit.plan import TransferPlan
from toolkit.planning.facts import facts_of
from toolkit.planning.policy import make_plan
from toolkit.progress import say


class Clock(Protocol):
    """What times the parts of a run."""

    def part(self, name: str) -> AbstractContextManager[None]: ...


@dataclass(frozen=True, eq=False)
class Prepared:
    """What is known before the tail trains.

    manifest: usable images, split. features: float32 (N, D), row by row those of the Manifest, None where nothing
    was extracted. head: trained on them, None for `scratch` and for a resumed run.
    """

    manifest: Manifest
    backbone: Backbone
    plan: TransferPlan
    workers: int
    features: NDArray[np.float32] | None = None
    features_are_float32: bool = False
    head: LinearHead | None = None


def open_backbone(options: Options, *, pretrained: bool = True) -> Backbone:
    """Return the backbone that the options name, with random weights for `scratch` or where its shape is enough."""
    if not isinstance(options.backbone, str):
        if options.weights is not None:
            raise SettingError("weights: load them into a backbone of your own before you give it")
        if options.strategy == "scratch":
            say("note: modules of your own start from the weights that they have; 'scratch' sets the rates alone")
        own = as_backbone(copy.deepcopy(options.backbone))  # the user's modules stay as they are
        if options.image_size is not None:
            own = replace(own, preprocessing=own.preprocessing.at_image_size(options.image_size))
            own.stage_shapes()  # refuses a size that they cannot take
        return own
    return build_backbone(
        options.backbone,
        weights=options.weights,
        pretrained=pretrained and options.strategy != "scratch",
        seed=options.seed,
        image_size_px=options.image_size,
    )


def plan_ahead(manifest: Manifest, options: Options, backbone: Backbone) -> TransferPlan:
    """Return the plan for a scanned Manifest, as if all its files could be decoded.

    Raises what the real one would raise, before anything is written or computed.
    """
    split = assign_splits(some_left(manifest), val=options.val, seed=options.seed)
    return plan_for(split, options, backbone, _taps(options, backbone))


def prepare(manifest: Manifest, options: Options, backbone: Backbone, device: torch.device, clock: Clock) -> Prepared:
    """Extract, split, plan, and train the instant head."""
    workers = worker_count(options, len(manifest))
    taps = _taps(options, backbone)
    features = None
    precision = resolve_precision(options.precision, device)
    with clock.part("extract"):
        if options.strategy == "scratch":
            from toolkit.data.verify import unreadable

            failures = unreadable(manifest, workers=workers, max_pixels=options.max_pixels)
        else:
            extracted = extract(
                backbone,
                manifest,
                taps=taps,
                device=device,
                precision=precision,
                workers=workers,
                max_pixels=options.max_pixels,
            )
            features, failures = extracted.values, extracted.failures
    usable = assign_splits(some_left(manifest.without(failures)), val=options.val, seed=options.seed)
    with clock.part("plan"):
        plan = plan_for(usable, options, backbone, taps)
    head = None
    if features is not None:
        with clock.part("fit"):
            head = _instant_head(usable, features, tap_widths(backbone, taps), options)
    return Prepared(usable, backbone, plan, workers, features, precision == "32-true", head)


def plan_for(manifest: Manifest, options: Options, backbone: Backbone, taps: tuple[int, ...]) -> TransferPlan:
    """Return the plan for a split Manifest and an open backbone."""
    return make_plan(
        facts_of(manifest),
        options,
        backbone=backbone.name,
        n_stages=len(backbone),
        taps=taps,
        image_size_px=backbone.preprocessing.crop_px,
    )


def prepare_again(
    folder: RunFolder, manifest: Manifest, options: Options, backbone: Backbone, clock: Clock
) -> Prepared:
    """Return what `prepare` gave before the checkpoint: plan and quarantine are read, nothing is extracted."""
    try:
        with open(folder.path / QUARANTINE, encoding="utf-8", newline="") as file:
            recorded = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise ArtifactError(f"{folder.path / QUARANTINE} cannot be read; start the run again") from error
    failed = [(row, recorded[path]) for row, path in enumerate(manifest.paths) if path in recorded]
    usable = assign_splits(some_left(manifest.without(failed)), val=options.val, seed=options.seed)
    with clock.part("plan"):
        plan = read_plan(folder)
    return Prepared(usable, backbone, plan, worker_count(options, len(usable)))


def read_plan(folder: RunFolder) -> TransferPlan:
    """Return the plan that a run has written; raises ArtifactError."""
    try:
        return TransferPlan.from_dict(folder.read(PLAN))
    except (AttributeError, TypeError) as error:
        raise ArtifactError(f"{folder.path / PLAN} is not a plan that a run wrote ({error})") from error


def worker_count(options: Options, n_images: int) -> int:
    """Return how many processes decode."""
    from toolkit.data.loading import default_workers

    return default_workers(n_images) if options.workers is None else options.workers


def _taps(options: Options, backbone: Backbone) -> tuple[int, ...]:
    return default_taps(backbone) if options.taps is None else check_taps(options.taps, len(backbone))


def some_left(manifest: Manifest) -> Manifest:
    """Return the Manifest; raises DataError if it has no image."""
    if not len(manifest):
        first = manifest.quarantined[0]
        raise DataError(
            f"{manifest.root}: none of the {len(manifest.quarantined)} images can be used; the first: "
            f"{first.path}: {first.reason}"
        )
    return manifest


def _instant_head(
    manifest: Manifest, features: NDArray[np.float32], widths: tuple[int, ...], options: Options
) -> LinearHead:
    train = manifest.rows(TRAIN)
    logistic = LogisticHead(widths, balanced=options.class_weights == "balanced", seed=options.seed)
    return logistic.fit(features[train], manifest.labels[train], len(manifest.classes)).head_
