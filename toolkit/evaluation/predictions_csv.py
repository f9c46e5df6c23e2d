"""predictions.csv, read back: what a run said of the images that it was scored on."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import ArtifactError


@dataclass(frozen=True, eq=False)
class PredictionTable:
    """The columns of a `predictions.csv`, row by row.

    paths, splits, labels, predictions: text; a label is empty where there was none. probabilities: float64 (N,), of the
    predictions, rounded to six decimals.
    """

    paths: tuple[str, ...]
    splits: tuple[str, ...]
    labels: tuple[str, ...]
    predictions: tuple[str, ...]
    probabilities: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.paths)

    def labelled(self, split: str) -> list[int]:
        """Return the rows of a split that have a label."""
        return [row for row, name in enumerate(self.splits) if name == split and self.labels[row]]

    @property
    def right(self) -> NDArray[np.bool_]:
        """Return bool (N,): whether prediction and label are the same."""
        return np.array([a == b for a, b in zip(self.labels, self.predictions, strict=True)], dtype=bool)


def read_predictions(path: str | os.PathLike[str]) -> PredictionTable:
    """Return the table; raises ArtifactError where it is missing or none that a run wrote."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        columns = [tuple(row[key] for row in rows) for key in ("path", "split", "label", "prediction")]
        if any(not isinstance(text, str) for column in columns for text in column):
            raise ValueError("a row is too short")
        probabilities = np.array([float(row["probability"]) for row in rows], dtype=np.float64)
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise ArtifactError(f"{os.fspath(path)} cannot be read ({type(error).__name__}: {error})") from error
    paths, splits, labels, predictions = columns
    return PredictionTable(paths, splits, labels, predictions, probabilities)
