"""The learning-rate range test: one factor on all rates rises step by step, and images held out say what it does."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from toolkit.hardware import autocast, true_float32
from toolkit.training.module import TransferModule
from toolkit.training.rehearsal import Rehearsal, lowest
from toolkit.training.tryout import Labelled, as_it_was, learn

LOW, HIGH, STEPS = 1e-3, 1e2, 76  # fifteen steps a decade
EVERY = 2  # steps from one look at the images held out to the next
WINDOW = 5  # looks whose median smooths the curve
DIVERGED, DIVERGED_NATS = 1.5, 0.2  # times the lowest loss, or above it: from there on it only gets worse
HARM, HARM_NATS = 1.1, 0.02  # the same, where a rate begins to do harm
LEAST_OF_HARM = 1 / 30  # of the rate that does harm: what moves less than that, learns next to nothing
OF_TRAINING = 0.1  # of the rate where the loss of training batches is lowest, which falls as long as it learns at all


@dataclass(frozen=True)
class RangePoint:
    """One step. multiplier: the factor on all rates. train_loss: of its batch, before the step. held_out_loss: after
    it, of the images held out, None between the looks at them."""

    multiplier: float
    train_loss: float
    held_out_loss: float | None


@dataclass(frozen=True)
class RangeTest:
    """The curve, and the factor that it suggests; reason: in words. lr: the head's rate at a factor of 1. rehearsals:
    short trainings that had the last word on the factor, in their order."""

    lr: float
    points: tuple[RangePoint, ...]
    multiplier: float
    reason: str
    rehearsals: tuple[Rehearsal, ...] = ()

    @property
    def suggested_lr(self) -> float:
        """The head's rate to train with, in three digits."""
        return float(f"{self.lr * self.multiplier:.3g}")


@true_float32()
def range_test(
    module: TransferModule,
    batches: Callable[[int], Iterable[Labelled]],
    held_out: Sequence[Labelled] = (),
    *,
    precision: str = "32-true",
    clip: float | None = 1.0,
    accumulate: int = 1,
    optimizer: torch.optim.Optimizer | None = None,
    low: float = LOW,
    high: float = HIGH,
    steps: int = STEPS,
) -> RangeTest:
    """Return what happens to a module while one factor on the rates of all its groups rises from `low` to `high`.

    Unlike Smith's test ("Cyclical learning rates", 2017) and its heirs it does not read the loss of the training
    batches: fine-tuning starts from a head that knows these very images (flowers at 96 px: a loss of 0.06 on them, 0.43
    on others), so that loss has nothing to fall to, and jumps with every change of view. What is read is the plain
    loss of clean images that the head has not seen, the same ones at every look. Where there are none, or where norms
    move with the batch so that statistics lag behind, it is that of the training batches, each before its step.

    Ratios between groups stay what they are at every step. Afterwards everything is as it was, to the bit: weights,
    buffers, gradients, modes, the state and rates of the optimizer, and the random states of Python, NumPy and torch.
    It ends early where the loss diverges.

    batches: epoch (from 0) → that epoch's batches, on the module's device, `accumulate` of which make a step. held_out:
    labelled batches. precision: resolved; "16-mixed", which would need a scaler of its own, is tested in full.
    optimizer: over the module's groups at their full rates; the recipe's by default.
    """
    device = module.network.normalise.mean.device
    precision = "32-true" if precision == "16-mixed" else precision
    with as_it_was(module, optimizer), torch.enable_grad():
        used = optimizer or module.make_optimizer(fused=precision == "32-true")
        rates = [group["lr"] for group in used.param_groups]
        stream = itertools.chain.from_iterable(batches(epoch) for epoch in itertools.count())
        points: list[RangePoint] = []
        module.train()
        for step in range(steps):
            multiplier = low * (high / low) ** (step / max(1, steps - 1))
            for group, rate in zip(used.param_groups, rates, strict=True):
                group["lr"] = rate * multiplier
            loss = learn(module, used, list(itertools.islice(stream, accumulate)), precision, clip)
            if loss is None:
                break
            seen = _loss_of(module, held_out, precision, device) if held_out and step % EVERY == 0 else None
            points.append(RangePoint(multiplier, loss, seen))
            if _diverged(_curve(points)):
                break
    return suggestion(tuple(points), module.recipe.lr)


