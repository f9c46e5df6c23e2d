"""`--lr auto`: a range test and short trainings of the tail before it trains, on what it will train on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from toolkit.artifacts.run_folder import LR_RANGE, LR_RANGE_PICTURE, PLAN, RunFolder
from toolkit.data.manifest import TRAIN, VAL, Manifest
from toolkit.hardware import resolve_precision
from toolkit.options import AUTO_RATE
from toolkit.planning.forecast import REHEARSED_STEPS
from toolkit.progress import say
from toolkit.storage import publish_text
from toolkit.tasks.job import Job
from toolkit.tasks.prepared import Prepared
from toolkit.tasks.trial import held_out
from toolkit.tasks.tryout import Tryout
from toolkit.training.checkpoints import random_state, set_random_state
from toolkit.training.range_chart import range_chart, range_csv
from toolkit.training.range_test import HIGH, LOW, RangeTest, range_test, settled
from toolkit.training.rehearsal import Rehearsal, climb, rehearse

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
        with Tryout(parts[0], prepared, job) as one:
            found = range_test(one.module, one.batches, [], **settings)
    else:
        with Tryout(parts[0], prepared, job) as one:
            found = range_test(one.module, one.batches, list(one.judges(LOOKED_AT)), **settings)
        found = _rehearsed(found, parts, settings, prepared, job)
    set_random_state(drawn)
    return found


def _rehearsed(
    found: RangeTest, parts: Sequence[Manifest], settings: dict[str, Any], prepared: Prepared, job: Job
) -> RangeTest:
    """Return the RangeTest with what short trainings say of its rate, the strategy's own one, and others."""
    judges = np.cumsum([len(part.rows(VAL)) for part in parts])
    tryouts = [Tryout(part, prepared, job) for part in parts[: 1 + int(np.searchsorted(judges, JUDGES))]]
    epochs = prepared.plan.epochs or 1
    n_steps = min(REHEARSED_STEPS, epochs * -(-tryouts[0].batches_an_epoch // settings["accumulate"]))
    length = {"steps": n_steps, "steps_an_epoch": n_steps / epochs}

    def of_all(multiplier: float) -> Rehearsal:
        done = []
        for one in tryouts:
            with one:
                judges, seen = one.judges(), one.manifest.class_counts(TRAIN) > 0
                done.append(rehearse(one.module, one.batches, judges, multiplier, seen=seen, **length, **settings))
        joined = Rehearsal.joined(done)
        say(f"  {n_steps} steps at {multiplier:.2g} times: loss {joined.loss:.3f}, {joined.accuracy:.3f} right")
        return joined

    starts = dict.fromkeys((1.0, found.multiplier))
    return settled(found, climb(of_all, list(starts), low=LOW, high=HIGH), n_steps)
