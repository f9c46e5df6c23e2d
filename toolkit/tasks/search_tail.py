"""Trials of a fine-tuning: a tail trained on stored activations of all but a fold of the training images."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from toolkit.data.manifest import Manifest
from toolkit.errors import DataError
from toolkit.planning.recipes import recipe_for
from toolkit.tasks.job import Job
from toolkit.tasks.prepare import prepare
from toolkit.tasks.prepared import Prepared
from toolkit.tasks.search_folds import folds_of, judged, short_epochs, training_only, without_fold
from toolkit.tasks.tail_fit import Phase, make_data, make_module, run_fit
from toolkit.tasks.trial import head_without
from toolkit.training.mixing import trained_state
from toolkit.training.trained import TrainedModel
from toolkit.tuning.outcomes import Judged

NOWHERE = Path()  # a brief training writes nothing
PREPARED_BY = ("cut", "augment")  # options that change what is stored; others change how it is trained


@dataclass(frozen=True, eq=False)
class TailTrials:
    """Judges recipes of `partial` or `full` by all of the fine-tuned weights, at the end of the training.

    scanned: the images before any was decoded; how many are usable is known after the first pass over them.
    """

    job: Job
    scanned: Manifest
    n: int
    seed: int
    _prepared: dict[tuple[Any, ...], Prepared] = field(default_factory=dict)

    def n_folds(self, short: bool) -> int:
        """Return how many folds there are; a short trial has as many, of fewer epochs."""
        return int(self._folds(self.prepared({}).manifest).max()) + 1

    def prepared(self, options: Mapping[str, Any]) -> Prepared:
        """Return what is stored for a cut and an augmentation, computed when it is asked for first."""
        key = tuple(options.get(name) for name in PREPARED_BY)
        if key not in self._prepared:
            own = {name: options[name] for name in PREPARED_BY if name in options}
            found = prepare(self.scanned, replace(self.job, options=replace(self.job.options, **own)))
            self._prepared[key] = replace(found, manifest=training_only(found.manifest))
        return self._prepared[key]

    def judge(self, options: Mapping[str, Any], fold: int, short: bool) -> Judged:
        """Return how a fine-tuned tail does on a fold; raises CollapsedError where it lost what its head knew."""
        prepared = self.prepared(options)
        own = replace(self.job.backbone, stages=copy.deepcopy(self.job.backbone.stages))  # they learn, and drop paths
        ours = replace(self.job, options=replace(self.job.options, **options), backbone=own)
        epochs = prepared.plan.epochs
        assert epochs is not None
        recipe = recipe_for(prepared.plan.strategy, ours.options)
        plan = replace(prepared.plan, recipe=recipe, epochs=short_epochs(epochs) if short else epochs)
        prepared = replace(prepared, plan=plan)
        folds = self._folds(prepared.manifest)
        train = without_fold(prepared.manifest, folds, fold)
        held = without_fold(prepared.manifest, folds, fold, judging=True)
        module = make_module(prepared, ours, head_without(train, prepared, ours))
        phase = Phase(NOWHERE, NOWHERE, train, None, brief=True)
        start = trained_state(module.network)
        run_fit(module, make_data(prepared, train, ours), phase, prepared, ours, row=None, start=start)
        model = TrainedModel.of(module.network, ours.backbone, held.classes, ours.options.max_pixels)
        batches = [batch for batch in make_data(prepared, held, ours).val_dataloader() if len(batch.rows)]
        if not batches:
            raise DataError(f"{held.root}: none of the images of a fold can be read any more")
        scores = torch.cat([model.logits(batch.inputs, ours.device) for batch in batches])
        rows = torch.cat([batch.rows for batch in batches]).numpy()
        return judged(rows, scores, prepared.manifest.labels[rows])

    def _folds(self, manifest: Manifest) -> NDArray[np.int64]:
        return folds_of(manifest, self.n, self.seed)
