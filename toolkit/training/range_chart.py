"""The curve of a range test as a table and as a picture."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

from toolkit.storage import publishing
from toolkit.training.range_test import RangeTest, smoothed


def range_csv(found: RangeTest) -> str:
    """Return a CSV table: multiplier, lr (of the head), train_loss, held_out_loss, a row a step."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("multiplier", "lr", "train_loss", "held_out_loss"))
    for point in found.points:
        losses = ("" if loss is None else f"{loss:.6g}" for loss in (point.train_loss, point.held_out_loss))
        writer.writerow((f"{point.multiplier:.6g}", f"{point.multiplier * found.lr:.6g}", *losses))
    return text.getvalue()


def range_chart(found: RangeTest, path: Path) -> None:
    """Publish the picture of a range test, PNG; needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    rates = [point.multiplier * found.lr for point in found.points]
    axes.plot(rates, [point.train_loss for point in found.points], ".", color="0.75", ms=4, label="training batch")
    seen = [(rate, point.held_out_loss) for rate, point in zip(rates, found.points, strict=True)]
    looks = [(rate, loss) for rate, loss in seen if loss is not None]
    if looks:
        xs, ys = zip(*looks, strict=True)
        axes.plot(xs, ys, "o", color="tab:blue", ms=3.5, label="images held out")
        axes.plot(xs, smoothed(ys), "-", color="tab:blue", label="the same, running median")
        high, low = max(smoothed(ys)), min(smoothed(ys))
        axes.set_ylim(0, max(high, low + 0.2) * 1.15)
    tried = [one for one in found.rehearsals if math.isfinite(one.loss)]
    if tried:
        places = [one.multiplier * found.lr for one in tried], [one.loss for one in tried]
        axes.plot(*places, "D", color="tab:red", ms=5, label="short trainings, images held out")
    axes.axvline(found.suggested_lr, color="tab:red", lw=1.2, label=f"suggested: {found.suggested_lr:g}")
    axes.axvline(found.lr, color="0.4", lw=1, ls=":", label=f"the strategy's own: {found.lr:g}")
    axes.set_xscale("log")
    axes.set_xlabel("learning rate of the head (all other rates in proportion)")
    axes.set_ylabel("loss (nats an image)")
    axes.set_title("Learning-rate range test")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="upper left")
    with publishing(path) as temporary:
        figure.savefig(temporary, format="png")
