"""predictions.csv, read back: what a run said of the images that it was scored on."""

from __future__ import annotations

import csv
import os
import sys
from array import array
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import ArtifactError

HEADER = ("path", "split", "label", "prediction", "probability")


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
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file)
            if tuple(next(rows, ())) != HEADER:
                raise ValueError(f"its columns are not {','.join(HEADER)}")
            paths: list[str] = []
            names: list[tuple[str, str, str]] = []
            probabilities = array("d")
            for row in rows:
                if not row:  # a blank line at the end, as editors leave it
                    continue
                if len(row) != len(HEADER):
                    raise ValueError(f"line {rows.line_num}: {len(HEADER)} fields expected, got {len(row)}")
                path_of_image, split, label, prediction, probability = row
                paths.append(path_of_image)
                names.append((sys.intern(split), sys.intern(label), sys.intern(prediction)))  # few, each many times
                probabilities.append(float(probability))
    except (OSError, ValueError, csv.Error) as error:
        raise ArtifactError(f"{os.fspath(path)} cannot be read ({type(error).__name__}: {error})") from error
    if len(set(paths)) < len(paths):
        twice = next(one for one, count in Counter(paths).items() if count > 1)
        raise ArtifactError(f"{os.fspath(path)}: {twice} is there twice")
    splits, labels, predictions = zip(*names, strict=True) if names else ((), (), ())
    return PredictionTable(tuple(paths), splits, labels, predictions, np.frombuffer(probabilities, np.float64))
