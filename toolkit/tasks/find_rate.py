"""`--lr auto`: a range test and short trainings of the tail before it trains, on what it will train on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from toolkit.artifacts.run_folder import LR_RANGE, LR_RANGE_PICTURE, PLAN, RunFolder
from toolkit.backbones.taps import tap_widths
from toolkit.data.loading import Batch
from toolkit.data.manifest import TEST, VAL, Manifest
from toolkit.features.prefix import Activations
from toolkit.hardware import resolve_precision
from toolkit.heads.linear import LinearHead, unit_rms
from toolkit.options import AUTO_RATE
from toolkit.planning.forecast import REHEARSED_STEPS
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
from toolkit.training.range_test import HIGH, LOW, RangeTest, range_test, settled
from toolkit.training.rehearsal import Rehearsal, climb, rehearse
from toolkit.training.tryout import Labelled

LOOKED_AT = 128  # images held out that a step of the range test is judged by; a batch more or less
JUDGES = 300  # images held out that are enough to tell rates apart; several parts of the set where one has fewer


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
        told["rehearsals"] = [one.to_dict() for one in found.rehearsals]
        stays = lr == plan.recipe.lr
        reason = f"{found.reason}: lr {lr:g}{', as it was' if stays else f' instead of {plan.recipe.lr:g}'}"
        publish_text(folder.path / LR_RANGE, range_csv(found))
        range_chart(found, folder.path / LR_RANGE_PICTURE)
    say(reason)
    plan = replace(plan, recipe=replace(plan.recipe, lr=lr), rate_test=told, reasons=(*plan.reasons, reason))
    folder.write(PLAN, plan.to_dict())
    return replace(prepared, plan=plan)


def tested(prepared: Prepared, job: Job) -> RangeTest | None:
    """Return the RangeTest of a tail without the images held out of a trial, which say how it does; None where none can
    be held out.

    It begins with a head that has not seen them, as the trial does, and goes through the views of the epochs that
    follow the first, whose clean views the head was made of. A step at a rate says little of a training that warms up
    to it and comes back from it: so the rate that the test suggests and the strategy's own one are rehearsed, in a
    hundred of its steps, and larger or smaller ones from there, as long as they help; where images are few, without
    each part of them that a trial may hold out, so that more of them judge. From random weights, where norms move with
    the batch, the training batches of the test alone say it.
    """
    plan, options = prepared.plan, job.options
    assert plan.recipe is not None
    parts = held_out(prepared.manifest, options.seed)
    if not parts:
        return None
    drawn = random_state()
    settings: dict[str, Any] = {
        "precision": resolve_precision(options.precision, job.device),
        "clip": 1.0 if options.clip is None else options.clip,
        "accumulate": options.accumulate or 1,
    }
    say("range test: one factor on all rates rises until the loss gets worse")
    if plan.recipe.batchnorm == "moving":
        with _Tryout(parts[0], prepared, job) as one:
            found = range_test(one.module, one.batches, [], **settings)
    else:
        with _Tryout(parts[0], prepared, job) as one:
            found = range_test(one.module, one.batches, list(one.judges(LOOKED_AT)), **settings)
        found = _rehearsed(found, parts, settings, prepared, job)
    set_random_state(drawn)
    return found


def _rehearsed(
    found: RangeTest, parts: Sequence[Manifest], settings: dict[str, Any], prepared: Prepared, job: Job
) -> RangeTest:
    """Return the RangeTest with what short trainings say of its rate, the strategy's own one, and others."""
    judges = np.cumsum([len(part.rows(VAL)) for part in parts])
    tryouts = [_Tryout(part, prepared, job) for part in parts[: 1 + int(np.searchsorted(judges, JUDGES))]]
    epochs = prepared.plan.epochs or 1
    n_steps = min(REHEARSED_STEPS, epochs * -(-tryouts[0].batches_an_epoch // settings["accumulate"]))
    length = {"steps": n_steps, "steps_an_epoch": n_steps / epochs}

    def of_all(multiplier: float) -> Rehearsal:
        done = []
        for one in tryouts:
            with one:
                judges = one.judges()
                done.append(rehearse(one.module, one.batches, judges, multiplier, **length, **settings))
        joined = Rehearsal.joined(done)
        say(f"  {n_steps} steps at {multiplier:.2g} times: loss {joined.loss:.3f}, {joined.accuracy:.3f} right")
        return joined

    starts = dict.fromkeys((1.0, found.multiplier))
    return settled(found, climb(of_all, list(starts), low=LOW, high=HIGH), n_steps)


class _Tryout:
    """Where rates are tried out: a tail on its device, its head made without the VAL images of a Manifest, which judge.

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

    def __enter__(self) -> _Tryout:
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
