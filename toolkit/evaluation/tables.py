"""The tables of a run folder: confusion matrix, scores by class, worst mistakes."""

from __future__ import annotations

import os

import numpy as np
import torch

from toolkit.evaluation.csv_text import csv_text
from toolkit.evaluation.predictions import Predictions
from toolkit.scores import confusion_matrix, per_class_table
from toolkit.storage import publish_text

N_MISTAKES = 50


def write_confusion_csv(path: str | os.PathLike[str], predictions: Predictions) -> None:
    """Publish the counts of labelled images: a row a true class, a column a predicted one."""
    known = predictions.labelled()
    counts = confusion_matrix(torch.from_numpy(known.predicted), torch.from_numpy(known.labels), len(known.classes))
    rows = ((name, *row) for name, row in zip(known.classes, counts.tolist(), strict=True))
    publish_text(path, csv_text(("label", *known.classes), rows))


def write_per_class_csv(path: str | os.PathLike[str], predictions: Predictions) -> None:
    """Publish `class,n,precision,recall,f1` of the labelled images; a ratio 0 / 0 is an empty field."""
    known = predictions.labelled()
    table = per_class_table(torch.from_numpy(known.predicted), torch.from_numpy(known.labels), known.classes)
    header = ("class", "n", "precision", "recall", "f1")
    publish_text(path, csv_text(header, ([row[key] for key in header] for row in table)))


def write_mistakes_csv(path: str | os.PathLike[str], predictions: Predictions, limit: int = N_MISTAKES) -> None:
    """Publish the mistakes the model was surest of, the surest first, equals by path.

    Columns: `path,split,label,prediction,probability,probability_of_label`.
    """
    known = predictions.labelled()
    predicted, chances = known.predicted, known.probabilities.numpy()
    wrong = np.flatnonzero(predicted != known.labels)
    worst = sorted(wrong.tolist(), key=lambda row: (-chances[row, predicted[row]], known.paths[row]))[:limit]
    publish_text(
        path,
        csv_text(
            ("path", "split", "label", "prediction", "probability", "probability_of_label"),
            (
                (
                    known.paths[row],
                    known.split_name(row),
                    known.classes[known.labels[row]],
                    known.classes[predicted[row]],
                    float(chances[row, predicted[row]]),
                    float(chances[row, known.labels[row]]),
                )
                for row in worst
            ),
        ),
    )
