"""The confusion matrix as a picture, from 2 classes to a thousand."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from toolkit.evaluation.lettering import width_px
from toolkit.reporting.figure import DPI, LINE_IN, blank, caption_lines, plain, write_caption

BY_NAME_UP_TO = 20  # classes; more are ordered so that those taken for each other stand side by side
MATRIX_IN = 5.0  # least side of the matrix; more classes than fit make it larger
LARGEST_IN = 15.0
CELL_IN = 0.145  # of many classes: what a line of the smallest letters needs
DIGIT_IN = 0.0088  # width of a digit at 1 point
LARGEST_CELL_IN = 1.25
N_WORST = 3  # that are named below


def draw_confusion(counts: NDArray[np.int64], classes: Sequence[str], images: str) -> Figure:
    """Return the matrix of counts (C, C), a row a true class, shaded by the share of its row.

    A count is written where it fits its cell, and zeros never are. images: what was counted, such as "200 validation
    images". A class without an image is a grey row.
    """
    order = class_order(counts, classes)
    counts, names = counts[np.ix_(order, order)], [plain(classes[number]) for number in order]
    n = len(names)
    side = min(LARGEST_IN, max(min(MATRIX_IN, n * LARGEST_CELL_IN), n * CELL_IN))
    points = max(1.0, min(9.0, side / n * 72 * 0.75))
    every = max(1, round(0.11 / (side / n)))  # of more classes than lines, each so-manieth is named
    points = points if every == 1 else 6.0
    margin = 0.5 + max(width_px(name, 100) for name in names) / 100 * points / 72
    lines = caption_lines(_caption(counts, names), max(4.5, side + margin))
    bottom, width = margin + 0.15 + LINE_IN * len(lines), max(4.5, side + margin + 1.0)
    height = side + bottom + 0.6
    figure = blank(width, height)
    axes = figure.add_axes((margin / width, bottom / height, side / width, side / height))
    _fill(axes, counts, side)
    ticks = range(0, n, every)
    axes.set_xticks(ticks, labels=names[::every], rotation=90, fontsize=points)
    axes.set_yticks(ticks, labels=names[::every], fontsize=points)
    axes.tick_params(length=2 if n > BY_NAME_UP_TO else 3.5, pad=2)
    axes.set(xlabel="predicted class", ylabel="true class")
    figure.suptitle(f"Which class was taken for which: {images}", y=1 - 0.15 / height, va="top", fontsize=11)
    bar = figure.add_axes(((margin + side + 0.12) / width, bottom / height, 0.13 / width, side / height))
    figure.colorbar(axes.images[0], cax=bar, label="share of the true class's images")
    write_caption(figure, lines)
    return figure


def class_order(counts: NDArray[np.int64], classes: Sequence[str]) -> list[int]:
    """Return the classes in the order in which they are shown.

    Few go by name, numbers in it as numbers. Of many, the first by name stands first, and after each the one that is
    most often taken for it, or it for that one, of those that are left: confused classes are blocks on the diagonal.
    """
    by_name = sorted(range(len(classes)), key=lambda number: (_natural(classes[number]), number))
    if len(classes) <= BY_NAME_UP_TO:
        return by_name
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    mixed = shares + shares.T
    order, left = [by_name[0]], by_name[1:]
    while left:
        nearest = max(left, key=lambda number: mixed[order[-1], number])  # the first by name of equals
        order.append(nearest)
        left.remove(nearest)
    return order


def _fill(axes: Axes, counts: NDArray[np.int64], side_in: float) -> None:
    n, totals = len(counts), counts.sum(1)
    shares = np.where(totals[:, None] > 0, counts / np.maximum(1, totals[:, None]), np.nan)
    axes.set_facecolor("#dddddd")
    axes.imshow(np.ma.masked_invalid(shares), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    cell_in = side_in / n
    digits = len(str(int(counts.max(initial=0))))
    points = min(11.0, cell_in * 72 * 0.62, 0.86 * cell_in / digits / DIGIT_IN)
    if points * DPI / 72 < 6.5:  # pixels: less cannot be read
        return
    for row, column in zip(*np.nonzero(counts), strict=True):
        colour = "white" if shares[row, column] > 0.55 else "black"
        text = str(int(counts[row, column]))
        axes.text(column, row, text, ha="center", va="center", fontsize=points, color=colour)


def _caption(counts: NDArray[np.int64], names: Sequence[str]) -> str:
    """Return the commonest confusions, and which classes had no image."""
    wrong = [(int(counts[i, j]), i, j) for i, j in zip(*np.nonzero(counts), strict=True) if i != j]
    worst = sorted(wrong, key=lambda one: (-one[0], one[1], one[2]))[:N_WORST]
    told = "; ".join(f"{names[i]} taken for {names[j]}, {count}" for count, i, j in worst)
    parts = [f"Most often: {told}." if worst else "Nothing was taken for something else."]
    empty = [names[number] for number in np.flatnonzero(counts.sum(1) == 0).tolist()]
    if empty:
        some = ", ".join(empty[:N_WORST]) + (f" and {len(empty) - N_WORST} more" if len(empty) > N_WORST else "")
        parts.append(f"Grey: there was no image of {some}.")
    return " ".join(parts)


def _natural(name: str) -> list[tuple[int, str]]:
    """Return what sorts class 2 before class 10."""
    return [(int(part), "") if part.isdecimal() else (0, part.casefold()) for part in re.split(r"(\d+)", name)]
