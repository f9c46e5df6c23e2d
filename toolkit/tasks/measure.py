"""What is measured of a data set before a plan is made: stored features are probed, a few images looked at again."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toolkit.backbones.operations import stage_operations
from toolkit.backbones.taps import tap_widths
from toolkit.data.loading import clean_batches
from toolkit.data.manifest import TRAIN, Manifest
from toolkit.data.scan import with_sizes
from toolkit.features.stored import Stored
from toolkit.planning.evidence import Evidence
from toolkit.planning.facts import facts_of
from toolkit.planning.probes import Probe, probe_stages, stratified
from toolkit.planning.similarity import SAMPLE, Similarity, similarity_of
from toolkit.storage import digest
from toolkit.tasks.job import Job, worker_count

LOOKED_AT = 1  # how images are looked at; another way of measuring, another number
COLOURLESS = 2.0  # of 255: the channels of a pixel of a grey JPEG differ by this much at most, on average

# Multiply-adds a second that count as what a device does: nominal, so that decisions do not depend on the hour.
# EfficientNet-Lite0 trains at 12 to 27 G a core at 96 and 224 px (scripts/bench/finetune); GPUs differ by far more.
CAPACITY_A_CORE, CAPACITY_OF_A_GPU, CAPACITY_OF_MPS = 10e9, 1e12, 2e11


@dataclass(frozen=True)
class Measured:
    """Evidence, and the seconds that its probes took."""

    evidence: Evidence
    probing_s: float


def counted(manifest: Manifest, job: Job) -> Evidence:
    """Return what is known of a split Manifest without decoding any image."""
    facts = facts_of(with_sizes(manifest, max_pixels=job.options.max_pixels))
    return Evidence(facts, operations=stage_operations(job.backbone), capacity=capacity_of(job.device))


def measured(manifest: Manifest, probe: Stored, job: Job) -> Measured:
    """Return the whole Evidence for a split Manifest, `probe` holding the pooled features of view 0 of its rows."""
    train = manifest.rows(TRAIN)
    labels = manifest.labels[train]
    start = time.perf_counter()
    probes = probes_of(manifest, probe, job)
    probing_s = time.perf_counter() - start
    known = counted(manifest, job)
    similarity, grey_share = _looked_at(manifest, train[stratified(labels, SAMPLE, job.options.seed)], probe, job)
    taps = None if job.options.taps is None else job.taps
    facts = replace(known.facts, grey_share=grey_share)
    return Measured(replace(known, facts=facts, similarity=similarity, probes=probes, taps=taps), probing_s)


def _looked_at(
    manifest: Manifest, rows: NDArray[np.int64], probe: Stored, job: Job
) -> tuple[Similarity | None, float | None]:
    """Return the similarity of some images and the share of them that has no colour; remembered by their contents.

    Nothing is remembered of images that could not be read, or changed since they were hashed, nor of a similarity that
    could not be measured: the next time it may be.
    """

    def measure() -> tuple[dict[str, Any], bool]:
        pixels = clean_pixels(manifest, rows, job)
        similarity = None
        with suppress(RuntimeError, ValueError, TypeError, AttributeError, IndexError):  # say, of one batch size alone
            similarity = similarity_of(job.backbone, pixels, job.device)
        told = None if similarity is None else asdict(similarity)
        kept = told is not None and len(pixels) == len(rows) and _are_unchanged(manifest, rows, probe)
        return {"similarity": told, "grey_share": _grey_share(pixels)}, kept

    what = {"looked at": LOOKED_AT, "images": contents_digest(probe, rows)}
    try:
        return _told(job.store.remembered(job.request, what, measure))
    except (KeyError, TypeError):  # what was remembered is not what was written
        return _told(measure()[0])


def _told(found: dict[str, Any]) -> tuple[Similarity | None, float | None]:
    return None if found["similarity"] is None else Similarity(**found["similarity"]), found["grey_share"]


def _are_unchanged(manifest: Manifest, rows: NDArray[np.int64], probe: Stored) -> bool:
    """Return whether some files still hold what the features were computed of."""
    try:
        return all(digest(manifest.file(row).read_bytes()) == probe.digests[row].tobytes() for row in rows.tolist())
    except OSError:
        return False


def contents_digest(probe: Stored, rows: NDArray[np.int64]) -> str:
    """Return a digest of the contents of some images, in their order; `probe` has a row for every one of them."""
    return hashlib.blake2b(np.ascontiguousarray(probe.digests[rows]).tobytes(), digest_size=16).hexdigest()


def probes_of(manifest: Manifest, probe: Stored, job: Job) -> tuple[Probe, ...]:
    """Return the probes of all stages on the training images of a split Manifest."""
    train, taps = manifest.rows(TRAIN), probe.request.taps
    widths, labels = tap_widths(job.backbone, taps), manifest.labels[train]
    wanted = None if job.options.taps is None else job.taps
    return probe_stages(probe.pooled(train), labels, len(manifest.classes), widths, taps, job.options.seed, wanted)


def capacity_of(device: torch.device) -> float:
    """Return the multiply-adds a second that a device counts for; of a CPU by the cores that the process may use."""
    if device.type == "cuda":
        return CAPACITY_OF_A_GPU
    if device.type == "mps":
        return CAPACITY_OF_MPS
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return CAPACITY_A_CORE * cores


def clean_pixels(manifest: Manifest, rows: NDArray[np.int64], job: Job) -> Tensor:
    """Return uint8 (n, 3, S, S): the clean views of some images, without those that cannot be read any more."""
    batches = clean_batches(
        manifest,
        rows,
        job.backbone.preprocessing,
        batch_size=16,
        workers=min(worker_count(job.options, len(rows)), 4),
        max_pixels=job.options.max_pixels,
        turns=job.device.type == "cpu",
    )
    return torch.cat([batch.inputs for batch in batches])


def _grey_share(pixels: Tensor) -> float | None:
    """Return the share of the images whose channels are alike."""
    if not len(pixels):
        return None
    colours = pixels.float()
    apart = (colours.amax(1) - colours.amin(1)).mean(dim=(1, 2))
    return float((apart < COLOURLESS).float().mean())
