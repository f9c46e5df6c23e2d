"""Job: what every part of a run works with; and what can be said of it before any image is decoded."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np
import torch
from numpy.typing import NDArray

from toolkit.backbones.backbone import Backbone
from toolkit.backbones.catalog import as_backbone, build_backbone
from toolkit.backbones.taps import check_taps, default_taps
from toolkit.data.loading import default_workers
from toolkit.data.manifest import Manifest
from toolkit.data.scan import with_sizes
from toolkit.data.split import assign_splits
from toolkit.errors import DataError, SettingError
from toolkit.features.prefix import prefix_dtype
from toolkit.features.request import MOST_POOLED, Request
from toolkit.features.store import FeatureStore
from toolkit.features.stored import Stored
from toolkit.hardware import resolve_device
from toolkit.options import AUTO_BACKBONE, Options
from toolkit.plan import TransferPlan
from toolkit.planning.evidence import Evidence
from toolkit.planning.facts import facts_of
from toolkit.planning.policy import make_plan
from toolkit.progress import say
from toolkit.training.able import check_able


@dataclass
class Stopwatch:
    """Seconds by part of a run."""

    seconds: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time of a block to a part."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def to_dict(self) -> dict[str, float]:
        """Return every part of `metrics.json`, and the total so far."""
        parts = {name: round(self.seconds.get(name, 0.0), 3) for name in ("scan", "extract", "plan", "fit", "evaluate")}
        return {"total": round(time.perf_counter() - self.began, 3), **parts}


@dataclass(frozen=True, eq=False)
class Job:
    """The options of a run, its open backbone, and the store that it computes into."""

    options: Options
    backbone: Backbone
    store: FeatureStore
    clock: Stopwatch
    remarks: tuple[str, ...] = ()  # of how they came about, for the plan
    tried: dict[str, float] = field(default_factory=dict)  # seconds, for predictions

    @cached_property
    def device(self) -> torch.device:
        """Where forwards run."""
        return resolve_device(self.options.device)

    @cached_property
    def dtype(self) -> torch.dtype:
        """Number format of frozen forwards."""
        return prefix_dtype(self.backbone, self.options.precision, self.device)

    @property
    def taps(self) -> tuple[int, ...]:
        """The stages whose pooled outputs a head may see."""
        return taps_of(self.options, self.backbone)

    @cached_property
    def request(self) -> Request:
        """A Request for pooled features of view 0 at all taps; others are made from it."""
        return Request(self.backbone, self.taps, seed=self.options.seed, dtype=self.dtype, device=self.device)

    @property
    def all_taps(self) -> Request:
        """A Request for pooled features of view 0 at every stage, the last 12 of more, which a plan is made from."""
        n = len(self.backbone)
        return replace(self.request, taps=tuple(sorted({*self.taps, *range(max(0, n - MOST_POOLED), n)})))

    def fetch(self, request: Request, manifest: Manifest, rows: NDArray[np.int64] | None = None) -> Stored:
        """Return what is stored of some rows, all by default, computing what is missing."""
        workers = worker_count(self.options, len(manifest))
        return self.store.fetch(request, manifest, rows, workers=workers, max_pixels=self.options.max_pixels)


def open_backbone(options: Options, *, pretrained: bool = True) -> Backbone:
    """Return the backbone that the options name, with random weights for `scratch` or where its shape is enough."""
    if isinstance(options.backbone, str) and options.backbone == AUTO_BACKBONE:
        raise SettingError("backbone: 'auto' is chosen by finetune and plan; here, name one")
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
    return plan_for(Evidence(facts_of(with_sizes(split, max_pixels=options.max_pixels))), options, backbone)


def plan_for(evidence: Evidence, options: Options, backbone: Backbone) -> TransferPlan:
    """Return the plan that evidence leads to for an open backbone."""
    return make_plan(
        evidence,
        options,
        backbone=backbone.name,
        stage_sizes=backbone.stage_sizes(),
        taps=taps_of(options, backbone),
        image_size_px=backbone.preprocessing.crop_px,
        able=partial(check_able, backbone),
    )


def taps_of(options: Options, backbone: Backbone) -> tuple[int, ...]:
    """Return the taps that were set, or those that may compete for the head; from scratch, nothing competes."""
    if options.taps is not None:
        return check_taps(options.taps, len(backbone))
    return default_taps(backbone)[-3:] if options.strategy == "scratch" else default_taps(backbone)


def worker_count(options: Options, n_images: int) -> int:
    """Return how many processes decode."""
    return default_workers(n_images) if options.workers is None else options.workers


def some_left(manifest: Manifest) -> Manifest:
    """Return the Manifest; raises DataError if it has no image."""
    if not len(manifest):
        first = manifest.quarantined[0]
        raise DataError(
            f"{manifest.root}: none of the {len(manifest.quarantined)} images can be used; the first: "
            f"{first.path}: {first.reason}"
        )
    return manifest
