"""Loss and accuracy of both splits by epoch, with a diagnosis in words below."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from toolkit.reporting.figure import LINE_IN, TRAINING, VALIDATION, blank, caption_lines, write_caption

WIDTH_IN, HEIGHT_IN = 10.0, 4.2
WIDE_RANGE = 50  # from the lowest loss to the highest: then equal steps of it are equal factors

Row = Mapping[str, float | None]


def draw_curves(rows: Sequence[Row], caption: str, *, title: str = "Training", loss: str = "cross-entropy") -> Figure:
    """Return the curves of `history.csv`'s rows; what is missing or not finite leaves a gap.

    rows: epoch, train_loss, train_accuracy, val_loss, val_accuracy; epoch 0 is where training began. loss: what it is.
    notes: Babysitting the learning process: watch the loss, and the gap between the accuracies.
    """
    lines = caption_lines(caption, WIDTH_IN)
    height = HEIGHT_IN + LINE_IN * len(lines)
    figure = blank(WIDTH_IN, height)
    figure.suptitle(title, y=1 - 0.1 / height, va="top")
    below = (0.6 + LINE_IN * len(lines)) / height
    axes = figure.subplots(
        1, 2, gridspec_kw={"left": 0.075, "right": 0.985, "bottom": below, "top": 1 - 0.75 / height, "wspace": 0.2}
    )
    _draw(axes[0], rows, "loss", f"{loss} an image" + (" (nats)" if loss == "cross-entropy" else ""))
    _draw(axes[1], rows, "accuracy", "share of the images that is right")
    values = [y for line in axes[0].lines for y in line.get_ydata() if math.isfinite(y)]
    if values and min(values) > 0 and max(values) > WIDE_RANGE * min(values):
        axes[0].set_yscale("log")
        axes[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes[0].yaxis.set_minor_formatter(NullFormatter())
    write_caption(figure, lines)
    return figure


def _draw(axes: Axes, rows: Sequence[Row], what: str, label: str) -> None:
    for split, name, colour in (("train", "training", TRAINING), ("val", "validation", VALIDATION)):
        values = [_finite(row.get(f"{split}_{what}")) for row in rows]
        epochs = [_finite(row.get("epoch")) for row in rows]
        known = [(value, epoch) for value, epoch in zip(values, epochs, strict=True) if math.isfinite(value)]
        if not known:
            continue
        ends = {"lowest": min(known, key=lambda one: one[0]), "highest": max(known, key=lambda one: one[0])}
        best = "lowest" if what == "loss" else "highest"
        told = f"{name}, {best} {ends[best][0]:.3g} in epoch {ends[best][1]:g}"
        axes.plot(epochs, values, color=colour, marker="o", markersize=3.5, linewidth=1.5, label=told)
    begins = bool(rows) and rows[0].get("epoch") == 0
    axes.set(title=what, xlabel="epoch (0: before training)" if begins else "epoch", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.08)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize=8, loc="best")


def _finite(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else math.nan
