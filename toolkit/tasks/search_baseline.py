"""Trials of a baseline: a net trained on rows that were read once, without a fold of the training images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from toolkit.baselines.inputs import BLOCK
from toolkit.baselines.net import CentredNet
from toolkit.baselines.options import BaselineOptions
from toolkit.tasks.baseline_inputs import Examples
from toolkit.tasks.baseline_run import trained_net
from toolkit.tasks.search_folds import folds_of, judged, short_epochs, training_only, without_fold
from toolkit.training.fit import FitSettings
from toolkit.tuning.outcomes import Judged

NOWHERE = Path()  # a brief training writes nothing


@dataclass(frozen=True, eq=False)
class BaselineTrials:
    """Judges settings of a baseline; examples: with the labels of the training images alone. folds: int64 (N,)."""

    examples: Examples
    options: BaselineOptions
    folds: NDArray[np.int64]

    @staticmethod
    def of(examples: Examples, options: BaselineOptions, n_folds: int, seed: int) -> BaselineTrials:
        """Return the trials on the training images of some examples, dealt by a seed."""
        manifest = training_only(examples.manifest)
        return BaselineTrials(replace(examples, manifest=manifest), options, folds_of(manifest, n_folds, seed))

    def n_folds(self, short: bool) -> int:
        """Return how many folds there are; a short trial has as many, of fewer epochs."""
        return int(self.folds.max()) + 1

    def judge(self, options: Mapping[str, Any], fold: int, short: bool) -> Judged:
        """Return how a net does on a fold; raises ToolkitError where it diverges."""
        ours = replace(self.options, **options)
        manifest = self.examples.manifest
        train, rows = without_fold(manifest, self.folds, fold), np.flatnonzero(self.folds == fold)
        epochs = ours.value("epochs")
        settings = FitSettings(short_epochs(epochs) if short else epochs, "32-true", clip=None, brief=True)
        net = trained_net(replace(self.examples, manifest=train), ours, settings, NOWHERE, NOWHERE)
        return judged(rows, self._scores(net, rows), manifest.labels[rows])

    def _scores(self, net: CentredNet, rows: NDArray[np.int64]) -> torch.Tensor:
        net, inputs = net.eval(), self.examples.inputs
        blocks = (inputs.take(rows[start : start + BLOCK]).flatten(1) for start in range(0, len(rows), BLOCK))
        with torch.inference_mode():
            return torch.cat([net(block) for block in blocks])
