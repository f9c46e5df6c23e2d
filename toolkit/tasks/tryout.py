"""Where a tail is tried out before it trains: on the training images, but for those that judge it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from toolkit.backbones.taps import tap_widths
from toolkit.data.loading import Batch
from toolkit.data.manifest import TEST, VAL, Manifest
from toolkit.features.prefix import Activations
from toolkit.hardware import resolve_precision
from toolkit.heads.linear import LinearHead, unit_rms
from toolkit.planning.probes import stratified
from toolkit.tasks.job import Job
from toolkit.tasks.prepared import Prepared
from toolkit.tasks.tail_fit import make_data, make_module
from toolkit.tasks.trial import head_without
from toolkit.training.depthwise import quick_depthwise
from toolkit.training.tryout import Labelled


class Tryout:
    """A tail on its device, its head made without the VAL images of a Manifest, which judge.

    A context: leaving it takes the tail from the device.
    """

    def __init__(self, manifest: Manifest, prepared: Prepared, job: Job) -> None:
        plan = prepared.plan
        if plan.strategy == "scratch":
            widths = tap_widths(job.backbone, plan.taps)
            head: nn.Module = LinearHead(widths, len(manifest.classes), unit_rms(widths))
        else:
            head = head_without(manifest, prepared, job)
        self.manifest, self.prepared, self.job = manifest, prepared, job
        self.module = make_module(prepared, job, head)
        self._loader = make_data(prepared, manifest, job).train_dataloader()  # its own: nobody's place is lost
        self._open = ExitStack()

    @property
    def batches_an_epoch(self) -> int:
        """Batches of the training images."""
        return len(self._loader)

    def __enter__(self) -> Tryout:
        self.module.to(self.job.device)
        network = self.module.network
        if resolve_precision(self.job.options.precision, self.job.device) == "32-true":
            self._open.enter_context(network.folded())
        self._open.enter_context(quick_depthwise(network.stages[network.spec.cut :]))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
        self.module.cpu()

    def batches(self, epoch: int) -> Iterator[Labelled]:
        """Yield the batches of the epoch after this one; what is drawn on the way is always the same."""
        if epoch == 0:
            torch.manual_seed(self.job.options.seed)
        self._loader.sampler.set_epoch(epoch + 1)  # type: ignore[attr-defined]
        for batch in self._loader:
            if len(batch.labels):
                yield _on(batch, self.job.device)

    def judges(self, at_most: int | None = None) -> Iterator[Labelled]:
        """Yield batches of the images held out, of every class its share where they are more than `at_most`."""
        manifest = self.manifest
        if at_most is not None:
            rows = manifest.rows(VAL)
            others = np.delete(rows, stratified(manifest.labels[rows], at_most, self.job.options.seed))
            splits = manifest.splits.copy()
            splits[others] = TEST
            manifest = replace(manifest, splits=splits)
        for batch in make_data(self.prepared, manifest, self.job).val_dataloader():
            if len(batch.labels):
                yield _on(batch, self.job.device)


def _on(batch: Batch, device: torch.device) -> Labelled:
    inputs: Any = batch.inputs
    if isinstance(inputs, Activations):
        at_cut = None if inputs.at_cut is None else inputs.at_cut.to(device)
        return Activations(at_cut, tuple(part.to(device) for part in inputs.pooled)), batch.labels.to(device)
    return inputs.to(device), batch.labels.to(device)
