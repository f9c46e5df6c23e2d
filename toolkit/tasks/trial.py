"""Trials of a fine-tuning: trained without some of the training images, and judged by them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.artifacts.run_folder import TRIAL_FOLDERS, TRIAL_HISTORIES, RunFolder
from toolkit.backbones.taps import tap_widths
from toolkit.data.manifest import TRAIN, VAL, Manifest
from toolkit.data.split import hold_out
from toolkit.heads.choose import choose_head
from toolkit.planning.forecast import REFIT_UP_TO
from toolkit.progress import say
from toolkit.tasks.job import Job
from toolkit.tasks.prepared import Prepared
from toolkit.tasks.tail_fit import Fitted, Phase, fit_from_start, make_data, make_module, read_start, write_start
from toolkit.training.mixing import NO_JUDGE, SHARES, WENT_ASTRAY, State, Verdict, is_no_worse, judge, put_mixture
from toolkit.training.network import TransferNetwork
from toolkit.training.trained import TrainedModel

HELD_OUT = 0.2  # of the training images, on which fine-tuning has to show that it earns its place
HELD_OUT_AT_MOST = 1_000  # then the standard error of an accuracy of 0.9 is a point


@dataclass(frozen=True, eq=False)
class Trial:
    """One training without the images that judge it: the VAL rows of `manifest`.

    fitted: what it came to; its end is None where it went astray, and where nobody needs it any more. start: the
    weights that it began with, or None likewise. scores: float32 (n, C) on the CPU for each of SHARES, by the classes
    that have training images. labels: int64 (n,), positions among these.
    """

    manifest: Manifest
    fitted: Fitted
    start: State | None
    scores: tuple[Tensor, ...]
    labels: Tensor


@dataclass(frozen=True, eq=False)
class Trials:
    """What was tried, one after the other, and the Verdict by all the images that were held out of one of them."""

    done: tuple[Trial, ...]
    verdict: Verdict

    @property
    def rate(self) -> float:
        """The smallest factor on the recipe's rates that one of them needed."""
        return min(trial.fitted.rate for trial in self.done)

    @property
    def failures(self) -> dict[int, str]:
        """Files that failed on the way (row: reason)."""
        return {row: reason for trial in self.done for row, reason in trial.fitted.failures.items()}


def is_few(manifest: Manifest) -> bool:
    """Return whether the training images are so few that none can be spared: then it is trained on all of them."""
    return len(manifest.rows(TRAIN)) <= REFIT_UP_TO


def held_out(manifest: Manifest, seed: int) -> list[Manifest]:
    """Return the Manifest with other training images held out in each, in the order in which they may be tried.

    There is one where so many images judge that one is enough, and none where no class has two images.
    """
    most = len(TRIAL_FOLDERS) if is_few(manifest) else 1
    parts = [hold_out(manifest, HELD_OUT, HELD_OUT_AT_MOST, seed, part) for part in range(most)]
    return [part for part in parts if len(part.rows(VAL))]


def write_trial_starts(folder: RunFolder, tried: Sequence[Manifest], prepared: Prepared, job: Job) -> None:
    """Publish the weights that each trial would begin with: a head that has not seen the images held out of it.

    All at once, though most runs need one: a run that is gone on with has no features to train a head on.
    """
    for name, manifest in zip(TRIAL_FOLDERS, tried, strict=False):
        module = make_module(prepared, job, head_without(manifest, prepared, job))
        write_start(folder.checkpoints / name, module, prepared, job, None)


def run_trials(folder: RunFolder, tried: Sequence[Manifest], prepared: Prepared, job: Job) -> Trials:
    """Train without the images held out of the first Manifest, and judge by them.

    As long as it is not sure, and would be if all that can be asked said the same, the next one is tried, and all
    images that were held out judge together, each by a training that has not seen it. (Up to three looks at one limit
    keep what wins nothing more often than one look does: in 3.5 % of cases instead of 2.3 % by simulation of normal
    gains, independent from trial to trial.)
    """
    done: list[Trial] = []
    n_judges = sum(len(manifest.rows(VAL)) for manifest in tried)
    verdict = NO_JUDGE
    for name, history, manifest in zip(TRIAL_FOLDERS, TRIAL_HISTORIES, tried, strict=False):
        phase = Phase(folder.checkpoints / name, folder.path / history, manifest, None)
        done.append(_try(phase, prepared, job))
        if done[-1].fitted.end is None:
            astray = replace(verdict, share=0.0, gain=0.0, gain_se=0.0, reason=WENT_ASTRAY.reason, trials=len(done))
            return Trials(tuple(done), astray)
        if len(tried) > 1:
            done[-1] = _without_weights(done[-1])
        scores = [torch.cat(parts).numpy() for parts in zip(*(one.scores for one in done), strict=True)]
        labels = torch.cat([one.labels for one in done]).numpy()
        verdict = replace(judge(scores, labels, SHARES), trials=len(done)) if len(labels) else NO_JUDGE
        if len(done) == len(tried) or not len(labels) or not verdict.could_become_sure(n_judges / len(labels)):
            break
        say(f"trial: not sure yet (gain {verdict.gain:.3f} ± {verdict.gain_se:.3f}): other images judge as well")
    return Trials(tuple(done), verdict)


