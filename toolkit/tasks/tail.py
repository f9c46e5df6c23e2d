"""The trained part of a run: everything from scratch, or a tail from its head, as far as it earns its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from toolkit.artifacts.run_folder import HISTORY, START, RunFolder
from toolkit.backbones.taps import tap_widths
from toolkit.data.manifest import TRAIN, Manifest
from toolkit.heads.linear import LinearHead, unit_rms
from toolkit.heads.temperature import fold_temperature
from toolkit.options import Options
from toolkit.progress import say
from toolkit.tasks.job import Job
from toolkit.tasks.prepared import Prepared
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
from toolkit.tasks.trial import Trials, held_out, is_confirmed, is_few, run_trials, write_trial_starts
from toolkit.training.mixing import NO_JUDGE, WENT_ASTRAY, State, Verdict, load_state, put_mixture
from toolkit.training.module import TransferModule
from toolkit.training.network import TransferNetwork


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


def train_tail(folder: RunFolder, prepared: Prepared, job: Job) -> Tail:
    """Return the trained network.

    From a head, fine-tuning first shows on training images held out of it what it is worth (`run_trials`); then it is
    done again with all of them, where they are few, and mixed with the weights that it began with. Whatever was
    finished before a kill is found in the folder's checkpoints and not done again.
    """
    whole = Phase(folder.checkpoints, folder.path / HISTORY, prepared.manifest, job.options.patience)
    if prepared.plan.strategy == "scratch":
        widths = tap_widths(job.backbone, prepared.plan.taps)
        head = LinearHead(widths, len(prepared.manifest.classes), unit_rms(widths))
        module = make_module(prepared, job, head)
        data = make_data(prepared, whole.manifest, job)
        run_fit(module, data, whole, prepared, job, row=None, start=None)
        head.fold_scale()
        return Tail(_finished(module), data.failures)
    share = _given_share(job.options)
    tried = held_out(prepared.manifest, job.options.seed) if share is None else []
    _write_starts(folder, tried, prepared, job)
    if share is None:
        return _judged(folder, whole, tried, prepared, job)
    module = make_module(prepared, job, None)
    fitted = fit_from_start(module, whole, prepared, job, share)
    return Tail(_finished(module), fitted.failures, None if fitted.end is not None else WENT_ASTRAY, fitted.rate)


def _given_share(options: Options) -> float | None:
    """Return how much of the fine-tuning is kept: what was set, all where validation images choose the epoch, or None
    for trials to decide."""
    if options.mixing is not None or options.patience is None:
        return options.mixing
    return 1.0


def _write_starts(folder: RunFolder, tried: Sequence[Manifest], prepared: Prepared, job: Job) -> None:
    """Write the weights that each training begins with, unless a run that is gone on with has done so."""
    if (folder.checkpoints / START).exists() or prepared.chosen is None:
        return  # where they should be and are not, whoever reads them says so
    write_trial_starts(folder, tried, prepared, job)  # first: where those of the whole are, these are as well
    module = make_module(prepared, job, prepared.chosen.head)
    write_start(folder.checkpoints, module, prepared, job, start_row(prepared))


def _judged(folder: RunFolder, whole: Phase, tried: Sequence[Manifest], prepared: Prepared, job: Job) -> Tail:
    start, _ = read_start(whole.folder, prepared, job)
    module = make_module(prepared, job, None)
    load_state(module.network, start)
    if not tried:
        return Tail(_finished(module), {}, NO_JUDGE)
    found = run_trials(folder, tried, prepared, job)
    say(str(found.verdict))
    load_state(module.network, start)  # the stages are the same ones
    share = found.verdict.share
    if share == 0:
        return Tail(_finished(module), found.failures, found.verdict, found.rate)
    if not is_few(prepared.manifest):
        (only,) = found.done
        assert only.start is not None and only.fitted.end is not None
        put_mixture(module.network, only.start, only.fitted.end, share)
        _calibrate(module.network, found.verdict, prepared)
        return Tail(_finished(module), found.failures, found.verdict, found.rate)
    again = fit_from_start(module, whole, prepared, job, share, found.rate)
    verdict = _confirmed(module.network, start, again, found, prepared, job)
    if verdict != found.verdict:
        say(str(verdict))
        load_state(module.network, start)
    _calibrate(module.network, verdict, prepared)
    return Tail(_finished(module), found.failures | again.failures, verdict, again.rate)


def _calibrate(network: TransferNetwork, verdict: Verdict, prepared: Prepared) -> None:
    """Make the probabilities as sure as images held out say that they may be: fine-tuning ends surer than it is right.

    The temperature (Guo et al. 2017) is that of the trials, whose trainings had all but these images.
    """
    assert isinstance(network.head, LinearHead)
    fold_temperature(network.head, verdict.temperature, prepared.manifest.class_counts(TRAIN) > 0)


def _confirmed(
    network: TransferNetwork, start: State, again: Fitted, found: Trials, prepared: Prepared, job: Job
) -> Verdict:
    """Return the trials' Verdict, or that the head stays where the training on all images was none that they
    described."""
    verdict = found.verdict
    if again.end is None:
        return replace(verdict, share=0.0, gain=0.0, gain_se=0.0, reason=WENT_ASTRAY.reason)
    confirmed = is_confirmed(network, start, again.end, verdict.share, found, prepared, job)
    put_mixture(network, start, again.end, verdict.share)
    if confirmed:
        return verdict
    reason = "trained on all images it did worse on those that had judged it than the training without them"
    return replace(verdict, share=0.0, gain=0.0, gain_se=0.0, reason=reason)


def _finished(module: TransferModule) -> TransferNetwork:
    module.network.prefix_dtype = None  # what is shipped runs in float32
    return module.network
