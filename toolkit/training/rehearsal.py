"""Short trainings, each with another factor on all rates: what a single step at a rate cannot tell."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from toolkit.hardware import autocast, true_float32
from toolkit.heads.temperature import among_seen, best_temperature, negative_log_likelihoods
from toolkit.training.module import TransferModule
from toolkit.training.schedule import rate_factors
from toolkit.training.tryout import Labelled, as_it_was, learn

APART = 3.0  # from one factor to the next
AT_MOST = 6  # rehearsals
LEAST_NATS, LEAST_SHARE = 2e-3, 5e-3  # of a loss; a smaller difference is none


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """What a short training with a factor on all rates came to, on images held out of it.

    losses: float64 (n,), negative log-likelihoods in nats, at the temperature that suits these images best, for a
    model's probabilities are calibrated in the end; infinite where a step came to no number. hits: bool (n,).
    """

    multiplier: float
    losses: NDArray[np.float64]
    hits: NDArray[np.bool_]

    @property
    def loss(self) -> float:
        """The mean loss."""
        return float(self.losses.mean())

    @property
    def accuracy(self) -> float:
        """The share that is right."""
        return float(self.hits.mean())

    def to_dict(self) -> dict[str, float | None]:
        """Return plain values for JSON; a loss that is no number is None."""
        loss = round(self.loss, 6) if math.isfinite(self.loss) else None
        return {"multiplier": round(self.multiplier, 6), "loss": loss, "accuracy": round(self.accuracy, 6)}

    @classmethod
    def joined(cls, parts: Sequence[Rehearsal]) -> Rehearsal:
        """Return several with one factor, each without other images, as one."""
        losses, hits = (np.concatenate([getattr(part, name) for part in parts]) for name in ("losses", "hits"))
        return cls(parts[0].multiplier, losses, hits)


@true_float32()
def rehearse(
    module: TransferModule,
    batches: Callable[[int], Iterable[Labelled]],
    held_out: Iterable[Labelled],
    multiplier: float,
    *,
    steps: int,
    precision: str = "32-true",
    clip: float | None = 1.0,
    accumulate: int = 1,
    steps_an_epoch: float = 1.0,
    seen: NDArray[np.bool_] | None = None,
) -> Rehearsal:
    """Return what so many steps with a factor on the rates of all groups come to; the module stays as it was.

    It does to the bit, as after a range test. The rates warm up, fall and begin (`unfreeze`, by `steps_an_epoch` of
    these steps) as the recipe has it; no average of the weights (`ema`) is taken and nothing pulls them to where they
    began, which short trainings do not show. batches: epoch (from 0) → that epoch's batches, on the module's device,
    `accumulate` of which make a step. held_out: labelled batches, one image or more. precision: resolved; "16-mixed"
    is done in full. seen: bool (C,), the classes that have training images; all by default.
    """
    precision = "32-true" if precision == "16-mixed" else precision
    recipe = module.recipe
    with as_it_was(module, None), torch.enable_grad():
        optimizer = module.make_optimizer(fused=precision == "32-true")
        rates = [group["lr"] * multiplier for group in optimizer.param_groups]
        stream = itertools.chain.from_iterable(batches(epoch) for epoch in itertools.count())
        module.train()
        factors = rate_factors(recipe, [group["depth"] for group in optimizer.param_groups], steps, steps_an_epoch)
        for step in range(steps):
            for group, rate, factor in zip(optimizer.param_groups, rates, factors, strict=True):
                group["lr"] = rate * factor(step)
            if learn(module, optimizer, list(itertools.islice(stream, accumulate)), precision, clip) is None:
                return _no_number(multiplier, sum(len(labels) for _, labels in held_out))
        return _judged(module, held_out, multiplier, precision, seen)


def _judged(
    module: TransferModule,
    held_out: Iterable[Labelled],
    multiplier: float,
    precision: str,
    seen: NDArray[np.bool_] | None,
) -> Rehearsal:
    module.eval()
    scores, classes = [], []
    with torch.no_grad():
        for inputs, labels in held_out:
            with autocast(precision, labels.device):
                scores.append(module.network(inputs).float().cpu())
            classes.append(labels.cpu())
    logits, own = torch.cat(scores).numpy(), torch.cat(classes).numpy()
    if not np.isfinite(logits).all():
        return _no_number(multiplier, len(own))
    if seen is not None:
        logits, own = among_seen(logits, own, seen)
    losses = negative_log_likelihoods(logits, own, best_temperature(logits, own))
    return Rehearsal(multiplier, losses, logits.argmax(axis=1) == own)


def _no_number(multiplier: float, n: int) -> Rehearsal:
    return Rehearsal(multiplier, np.full(n, np.inf), np.zeros(n, dtype=bool))


def climb(
    rehearsed: Callable[[float], Rehearsal], starts: Sequence[float], *, low: float, high: float
) -> tuple[Rehearsal, ...]:
    """Return rehearsals, in their order: of every start, then from the best one on by threes, as long as that helps.

    From the best start larger factors come first, then smaller ones if the first larger one was no better. None is
    outside of low to high.
    """
    done = [rehearsed(start) for start in starts]
    best = lowest(done)
    for direction in (APART, 1 / APART):
        first = best
        while len(done) < AT_MOST and low <= best.multiplier * direction <= high:
            done.append(rehearsed(best.multiplier * direction))
            if not is_better(done[-1], best):
                break
            best = done[-1]
        if best is not first:
            break
    return tuple(done)


def is_better(one: Rehearsal, other: Rehearsal) -> bool:
    """Return whether the loss is smaller by more than nothing."""
    if not math.isfinite(one.loss):
        return False
    return not math.isfinite(other.loss) or other.loss - one.loss > max(LEAST_NATS, LEAST_SHARE * other.loss)


def lowest(done: Sequence[Rehearsal]) -> Rehearsal:
    """Return the one with the smallest loss; of those that are no worse by more than nothing the one whose factor is
    nearest to 1, the strategy's own rate."""
    best = min(done, key=lambda one: one.loss)
    return min((one for one in done if not is_better(best, one)), key=lambda one: abs(math.log(one.multiplier)))
