"""The picture of a search: the score of every trial by each parameter, the stages told apart."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from toolkit.tuning.outcomes import COARSE, DEFAULT, FINISHED, PRUNED, Outcome
from toolkit.tuning.space import Choice, Number, Part, Space

COLUMNS = 4
# colour, marker, size
STYLES = {COARSE: ("#8aa6bf", "o", 26.0), DEFAULT: ("#111111", "*", 130.0)}
OTHERS = ("#c8501e", "o", 30.0)
NAMES = {"last": "last of the stages it sees (taps)", "count": "how many stages it sees (taps)"}
WORDS = {COARSE: "coarse: short trainings", "fine": "fine: full length", DEFAULT: "default settings"}


def draw_search(title: str, space: Space, outcomes: Sequence[Outcome], best: Outcome | None) -> bytes:
    """Return a PNG: an axis a parameter, logarithmic where it was searched so."""
    shown = [one for one in outcomes if one.accuracy is not None]
    n_columns = min(COLUMNS, len(space))
    n_rows = -(-len(space) // n_columns)
    figure = Figure(figsize=(max(6.5, 3.1 * n_columns), 2.9 * n_rows + 1.1), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    grid = figure.subplots(n_rows, n_columns, sharey=True, squeeze=False)
    for place, part in enumerate(space):
        axes = grid[place // n_columns][place % n_columns]
        _draw(axes, part, shown, best)
        if place % n_columns == 0:
            axes.set_ylabel("accuracy on held-out folds")
    for place in range(len(space), n_rows * n_columns):
        grid[place // n_columns][place % n_columns].set_axis_off()
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, max(1, len(labels))), frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _draw(axes: Any, part: Part, shown: Sequence[Outcome], best: Outcome | None) -> None:
    for stage in dict.fromkeys(one.stage for one in sorted(shown, key=lambda one: one.stage != COARSE)):
        colour, marker, size = STYLES.get(stage, OTHERS)
        finished = [one for one in shown if one.stage == stage and one.state == FINISHED]
        label = WORDS.get(stage, stage)
        axes.scatter(*_places(part, finished), s=size, c=colour, marker=marker, label=label, zorder=3, linewidths=0)
    pruned = [one for one in shown if one.state == PRUNED]
    if pruned:
        colours = [STYLES.get(one.stage, OTHERS)[0] for one in pruned]
        axes.scatter(*_places(part, pruned), s=26, c=colours, marker="x", label="pruned", zorder=2, linewidths=1)
    if best is not None:
        ring = {"facecolors": "none", "edgecolors": "#111111", "linewidths": 1.3}
        axes.scatter(*_places(part, [best]), s=130, label="best", zorder=4, **ring)
    axes.set_xlabel(NAMES.get(part.name, part.name))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if isinstance(part, Choice):
        axes.set_xticks(range(len(part.values)), [str(value) for value in part.values])
        axes.set_xlim(-0.6, len(part.values) - 0.4)
        return
    if part.log:
        axes.set_xscale("log")
        spare = (part.high / part.low) ** 0.04
        axes.set_xlim(part.low / spare, part.high * spare)
    if part.log and part.whole:
        ticks = [2**power for power in range(math.ceil(math.log2(part.low)), math.floor(math.log2(part.high)) + 1)]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
    elif part.whole:
        axes.set_xticks(range(int(part.low), int(part.high) + 1))


def _places(part: Part, outcomes: Sequence[Outcome]) -> tuple[list[float], list[float]]:
    """Return where trials stand: values on a Number's axis, positions of a Choice, a little apart by their numbers."""
    across = []
    for one in outcomes:
        value = one.params[part.name]
        if isinstance(part, Number):
            across.append(float(value))
        else:
            apart = ((one.number * 0.618) % 1 - 0.5) * 0.5  # the golden ratio spreads any run of numbers
            across.append(part.values.index(value) + apart)
    return across, [float(one.accuracy or 0.0) for one in outcomes]
