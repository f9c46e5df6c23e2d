"""The trained part of a run: everything from scratch, or a tail from its head, as far as it earns its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from toolkit.artifacts.run_folder import HISTORY, START, TRIAL, TRIAL_HISTORY, RunFolder
from toolkit.backbones.taps import tap_widths
from toolkit.data.manifest import TRAIN, VAL, Manifest
from toolkit.data.split import hold_out
from toolkit.heads.choose import choose_head
from toolkit.heads.linear import LinearHead
from toolkit.heads.temperature import fold_temperature
from toolkit.options import Options
from toolkit.progress import say
from toolkit.tasks.job import Job
from toolkit.tasks.prepare import Prepared
from toolkit.tasks.tail_fit import (
    Fitted,
    Phase,
    fit_from_start,
    make_data,
    make_module,
    read_start,
    run_fit,
    start_row,
    write_start,
)
from toolkit.training.mixing import NO_JUDGE, SHARES, WENT_ASTRAY, State, Verdict, judge, load_state, put_mixture
from toolkit.training.module import TransferModule
from toolkit.training.network import TransferNetwork
from toolkit.training.trained import TrainedModel

HELD_OUT = 0.2  # of the training images, on which fine-tuning has to show that it earns its place
HELD_OUT_AT_MOST = 1_000  # then the standard error of an accuracy of 0.9 is a point
REFIT_UP_TO = 5_000  # training images; above, what was held out is left out for good: a fifth of them at most


@dataclass(frozen=True, eq=False)
class Tail:
    """A trained tail and its head.

    failures: files that failed on the way (row: reason). verdict: how much of the fine-tuning was kept, and why; None
    where nobody had to judge. rate: the factor on the recipe's rates that was trained with at last.
    """

    network: TransferNetwork
    failures: dict[int, str]
    verdict: Verdict | None = None
    rate: float = 1.0


@dataclass(frozen=True, eq=False)
class _Trial:
    """How fine-tuning did without the images that judge it: start and end of its weights, and the Verdict."""

    manifest: Manifest
    fitted: Fitted
    start: State
    verdict: Verdict


def train_tail(folder: RunFolder, prepared: Prepared, job: Job) -> Tail:
    """Return the trained network.

    From a head, fine-tuning first shows on training images held out of it what it is worth (`judge`); then it is done
    again with all of them, where they are few, and mixed with the weights that it began with. Whatever was finished
    before a kill is found in the folder's checkpoints and not done again.
    """
    whole = Phase(folder.checkpoints, folder.path / HISTORY, prepared.manifest, job.options.patience)
    if prepared.plan.strategy == "scratch":
        module = make_module(prepared, job, None)
        data = make_data(prepared, whole.manifest, job)
        run_fit(module, data, whole, prepared, job, row=None, start=None)
        return Tail(_finished(module), data.failures)
    share = _given_share(job.options)
    tried = hold_out(prepared.manifest, HELD_OUT, HELD_OUT_AT_MOST, job.options.seed) if share is None else None
    _write_starts(whole.folder, prepared, tried, job)
    if tried is not None:
        return _judged(folder, whole, tried, prepared, job)
    module = make_module(prepared, job, None)
    assert share is not None
    fitted = fit_from_start(module, whole, prepared, job, share)
    return Tail(_finished(module), fitted.failures, None if fitted.end is not None else WENT_ASTRAY, fitted.rate)


def _given_share(options: Options) -> float | None:
    """Return how much of the fine-tuning is kept: what was set, all where validation images choose the epoch, or None
    for the trial to decide."""
    if options.mixing is not None or options.patience is None:
        return options.mixing
    return 1.0


def _write_starts(kept: Path, prepared: Prepared, tried: Manifest | None, job: Job) -> None:
    """Write the weights that each training begins with, unless a run that is gone on with has done so."""
    if (kept / START).exists() or prepared.chosen is None:
        return  # where they should be and are not, whoever reads them says so
    if tried is not None:  # first: where those of the whole are, these are as well
        module = make_module(prepared, job, _trial_head(tried, prepared, job))
        write_start(kept / TRIAL, module, prepared.manifest, None)
    module = make_module(prepared, job, prepared.chosen.head)
    write_start(kept, module, prepared.manifest, start_row(prepared))


def _judged(folder: RunFolder, whole: Phase, tried: Manifest, prepared: Prepared, job: Job) -> Tail:
    start, _ = read_start(whole.folder, prepared.manifest)
    module = make_module(prepared, job, None)
    load_state(module.network, start)
    if not len(tried.rows(VAL)):
        return Tail(_finished(module), {}, NO_JUDGE)
    trial = _try(folder, tried, prepared, job)
    say(str(trial.verdict))
    load_state(module.network, start)  # the stages are the same ones
    failures, rate, share = trial.fitted.failures, trial.fitted.rate, trial.verdict.share
    if share == 0:
        return Tail(_finished(module), failures, trial.verdict, rate)
    if len(prepared.manifest.rows(TRAIN)) > REFIT_UP_TO:
        assert trial.fitted.end is not None
        put_mixture(module.network, trial.start, trial.fitted.end, share)
        _calibrate(module.network, trial.verdict, prepared)
        return Tail(_finished(module), failures, trial.verdict, rate)
    again = fit_from_start(module, whole, prepared, job, share, rate)
    verdict = _confirmed(module.network, start, again, trial, prepared, job)
    if verdict != trial.verdict:
        say(str(verdict))
        load_state(module.network, start)
    _calibrate(module.network, verdict, prepared)
    return Tail(_finished(module), failures | again.failures, verdict, again.rate)


def _calibrate(network: TransferNetwork, verdict: Verdict, prepared: Prepared) -> None:
    """Make the probabilities as sure as images held out say that they may be: fine-tuning ends surer than it is right.

    The temperature (Guo et al. 2017) is that of the trial, whose training had all but these images.
    """
    assert isinstance(network.head, LinearHead)
    fold_temperature(network.head, verdict.temperature, prepared.manifest.class_counts(TRAIN) > 0)


def _try(folder: RunFolder, tried: Manifest, prepared: Prepared, job: Job) -> _Trial:
    """Train without the images held out, and judge by them."""
    n, n_train = len(tried.rows(VAL)), len(prepared.manifest.rows(TRAIN))
    say(f"trial: fine-tuning without {n} of the {n_train} training images, to be judged by them")
    phase = Phase(folder.checkpoints / TRIAL, folder.path / TRIAL_HISTORY, tried, None)
    start, _ = read_start(phase.folder, prepared.manifest)
    module = make_module(prepared, job, None)
    fitted = fit_from_start(module, phase, prepared, job, 1.0)
    if fitted.end is None:
        return _Trial(tried, fitted, start, WENT_ASTRAY)
    return _Trial(tried, fitted, start, judge_mixtures(module.network, start, fitted.end, tried, prepared, job))


def _confirmed(
    network: TransferNetwork, start: State, again: Fitted, trial: _Trial, prepared: Prepared, job: Job
) -> Verdict:
    """Return the trial's Verdict, or that the head stays where the training on all images was none that it described:
    on images that it has seen now, its mixture must do at least as well as the head."""
    if again.end is None:
        return replace(trial.verdict, share=0.0, gain=0.0, gain_se=0.0, reason=WENT_ASTRAY.reason)
    share = trial.verdict.share
    found = judge_mixtures(network, start, again.end, trial.manifest, prepared, job, (0.0, share)).mixtures
    put_mixture(network, start, again.end, share)
    if not found or found[1].nll <= found[0].nll:  # not so for NaN
        return trial.verdict
    reason = "trained on all images it ended below the head on those that had judged it"
    return replace(trial.verdict, share=0.0, gain=0.0, gain_se=0.0, reason=reason)


def _finished(module: TransferModule) -> TransferNetwork:
    module.network.prefix_dtype = None  # what is shipped runs in float32
    return module.network


def judge_mixtures(
    network: TransferNetwork,
    start: State,
    end: State,
    manifest: Manifest,
    prepared: Prepared,
    job: Job,
    shares: Sequence[float] = SHARES,
) -> Verdict:
    """Return the Verdict on mixtures of start and end, by the VAL rows of a Manifest, in one pass over them."""
    model = TrainedModel.of(network, job.backbone, manifest.classes, job.options.max_pixels)
    labels: list[Tensor] = []
    scores: list[list[Tensor]] = [[] for _ in shares]
    for batch in make_data(prepared, manifest, job).val_dataloader():
        if len(batch.labels):
            labels.append(batch.labels)
            for share, found in zip(shares, scores, strict=True):
                put_mixture(network, start, end, share)
                found.append(model.logits(batch.inputs, job.device))
    network.cpu()
    if not labels:
        return NO_JUDGE
    return judge([torch.cat(found).numpy() for found in scores], torch.cat(labels).numpy(), shares)


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