def suggestion(points: Sequence[RangePoint], lr: float) -> RangeTest:
    """Return the RangeTest of a curve, smoothed by running medians.

    Of images held out: the factor at which their loss is lowest, up to which larger steps helped; but no less than a
    thirtieth of the factor that does harm, as the lowest place of a curve that is flat before it means nothing. Of
    training batches: a tenth of it, as is usual. (scripts/bench/range_test holds it against sweeps.)
    """
    curve = _curve(points)
    if not curve:
        return RangeTest(lr, tuple(points), 1.0, "the loss was no number from the start; the recipe's rate stays")
    factors, losses = [factor for factor, _ in curve], smoothed([loss for _, loss in curve])
    best = min(range(len(losses)), key=losses.__getitem__)
    lowest = losses[best]
    limit = max(HARM * lowest, lowest + HARM_NATS)
    harm = next((f for f, loss in zip(factors[best:], losses[best:], strict=True) if loss > limit), None)
    seen = any(point.held_out_loss is not None for point in points)
    factor = max(factors[best], LEAST_OF_HARM * (harm or 0.0)) if seen else OF_TRAINING * factors[best]
    where = "images held out" if seen else "training batches"
    after = f"no worse up to {factors[-1]:.2g} times" if harm is None else f"worse from {harm:.2g} times on"
    reason = (
        f"range test: the loss of {where} was {losses[0]:.3f} at first, lowest, {lowest:.3f}, at {factors[best]:.2g} "
        f"times the recipe's rates, and {after} ({len(points)} steps)"
    )
    return RangeTest(lr, tuple(points), factor, reason)


def settled(found: RangeTest, rehearsals: Sequence[Rehearsal], n_steps: int) -> RangeTest:
    """Return the RangeTest with the factor of the best rehearsal, and a reason that says so."""
    chosen = lowest(rehearsals)
    losses = ", ".join(f"{one.loss:.3f} at {one.multiplier:.2g} times" for one in sorted(rehearsals, key=_factor))
    reason = f"{found.reason}; {n_steps} steps of training came to a loss, at the best temperature, of {losses}"
    return replace(found, multiplier=chosen.multiplier, reason=reason, rehearsals=tuple(rehearsals))


def _factor(one: Rehearsal) -> float:
    return one.multiplier


def _curve(points: Sequence[RangePoint]) -> list[tuple[float, float]]:
    """Return (factor, loss): of images held out where they were looked at, else of the batch that followed."""
    found = [(point.multiplier, point.held_out_loss) for point in points if point.held_out_loss is not None]
    return found or [(point.multiplier, after.train_loss) for point, after in itertools.pairwise(points)]


def smoothed(losses: Sequence[float]) -> list[float]:
    """Return running medians over WINDOW values; of fewer at the ends."""
    half = WINDOW // 2
    return [statistics.median(losses[max(0, i - half) : i + half + 1]) for i in range(len(losses))]


def _diverged(curve: Sequence[tuple[float, float]]) -> bool:
    losses = [loss for _, loss in curve]
    if len(losses) < 2 * WINDOW:
        return bool(losses) and not math.isfinite(losses[-1])
    lowest = min(smoothed(losses))
    return not min(losses[-WINDOW:]) <= max(DIVERGED * lowest, lowest + DIVERGED_NATS)


def _loss_of(module: TransferModule, batches: Sequence[Labelled], precision: str, device: torch.device) -> float:
    """Return the mean cross-entropy of labelled batches, as the network predicts."""
    module.eval()
    total, n = 0.0, 0
    with torch.no_grad():
        for inputs, labels in batches:
            with autocast(precision, device):
                scores = module.network(inputs)
            total += float(F.cross_entropy(scores.float(), labels, reduction="sum"))
            n += len(labels)
    module.train()
    return total / max(1, n)
