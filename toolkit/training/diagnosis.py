"""What the rows of history.csv say, in words: overfitting, room, not done yet, done early, too few images to tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

SURE = 2.0  # standard errors that a difference must have before it is called one
GAP = 0.05  # of accuracy between training and validation, above which there is something to regularise
RISE, RISE_NATS = 0.05, 0.02  # of the lowest validation loss, and at all, by which it may rise again
DIVERGED, DIVERGED_NATS = 1.5, 0.2  # times the lowest training loss, and above it: no regulariser mends that
FALL = 0.02  # of the validation loss over the last fifth of the epochs, above which it is still falling
EARLY = 0.5  # share of the epochs: what stands still from before that on was done early
FEWEST_EPOCHS = 3  # whose course says something
TELLING = 0.05  # a standard error of the validation accuracy above which little can be told

REGULARISERS = "raise weight_decay, augment (standard, trivial), views, mixup, drop_path or label_smoothing"
CAPACITY = "train more of it (strategy partial or full, a smaller cut), or take a larger backbone or image_size"

Row = Mapping[str, float | None]


def diagnose(
    rows: Sequence[Row],
    *,
    n_val: int | None = None,
    blended: bool = False,
    keeps_best: bool = False,
    judged_by: str = "validation",
) -> str:
    """Return one or a few sentences, each with its numbers, on the rows of a history.csv (`History`).

    notes: Babysitting the learning process: a big gap between training and validation accuracy is overfitting, no gap
    is room for capacity. The gap is training minus validation accuracy of the epoch whose weights are kept: the last
    one, or with `keeps_best` (patience) the one of the lowest validation loss. Training accuracy is measured on
    augmented views while the weights still change, and of blended images (mixup, cutmix: `blended`), so that it is
    lower than on clean images: a gap below 0 is normal, and one that is small need not mean that there is none. n_val:
    validation images; with it a gap within SURE standard errors of the accuracy is called nothing that can be told.
    judged_by: what the images of the val columns are called.

    Row 0, without training numbers, is what training began with. An empty string for no rows.
    """
    epochs = [row for row in rows if _has(row, "train_loss") and row.get("epoch")]
    if not epochs:
        return ""
    watched = [row for row in epochs if _has(row, "val_loss")]
    if not watched:
        return _without_val(epochs)
    best = min(watched, key=lambda row: _of(row, "val_loss"))
    start = next((row for row in rows if not row.get("epoch") and _has(row, "val_loss")), None)
    since = _since(start, best)
    if keeps_best and since:
        found = [since, "Its weights are kept."]
    elif not keeps_best and (burst := _diverged(watched)):
        found = [burst, since]
    else:
        kept = best if keeps_best else watched[-1]
        found = [_gap(kept, best, n_val, blended), _course(watched, best, start), since]
    return " ".join(sentence for sentence in found if sentence).replace("validation", judged_by)


def _diverged(epochs: Sequence[Row]) -> str:
    """Return that the training loss itself rose, which no regulariser mends."""
    lowest = min(epochs, key=lambda row: _of(row, "train_loss"))
    least, last = _of(lowest, "train_loss"), _of(epochs[-1], "train_loss")
    if last <= max(DIVERGED * least, least + DIVERGED_NATS):
        return ""
    when = f"epoch {_of(lowest, 'epoch'):.0f}"
    return f"Diverging: the training loss rose from {least:.3f} at {when} to {last:.3f}; take a smaller lr."


def _gap(kept: Row, best: Row, n_val: int | None, blended: bool) -> str:
    """Return what the gap at the epoch that is kept says; where its loss is above the best, that is overfitting too."""
    if not (_has(kept, "train_accuracy") and _has(kept, "val_accuracy")):
        return ""
    train, val = _of(kept, "train_accuracy"), _of(kept, "val_accuracy")
    at = f"at epoch {_of(kept, 'epoch'):.0f} training accuracy is {train:.3f} and validation accuracy {val:.3f}"
    error = None if not n_val else standard_error(val, n_val)
    gap = train - val
    least, now = _of(best, "val_loss"), _of(kept, "val_loss")
    rise = now / max(least, 1e-12) - 1 if now - least > RISE_NATS else 0.0
    lowest = f"its lowest, {_of(best, 'val_loss'):.3f} at epoch {_of(best, 'epoch'):.0f}"
    if gap > max(GAP, SURE * (error or 0.0)):
        since = f", and the validation loss has risen by {rise:.0%} since {lowest}" if rise > RISE else ""
        return f"Overfitting: {at}, a gap of {gap:.3f}{since}; {REGULARISERS}, or train fewer stages."
    if rise > RISE:
        return (
            f"Overfitting: the validation loss rose by {rise:.0%} since {lowest}; {REGULARISERS}, or train fewer "
            "epochs (patience keeps the best)."
        )
    if error is not None and error > TELLING:
        return (
            f"Too few validation images to tell much: of {n_val} the accuracy {val:.3f} has a standard error of "
            f"{error:.3f} ({at})."
        )
    if error is not None and gap > GAP:
        return f"A gap of {gap:.3f} that may be chance: {at}, with a standard error of {error:.3f} of {n_val} images."
    why = " (of blended images)" if blended else " (of augmented views)" if gap < 0 else ""
    if 1 - val <= SURE * (error or 0.0) or val >= 1 - GAP / 5:
        return f"No gap: {at}{why}; there is little left to win."
    return f"No gap: {at}{why}: there is room for capacity; {CAPACITY}."


def _course(epochs: Sequence[Row], best: Row, start: Row | None) -> str:
    """Return whether it was still falling at the end, or had stood still for long, or never moved."""
    n = len(epochs)
    if n < FEWEST_EPOCHS:
        return ""
    losses = [_of(row, "val_loss") for row in epochs]
    back = max(1, n // 5)
    before, now = min(losses[:-back]), min(losses[-back:])
    if best is epochs[-1] and now < before * (1 - FALL):
        return (
            f"Still falling: validation loss {before:.3f} to {now:.3f} in the last {_epochs(back)}; take more epochs."
        )
    done = next(number for number, loss in enumerate(losses, 1) if loss <= min(losses) * (1 + FALL))
    if done > EARLY * n or losses[-1] > min(losses) * (1 + RISE):
        return ""
    first, last = _of(epochs[done - 1], "train_loss"), _of(epochs[-1], "train_loss")
    if last < first * (1 - RISE):
        return ""  # it still learns something, if only its own images
    if start is not None and losses[-1] > _of(start, "val_loss") * (1 - FALL):
        before = _of(start, "val_loss")
        return (
            f"Hardly anything was learned: validation loss {before:.3f} at the start and {losses[-1]:.3f} at the end, "
            f"training loss {first:.3f} and {last:.3f}; a larger lr may, or nothing is left to learn."
        )
    return (
        f"A plateau since epoch {_of(epochs[done - 1], 'epoch'):.0f} of {n}: validation loss "
        f"{losses[done - 1]:.3f} there and {losses[-1]:.3f} at the end, training loss {first:.3f} and {last:.3f}; "
        "a smaller lr may go further, or fewer epochs do."
    )


def _since(start: Row | None, best: Row) -> str:
    """Return whether training has won nothing over what it began with."""
    if start is None or _of(best, "val_loss") < _of(start, "val_loss"):
        return ""
    before, now = _of(start, "val_loss"), _of(best, "val_loss")
    return f"Nothing was won over the start: its validation loss is {before:.3f}, the lowest since is {now:.3f}."


def _without_val(epochs: Sequence[Row]) -> str:
    first, last = _of(epochs[0], "train_loss"), _of(epochs[-1], "train_loss")
    return (
        f"No validation images, so nothing tells learning from learning by heart: training loss {first:.3f} to "
        f"{last:.3f} in {_epochs(len(epochs))}."
    )


def standard_error(accuracy: float, n: int) -> float:
    """Return the standard error of an accuracy seen on n images, (h + 1) / (n + 2) taken for its true value, so that
    none of 0 or 1 is sure."""
    share = (accuracy * n + 1) / (n + 2)
    return math.sqrt(share * (1 - share) / n)


def in_short(row: Row) -> str:
    """Return the gap of one row, for a line of progress: "" where a split is missing."""
    if not (_has(row, "train_accuracy") and _has(row, "val_accuracy")):
        return ""
    gap = _of(row, "train_accuracy") - _of(row, "val_accuracy")
    return f"gap {gap:+.3f}"


def _epochs(n: int) -> str:
    return "1 epoch" if n == 1 else f"{n} epochs"


def _has(row: Row, key: str) -> bool:
    value = row.get(key)
    return value is not None and math.isfinite(value)


def _of(row: Row, key: str) -> float:
    value = row[key]
    assert value is not None
    return value
