"""The data of a baseline: scanned, or read from IDX files; then what the model sees of each image."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from toolkit.backbones.backbone import Backbone
from toolkit.backbones.catalog import build_backbone
from toolkit.backbones.taps import check_taps, tap_widths
from toolkit.baselines.idx import is_idx, read_idx
from toolkit.baselines.inputs import (
    Inputs,
    hand_made,
    idx_pixels,
    pixel_request,
    pooled_features,
    side_of,
    stored_pixels,
)
from toolkit.baselines.options import NEIGHBOURS, BaselineOptions
from toolkit.baselines.reading import Reading
from toolkit.data.loading import default_workers
from toolkit.data.manifest import TEST, TRAIN, Manifest
from toolkit.data.manifest import VAL as VALIDATION
from toolkit.data.scan import scan
from toolkit.data.split import assign_splits, train_on_all
from toolkit.errors import SettingError
from toolkit.features.mapped import check_mappable
from toolkit.features.request import Request
from toolkit.features.store import FeatureStore
from toolkit.hardware import resolve_device
from toolkit.tasks.job import some_left

VAL = 0.2
SMALLEST_HOG_PX = 4


@dataclass(frozen=True, eq=False)
class Source:
    """What the data are before anything is decoded.

    images: uint8 (N, S, S) of IDX files, None for photos. backbone: the network whose features a model sees, or None.
    """

    manifest: Manifest
    images: NDArray[np.uint8] | None = None
    backbone: Backbone | None = None


@dataclass(frozen=True, eq=False)
class Examples:
    """What a baseline learns from: usable images, split, and their inputs, row by row.

    reading: how images become those inputs; None for pretrained features, which come from a backbone's taps.
    """

    manifest: Manifest
    inputs: Inputs
    side_px: int
    reading: Reading | None = None
    backbone: Backbone | None = None
    taps: tuple[int, ...] = ()


def open_source(data: str | os.PathLike[str], options: BaselineOptions) -> Source:
    """Return the data, scanned; raises what can be said of them and the options before anything is decoded."""
    if is_idx(data):
        if options.on == "features":
            raise SettingError(f"{data}: pretrained features are made of image files, not of IDX files; make a folder")
        source = Source(*read_idx(data))
        assert source.manifest.size is not None
        side = source.manifest.size[0]
        if options.image_size not in (None, side):
            raise SettingError(f"image_size: images of IDX files stay as they are, {side} px; remove it")
    else:
        source = Source(scan(data, max_pixels=options.max_pixels))
    split = split_as(source.manifest, options)
    n_train, k = len(split.rows(TRAIN)), options.value("k")
    if options.model in NEIGHBOURS and k > n_train:
        raise SettingError(f"k: at most {n_train} expected, as many as there are training images, got {k}")
    if options.patience is not None and not len(split.rows(VALIDATION)):
        raise SettingError("patience: there are no validation images to watch; remove it, or add some")
    if options.on == "hog" and side_of(source.manifest.size, options.image_size) < SMALLEST_HOG_PX:
        raise SettingError(f"on: histograms of gradients need images of {SMALLEST_HOG_PX} px at least; set image_size")
    if options.on != "features":
        return source
    name = options.value("backbone")
    backbone = build_backbone(name, weights=options.weights, seed=options.seed, image_size_px=options.image_size)
    check_taps(options.taps, len(backbone))
    return replace(source, backbone=backbone)


def split_as(manifest: Manifest, options: BaselineOptions) -> Manifest:
    """Return the Manifest split; nothing is held out for validation where there is a labelled test split."""
    some_left(manifest)
    tested = bool(((manifest.splits == TEST) & (manifest.labels >= 0)).any())
    val = (0.0 if tested else VAL) if options.val is None else options.val
    return assign_splits(manifest, val=val, seed=options.seed) if val else train_on_all(manifest)


def read_examples(source: Source, options: BaselineOptions, store: FeatureStore) -> Examples:
    """Return what the model sees: decoded once, or extracted once, into the store; read from there."""
    if options.on == "features":
        return _pretrained(source, options, store)
    manifest, side = source.manifest, side_of(source.manifest.size, options.image_size)
    if source.images is None:
        stored = store.fetch(
            pixel_request(side), manifest, workers=_workers(options, manifest), max_pixels=options.max_pixels
        )
        manifest = split_as(manifest.without(stored.failures), options)
        pixels = stored_pixels(stored, manifest.rows(TRAIN), store.folder)
    else:
        manifest, side = split_as(manifest, options), source.images.shape[1]
        pixels = idx_pixels(source.images)
    reading = Reading(options.on, pixels.values.shape[1], side)
    inputs = pixels if options.on == "pixels" else hand_made(pixels, reading, store.folder)
    return Examples(manifest, inputs, side, reading)


def check_room(source: Source, options: BaselineOptions, store: FeatureStore) -> None:
    """Raise NoRoomError or ArtifactError where the disk has no room for what `read_examples` stores, and for the rows
    that are made of it, as many as they can be."""
    n, side, rows = len(source.manifest), side_of(source.manifest.size, options.image_size), 0
    stored = 0
    if options.on == "features":
        request = _features_request(source, options)
        stored = store.room_for(request, source.manifest)
        assert source.backbone is not None
        rows = n * 4 * sum(tap_widths(source.backbone, request.taps))
    elif source.images is None:
        stored = store.room_for(pixel_request(side), source.manifest)
        rows = n * 3 * side * side  # one channel, where all images turn out to be grey
    else:
        side = source.images.shape[1]
    if options.on == "hog":
        blank = torch.zeros(1, 3, side, side, dtype=torch.uint8)
        rows += n * 4 * Reading("hog", 3, side)(blank).shape[1]
    if rows:
        check_mappable(rows, store.folder, after=stored)


def _features_request(source: Source, options: BaselineOptions) -> Request:
    """Return the pooled features that a model sees, in single precision, in which the saved one runs: what is scored is
    what is shipped."""
    assert source.backbone is not None
    taps = check_taps(options.taps, len(source.backbone))
    device = resolve_device(options.device)
    return Request(source.backbone, taps, seed=options.seed, dtype=torch.float32, device=device)


def _pretrained(source: Source, options: BaselineOptions, store: FeatureStore) -> Examples:
    manifest, backbone = source.manifest, source.backbone
    assert backbone is not None
    request = _features_request(source, options)
    stored = store.fetch(request, manifest, workers=_workers(options, manifest), max_pixels=options.max_pixels)
    manifest = split_as(manifest.without(stored.failures), options)
    stored = replace(stored, rows=np.arange(len(manifest)), failures=())
    inputs = pooled_features(stored.pooled(), store.folder)
    return Examples(manifest, inputs, backbone.preprocessing.crop_px, backbone=backbone, taps=request.taps)


def _workers(options: BaselineOptions, manifest: Manifest) -> int:
    return default_workers(len(manifest)) if options.workers is None else options.workers
