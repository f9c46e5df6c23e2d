"""`--lr auto`: a range test of the tail before it trains, on what it will train on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.artifacts.run_folder import LR_RANGE, LR_RANGE_PICTURE, PLAN, RunFolder
from toolkit.backbones.taps import tap_widths
from toolkit.data.loading import Batch
from toolkit.data.manifest import TEST, VAL, Manifest
from toolkit.features.prefix import Activations
from toolkit.hardware import resolve_precision
from toolkit.heads.linear import LinearHead, unit_rms
from toolkit.options import AUTO_RATE
from toolkit.planning.probes import stratified
from toolkit.progress import say
from toolkit.storage import publish_text
from toolkit.tasks.job import Job
from toolkit.tasks.prepare import Prepared
from toolkit.tasks.tail_fit import make_data, make_module
from toolkit.tasks.trial import head_without, held_out
from toolkit.training.checkpoints import random_state, set_random_state
from toolkit.training.depthwise import quick_depthwise
from toolkit.training.range_chart import range_chart, range_csv
from toolkit.training.range_test import RangeTest, range_test

LOOKED_AT = 128  # images held out; a batch more or less


def with_rate(folder: RunFolder, prepared: Prepared, job: Job) -> Prepared:
    """Return what was prepared, its plan with the rate that a range test suggests, written to the run folder.

    Nothing happens where a rate was set, or was found before the run was resumed.
    """
    plan = prepared.plan
    if job.options.lr != AUTO_RATE or plan.recipe is None or plan.rate_test is not None:
        return prepared
    found = tested(prepared, job)
    lr = plan.recipe.lr if found is None else found.suggested_lr
    told: dict[str, Any] = {"multiplier": 1.0, "steps": 0}
    reason = "no image can be held out for a range test: the strategy's own rate stays"
    if found is not None:
        told = {"multiplier": round(found.multiplier, 6), "steps": len(found.points)}
        reason = f"{found.reason}: lr {lr:g} instead of {plan.recipe.lr:g}"
        publish_text(folder.path / LR_RANGE, range_csv(found))
        range_chart(found, folder.path / LR_RANGE_PICTURE)
    say(reason)
    plan = replace(plan, recipe=replace(plan.recipe, lr=lr), rate_test=told, reasons=(*plan.reasons, reason))
    folder.write(PLAN, plan.to_dict())
    return replace(prepared, plan=plan)


def tested(prepared: Prepared, job: Job) -> RangeTest | None:
    """Return the RangeTest of a tail without the images held out of the first trial, which say how it does; None where
    none can be held out.

    It begins with a head that has not seen them, as the trial does, and goes through the views of the epochs that
    follow the first, whose clean views the head was made of. From random weights, where norms move with the batch,
    the training batches themselves say it.
    """
    plan, options = prepared.plan, job.options
    assert plan.recipe is not None
    parts = held_out(prepared.manifest, options.seed)
    if not parts:
        return None
    manifest, drawn = parts[0], random_state()
    if plan.strategy == "scratch":
        widths = tap_widths(job.backbone, plan.taps)
        head: nn.Module = LinearHead(widths, len(manifest.classes), unit_rms(widths))
    else:
        head = head_without(manifest, prepared, job)
    module = make_module(prepared, job, head)
    module.to(job.device)
    precision = resolve_precision(options.precision, job.device)
    trained = module.network.stages[module.network.spec.cut :]
    folded = module.network.folded() if precision == "32-true" else nullcontext()
    torch.manual_seed(options.seed)
    say("range test: one factor on all rates rises until the loss gets worse")
    with folded, quick_depthwise(trained):
        found = range_test(
            module,
            _batches(manifest, prepared, job),
            [] if plan.recipe.batchnorm == "moving" else _looked_at(manifest, prepared, job),
            precision=precision,
            clip=1.0 if options.clip is None else options.clip,
        )
    module.cpu()
    set_random_state(drawn)
    return found


def _batches(manifest: Manifest, prepared: Prepared, job: Job) -> Any:
    """Return epoch → batches of its training images; a loader of its own, so that nobody's place is lost."""
    loader = make_data(prepared, manifest, job).train_dataloader()

    def of(epoch: int) -> Iterator[tuple[Tensor | Activations, Tensor]]:
        loader.sampler.set_epoch(epoch + 1)  # type: ignore[attr-defined]
        for batch in loader:
            if len(batch.labels):
                yield _on(batch, job.device)

    return of


def _looked_at(manifest: Manifest, prepared: Prepared, job: Job) -> list[tuple[Tensor | Activations, Tensor]]:
    """Return batches of images that were held out, of every class its share where they are many."""
    rows = manifest.rows(VAL)
    others = np.delete(rows, stratified(manifest.labels[rows], LOOKED_AT, job.options.seed))
    splits = manifest.splits.copy()
    splits[others] = TEST
    manifest = replace(manifest, splits=splits)
    found: list[tuple[Tensor | Activations, Tensor]] = []
    for batch in make_data(prepared, manifest, job).val_dataloader():
        if len(batch.labels):
            found.append(_on(batch, job.device))
    return found


def _on(batch: Batch, device: torch.device) -> tuple[Tensor | Activations, Tensor]:
    inputs: Any = batch.inputs
    if isinstance(inputs, Activations):
        at_cut = None if inputs.at_cut is None else inputs.at_cut.to(device)
        return Activations(at_cut, tuple(part.to(device) for part in inputs.pooled)), batch.labels.to(device)
    return inputs.to(device), batch.labels.to(device)
