"""Finding: what an experiment asked, what it saw, and whether that is what the notes say."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Cell = str | int | float


@dataclass(frozen=True)
class Finding:
    """The result of one experiment.

    title: the question. claim: what the notes say. shown: whether the run shows it, and verdict: the decisive numbers.
    header, rows: the table. draw: puts the picture on an empty matplotlib figure.
    """

    name: str
    title: str
    claim: str
    shown: bool
    verdict: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    draw: Callable[[Any], None] = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; numbers that are not finite become None."""
        plain = [
            [None if isinstance(cell, float) and not math.isfinite(cell) else cell for cell in r] for r in self.rows
        ]
        return {
            "name": self.name,
            "title": self.title,
            "claim": self.claim,
            "shown": self.shown,
            "verdict": self.verdict,
            "header": list(self.header),
            "rows": plain,
        }

    def __str__(self) -> str:
        lines = [self.title, "", *table(self.header, self.rows), "", f"The notes: {self.claim}"]
        return "\n".join([*lines, f"{'Shown' if self.shown else 'Not shown'}: {self.verdict}"])


def table(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[str]:
    """Return lines with aligned columns: words to the left, numbers, in four digits, to the right."""
    texts = [list(header), *([_text(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in texts) for i in range(len(header))]
    numbers = [all(not isinstance(row[i], str) for row in rows) for i in range(len(header))]
    return [
        "  ".join(
            text.rjust(width) if number else text.ljust(width)
            for text, width, number in zip(line, widths, numbers, strict=True)
        ).rstrip()
        for line in texts
    ]


def _text(cell: Cell) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
