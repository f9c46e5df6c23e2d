"""A sheet of the mistakes that the model was surest of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from toolkit.evaluation.sheet import sheet_png
from toolkit.reporting.figure import plain

SHOWN, COLUMNS = 24, 6


def draw_mistakes(mistakes: Sequence[Mapping[str, str]], picture: Callable[[str], Tensor], title: str) -> bytes:
    """Return the first mistakes of `mistakes.csv` as PNG, each with its true class, what it was taken for, and the
    probability of that.

    picture: uint8 (3, H, W) of the image at a path.
    """
    pictures = [
        (
            f"is {plain(row['label'])}\n{float(row['probability']):.2f} for {plain(row['prediction'])}",
            picture(row["path"]),
        )
        for row in mistakes[:SHOWN]
    ]
    return sheet_png(pictures, min(COLUMNS, max(3, len(pictures))), title=title)
