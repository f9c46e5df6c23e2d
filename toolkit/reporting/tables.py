"""What a run folder's CSV files hold, as pictures need it."""

from __future__ import annotations

import csv
from pathlib import Path

HistoryRow = dict[str, float | None]


def read_history(path: Path) -> list[HistoryRow]:
    """Return the rows of `history.csv`; None for an empty field. Raises OSError, ValueError for what is no table."""
    with open(path, encoding="utf-8", newline="") as file:
        return [{key: float(text) if text else None for key, text in row.items()} for row in csv.DictReader(file)]


def read_mistakes(path: Path) -> list[dict[str, str]]:
    """Return the rows of `mistakes.csv`, the surest mistake first."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
