"""The trained part of a run: everything from scratch, or a tail from its head, as far as it earns its place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from toolkit.artifacts.run_folder import HISTORY, START, TRIAL, TRIAL_HISTORY, RunFolder
from toolkit.backbones.taps import tap_widths
from toolkit.data.manifest import TRAIN, VAL, Manifest
from toolkit.data.split import hold_out
from toolkit.heads.choose import choose_head
from toolkit.progress import say
from toolkit.tasks.job import Job
from toolkit.tasks.prepare import Prepared
from toolkit.tasks.tail_fit import (
    Phase,
    fit_from_start,
    make_data,
    make_module,
    read_start,
    run_fit,
    start_row,
    write_start,
)
from toolkit.training.mixing import SHARES, STEP_ASIDE, Verdict, judge, put_mixture
from toolkit.training.module import TransferModule
from toolkit.training.network import TransferNetwork
from toolkit.training.trained import TrainedModel

HELD_OUT = 0.2  # of the training images, on which fine-tuning has to show that it earns its place
HELD_OUT_AT_MOST = 1_000  # then the standard error of an accuracy of 0.9 is a point
REFIT_UP_TO = 5_000  # training images; above, what was held out is left out for good: it is a fifth of them at most


@dataclass(frozen=True, eq=False)
class Tail:
    """A trained tail and its head. failures: files that failed on the way (row: reason). verdict: how much of the
    fine-tuning was kept, and why; None where nobody had to judge."""

    network: TransferNetwork
    failures: dict[int, str]
    verdict: Verdict | None = None


def train_tail(folder: RunFolder, prepared: Prepared, job: Job) -> Tail:
    """Return the trained network.

    From a head, fine-tuning first shows on training images held out of it what it is worth (`judge`); then it is done
    again with all of them, where they are few, and mixed with the weights that it began with. Whatever was finished
    before a kill is found in the folder's checkpoints and not done again.
    """
    options, kept = job.options, folder.checkpoints
    whole = Phase(kept, folder.path / HISTORY, prepared.manifest, options.patience)
    if prepared.plan.strategy == "scratch":
        module = make_module(prepared, job, None)
        data = make_data(prepared, whole.manifest, job)
        run_fit(module, data, whole, prepared, job, row=None)
        return Tail(_finished(module), data.failures)
    share = options.mixing if options.mixing is not None else None if options.patience is None else 1.0
    if share is not None:
        module = make_module(prepared, job, None if prepared.chosen is None else prepared.chosen.head)
        failures, _ = fit_from_start(module, whole, prepared, job, share)
        return Tail(_finished(module), failures)
    return _judged(folder, whole, prepared, job)


def _judged(folder: RunFolder, whole: Phase, prepared: Prepared, job: Job) -> Tail:
    tried = hold_out(prepared.manifest, HELD_OUT, HELD_OUT_AT_MOST, job.options.seed)
    trial = Phase(folder.checkpoints / TRIAL, folder.path / TRIAL_HISTORY, tried, None)
    if not (folder.checkpoints / START).exists():  # the trial's own first: where this one is, both are
        write_start(trial.folder, make_module(prepared, job, _trial_head(tried, prepared, job)), None)
        assert prepared.chosen is not None
        write_start(folder.checkpoints, make_module(prepared, job, prepared.chosen.head), start_row(prepared))

    n_train = len(prepared.manifest.rows(TRAIN))
    refit = n_train <= REFIT_UP_TO
    module = make_module(prepared, job, None)
    if not len(tried.rows(VAL)):
        start, _ = read_start(folder.checkpoints)
        put_mixture(module.network, start, start, 0.0)
        return Tail(_finished(module), {}, STEP_ASIDE)
    say(f"trial: fine-tuning without {len(tried.rows(VAL))} of the {n_train} training images, to be judged by them")
    failures, end = fit_from_start(module, trial, prepared, job, 1.0)
    start, _ = read_start(trial.folder)
    verdict = STEP_ASIDE if end is None else judge_mixtures(module.network, start, end, tried, prepared, job)
    say(str(verdict))
    if verdict.share == 0 or refit:
        start, _ = read_start(folder.checkpoints)
        put_mixture(module.network, start, start, 0.0)
        if verdict.share > 0:
            module = make_module(prepared, job, module.network.head)
            more, end = fit_from_start(module, whole, prepared, job, verdict.share)
            failures |= more
            verdict = STEP_ASIDE if end is None else verdict
    else:
        assert end is not None
        put_mixture(module.network, start, end, verdict.share)
    return Tail(_finished(module), failures, verdict)


def _finished(module: TransferModule) -> TransferNetwork:
    module.network.prefix_dtype = None  # what is shipped runs in float32
    return module.network


def judge_mixtures(
    network: TransferNetwork,
    start: dict[str, Tensor],
    end: dict[str, Tensor],
    manifest: Manifest,
    prepared: Prepared,
    job: Job,
) -> Verdict:
    """Return the Verdict on mixtures of start and end, by the VAL rows of a Manifest."""
    data = make_data(prepared, manifest, job)
    batches = [batch for batch in data.val_dataloader() if len(batch.labels)]
    if not batches:
        return STEP_ASIDE
    labels = torch.cat([batch.labels for batch in batches]).numpy()
    scores = []
    for share in SHARES:
        put_mixture(network.cpu(), start, end, share)
        model = TrainedModel.of(network, job.backbone, manifest.classes, job.options.max_pixels)
        scores.append(torch.cat([model.logits(batch.inputs, job.device) for batch in batches]).numpy())
    network.cpu()
    return judge(scores, labels)


def _trial_head(tried: Manifest, prepared: Prepared, job: Job) -> nn.Module:
    """Return a head of the chosen kind on the chosen taps, trained without the images held out."""
    assert prepared.probe is not None
    plan, rows = prepared.plan, tried.rows(TRAIN)
    return choose_head(
        prepared.probe.pooled(rows, taps=plan.taps),
        tried.labels[rows],
        len(tried.classes),
        tap_widths(job.backbone, plan.taps),
        kind=plan.head,
        tap_sets=(tuple(range(len(plan.taps))),),
        balanced=job.options.class_weights == "balanced",
        seed=job.options.seed,
    ).head
