"""Trials of an instant head: fitted to stored features of all but a fold of the training images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from toolkit.backbones.taps import tap_widths
from toolkit.data.manifest import TRAIN, Manifest
from toolkit.features.stored import PooledRows, Stored
from toolkit.heads.blocks import Picked, spans, tap_columns
from toolkit.heads.choose import choose_head
from toolkit.tasks.job import Job
from toolkit.tasks.prepare import head_settings
from toolkit.tasks.search_folds import folds_of, judged, training_only, without_fold
from toolkit.tuning.outcomes import Judged

SHORT_FOLDS = 2  # of the coarse stage: a head has no epochs that could be fewer


@dataclass(frozen=True, eq=False)
class HeadTrials:
    """Judges kinds of heads on stages: λ, C or k are chosen, and probabilities calibrated, without the fold.

    features: (N, D) of every stage side by side, of all rows of `manifest`, whose training rows alone have labels.
    """

    job: Job
    manifest: Manifest
    features: PooledRows
    stages: tuple[int, ...]
    folds: NDArray[np.int64]

    @staticmethod
    def of(job: Job, manifest: Manifest, probe: Stored, n_folds: int, seed: int) -> HeadTrials:
        """Return the trials on stored features, position by position those of a split Manifest's rows."""
        ours = training_only(manifest)
        stages = probe.request.taps
        return HeadTrials(job, ours, probe.pooled(), stages, folds_of(ours, n_folds, seed))

    def n_folds(self, short: bool) -> int:
        """Return how many folds judge a trial."""
        n_folds = int(self.folds.max()) + 1
        return min(SHORT_FOLDS, n_folds) if short else n_folds

    def judge(self, options: Mapping[str, Any], fold: int, short: bool) -> Judged:
        """Return how a head does on a fold: chosen as `finetune` chooses it, among what the options leave open."""
        widths, labels = tap_widths(self.job.backbone, self.stages), self.manifest.labels
        taps = options.get("taps", self.job.taps)
        settings = head_settings(self.job.options, len(taps))
        if "taps" in options:
            settings["tap_sets"] = (tuple(range(len(taps))),)
        if "head" in options:
            settings["kind"] = options["head"]
        columns = tap_columns(widths, [self.stages.index(tap) for tap in taps])
        train = without_fold(self.manifest, self.folds, fold).rows(TRAIN)
        rows = np.flatnonzero(self.folds == fold)
        own = tap_widths(self.job.backbone, taps)
        n_classes = len(self.manifest.classes)
        chosen = choose_head(Picked(self.features, train, columns), labels[train], n_classes, own, **settings)
        held = Picked(self.features, rows, columns)
        seen = tap_columns(own, chosen.taps)
        with torch.inference_mode():
            blocks = [chosen.head(torch.from_numpy(held[span][:, seen].copy())) for span in spans(len(rows))]
        return judged(rows, torch.cat(blocks), labels[rows])
