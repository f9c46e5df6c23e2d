"""What a check finds in the data: files, copies, labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from toolkit.backbones.taps import tap_widths
from toolkit.checks import exchanged
from toolkit.checks.candidates import feature_pairs, hash_pairs, perceptual_hashes
from toolkit.checks.copies import exact_twins, near_twins, with_copies
from toolkit.checks.duplicates import duplicate_findings
from toolkit.checks.files import file_findings
from toolkit.checks.finding import Finding, Suspect
from toolkit.checks.label_errors import label_findings, unseen_scores
from toolkit.data.manifest import Manifest
from toolkit.features.stored import Stored
from toolkit.tasks.job import Job
from toolkit.tasks.squeezed import Pictures

DEEPEST = 3  # stages, the last, whose features tell pictures apart


def data_findings(
    manifest: Manifest, probe: Stored, pictures: Pictures, job: Job, own_splits: Sequence[int]
) -> tuple[list[Finding], list[Suspect]]:
    """Return what is to be said of a split Manifest; `probe` holds the pooled features of its rows."""
    findings, suspects = file_findings(manifest, own_splits)
    copies, doubles = _copies(manifest, probe, pictures, job, own_splits)
    labels, doubtful = _labels(manifest, probe, job, own_splits)
    return [*findings, *copies, labels], [*suspects, *doubles, *doubtful]


def _copies(
    manifest: Manifest, probe: Stored, pictures: Pictures, job: Job, own_splits: Sequence[int]
) -> tuple[list[Finding], list[Suspect]]:
    """Return what is to be said of equal pictures: of equal files, and of pairs that are near by features or hashes."""
    exact = exact_twins(probe.digests, range(len(manifest)))
    kept = np.setdiff1d(np.arange(len(manifest)), [twin.second for twin in exact])  # one of each content
    taps = probe.request.taps[-DEEPEST:]
    blocks = [perceptual_hashes(pictures.grey(rows)) for rows in pictures.blocks(kept)]
    hashes, turned = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    candidates = [
        feature_pairs(probe.pooled(kept, taps=taps), tap_widths(job.backbone, taps), job.options.seed),
        hash_pairs(hashes, turned),
    ]
    kinds = list(zip(manifest.labels.tolist(), manifest.splits.tolist(), strict=True))
    near = with_copies(near_twins([one.among(kept) for one in candidates], pictures.of), exact, kinds)
    return duplicate_findings(manifest, exact, near, own_splits)


def _labels(manifest: Manifest, probe: Stored, job: Job, own_splits: Sequence[int]) -> tuple[Finding, list[Suspect]]:
    """Return what the images say of each other's labels, by the features that a head would see."""
    rows = np.flatnonzero(manifest.labels >= 0)
    taps = tuple(tap for tap in probe.request.taps if tap in job.taps)
    features = probe.pooled(rows, taps=taps)
    widths, seed = tap_widths(job.backbone, taps), job.options.seed
    scores = unseen_scores(features, manifest.labels[rows], len(manifest.classes), widths, seed)
    told = exchanged.told(manifest, rows, features, widths, own_splits, seed)
    return label_findings(manifest, rows, scores, told)
