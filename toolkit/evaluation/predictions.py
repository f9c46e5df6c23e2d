"""Predictions: what a model says about each image, in columns."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toolkit.data.manifest import SPLIT_NAMES, TEST, TRAIN, UNASSIGNED, VAL
from toolkit.evaluation.csv_text import csv_text
from toolkit.storage import publish_text

SPLIT_ORDER = (VAL, TEST, TRAIN, UNASSIGNED)  # of the rows in predictions.csv


@dataclass(frozen=True, eq=False)
class Predictions:
    """The class probabilities of N images, one row an image, in the order of the Manifest they came from.

    paths: N file paths. splits: int8 (N,), as in the Manifest. labels: int64 (N,), index into `classes`, −1 where
    there is none. probabilities: float32 (N, C) on the CPU, rows that sum to 1. classes: C names.

    Raises ValueError where the columns do not fit together.
    """

    paths: tuple[str, ...]
    splits: NDArray[np.int8]
    labels: NDArray[np.int64]
    probabilities: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        n, shape = len(self.paths), tuple(self.probabilities.shape)
        if self.splits.shape != (n,) or self.labels.shape != (n,) or shape != (n, len(self.classes)):
            raise ValueError(
                f"expected {n} rows of {len(self.classes)} classes, got splits {self.splits.shape}, "
                f"labels {self.labels.shape}, probabilities {shape}"
            )

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def predicted(self) -> NDArray[np.int64]:
        """Return int64 (N,): the most probable class, the first of equals."""
        return self.probabilities.argmax(dim=1).numpy()

    def select(self, rows: NDArray[np.int64]) -> Predictions:
        """Return the given rows, in the given order."""
        return replace(
            self,
            paths=tuple(self.paths[row] for row in rows),
            splits=self.splits[rows],
            labels=self.labels[rows],
            probabilities=self.probabilities[torch.from_numpy(rows)],
        )

    def of(self, split: int) -> Predictions:
        """Return the rows of a split: VAL, TEST, …"""
        return self.select(np.flatnonzero(self.splits == split))

    def labelled(self) -> Predictions:
        """Return the rows that have a label."""
        return self.select(np.flatnonzero(self.labels >= 0))

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Publish `path,split,label,prediction,probability`: val, then test, then the rest, each by path.

        Label and prediction are class names (an image without a label has an empty one), the probability is that
        of the prediction, with six decimals.
        """
        predicted = self.predicted
        rows = sorted(range(len(self)), key=lambda row: (SPLIT_ORDER.index(self.splits[row]), self.paths[row]))
        publish_text(
            path,
            csv_text(
                ("path", "split", "label", "prediction", "probability"),
                (
                    (
                        self.paths[row],
                        self.split_name(row),
                        self.classes[self.labels[row]] if self.labels[row] >= 0 else "",
                        self.classes[predicted[row]],
                        float(self.probabilities[row, predicted[row]]),
                    )
                    for row in rows
                ),
            ),
        )

    def split_name(self, row: int) -> str:
        """Return the name of a row's split, empty where it has none."""
        split = int(self.splits[row])
        return "" if split == UNASSIGNED else SPLIT_NAMES[split]

    def __str__(self) -> str:
        sizes = ", ".join(f"{name} {int((self.splits == split).sum())}" for split, name in enumerate(SPLIT_NAMES))
        return f"predictions for {len(self)} images ({sizes}) of {len(self.classes)} classes"