def _without_weights(trial: Trial) -> Trial:
    """Return the Trial without its weights, which only those need who do not train again with all images."""
    return replace(trial, start=None, fitted=replace(trial.fitted, end=None))


def is_confirmed(
    network: TransferNetwork, start: State, end: State, share: float, trials: Trials, prepared: Prepared, job: Job
) -> bool:
    """Return whether a training on all images is one that the trials described: on the images that were held out of the
    first of them, and that it has seen, its mixture does no worse than that of the trial, which had not seen them.

    (Not: than the head that has seen them. A head that knows all of its images by heart is more sure of them than any
    tail that trains on views of them: by that measure trainings that won two points were thrown away.)
    """
    first = trials.done[0]
    if not len(first.labels):
        return True
    (seen,), labels = scores_of_mixtures(network, start, end, first.manifest, prepared, job, (share,))
    unseen = first.scores[SHARES.index(share)]
    if len(labels) != len(first.labels):  # a file that failed since
        return True
    return is_no_worse(seen.numpy(), unseen.numpy(), labels.numpy())


def _try(phase: Phase, prepared: Prepared, job: Job) -> Trial:
    """Train without the images held out, and score them."""
    manifest = phase.manifest
    n, n_train = len(manifest.rows(VAL)), len(prepared.manifest.rows(TRAIN))
    say(f"trial: fine-tuning without {n} of the {n_train} training images, to be judged by them")
    start, _ = read_start(phase.folder, prepared, job)
    module = make_module(prepared, job, None)
    fitted = fit_from_start(module, phase, prepared, job, 1.0)
    if fitted.end is None:
        return Trial(manifest, fitted, start, (), torch.empty(0, dtype=torch.int64))
    scores, labels = scores_of_mixtures(module.network, start, fitted.end, manifest, prepared, job, SHARES)
    return Trial(manifest, fitted, start, scores, labels)


def scores_of_mixtures(
    network: TransferNetwork,
    start: State,
    end: State,
    manifest: Manifest,
    prepared: Prepared,
    job: Job,
    shares: Sequence[float],
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return scores (n, C) for each share and the labels (n,) of the VAL rows, in a pass over them for each.

    Of the classes that have training images: those that are never predicted have no say in temperatures (`among_seen`).

    What a mixture runs as has to be made anew, which may take as long as a batch does: so each is put once, and sees
    all images. Their inputs are read as often, for a thousand need not fit into memory: from the store that is next to
    nothing, and where they are decoded live, five times a fifth of the images is one epoch's work.
    """
    model = TrainedModel.of(network, job.backbone, manifest.classes, job.options.max_pixels)
    loader = make_data(prepared, manifest, job).val_dataloader()
    rows = manifest.rows(VAL)
    seen = np.flatnonzero(manifest.class_counts(TRAIN))
    scores = torch.empty((len(shares), len(rows), len(seen)))
    times_read = np.zeros(len(rows), dtype=np.int64)
    for share, found in zip(shares, scores, strict=True):
        put_mixture(network, start, end, share)
        for batch in loader:
            if len(batch.rows):
                positions = np.searchsorted(rows, batch.rows.numpy())
                found[positions] = model.logits(batch.inputs, job.device)[:, seen]
                times_read[positions] += 1
    network.cpu()
    read = times_read == len(shares)  # live, a file may fail in one pass and not in another
    return tuple(scores[:, read]), torch.from_numpy(np.searchsorted(seen, manifest.labels[rows[read]]))


def head_without(tried: Manifest, prepared: Prepared, job: Job) -> nn.Module:
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
