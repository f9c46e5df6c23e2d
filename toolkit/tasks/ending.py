"""How every run ends: the model folder, the tables, metrics.json, and what is said of them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from toolkit.artifacts.model_folder import Model, save_model
from toolkit.artifacts.run_folder import (
    CONFUSION,
    HISTORY,
    MISTAKES,
    MODEL,
    PER_CLASS,
    PREDICTIONS,
    TRIAL_HISTORIES,
    RunFolder,
)
from toolkit.data.manifest import TRAIN, Manifest
from toolkit.evaluation.predictions import Predictions
from toolkit.evaluation.tables import write_confusion_csv, write_mistakes_csv, write_per_class_csv
from toolkit.scores import Scores
from toolkit.tasks.job import Stopwatch
from toolkit.tasks.own_split import write_trained_on
from toolkit.training.diagnosis import diagnose

VAL_USE = {
    "nothing": "nothing was chosen by these images; once you choose between runs by them, a test split alone is unseen",
    "epoch": "these images chose the epoch that was kept, so expect a little less on others; a test split would tell",
}


def publish_results(folder: RunFolder, model: Model, predictions: Predictions, manifest: Manifest) -> None:
    """Write the model folder, the predictions, the tables made of them, and the quarantine."""
    save_model(model, folder.path / MODEL)
    predictions.to_csv(folder.path / PREDICTIONS)
    known = predictions.labelled()
    write_confusion_csv(folder.path / CONFUSION, known)
    write_per_class_csv(folder.path / PER_CLASS, known)
    write_mistakes_csv(folder.path / MISTAKES, known)
    folder.write_quarantine(manifest)
    write_trained_on(folder.path, manifest)


def metrics_of(
    manifest: Manifest, scores: dict[str, Scores | None], clock: Stopwatch, *, strategy: str, backbone: str | None
) -> dict[str, Any]:
    """Return what every metrics.json has: what a run does not have is None."""
    return {
        "strategy": strategy,
        "backbone": backbone,
        "classes": list(manifest.classes),
        "train": {"n": len(manifest.rows(TRAIN))},
        **{split: None if scored is None else scored.to_dict() for split, scored in scores.items()},
        "scanned": manifest.n_scanned,
        "used": len(manifest),
        "quarantined": len(manifest.quarantined),
        "skipped": manifest.n_skipped,
        "seconds": clock.to_dict(),
    }


def diagnosis_of(
    folder: RunFolder,
    *,
    n_val: int | None,
    n_judges: int | None = None,
    blended: bool = False,
    keeps_best: bool = False,
) -> str | None:
    """Return in words what the training's history says, or the first trial's, where nothing else was trained; None
    where nothing was trained by epochs.

    n_val: validation images; n_judges: those that were held out of a trial. blended: by mixup or cutmix.
    keeps_best: the weights of the lowest validation loss are kept, not the last ones.
    """
    for name, n, judged_by in ((HISTORY, n_val, "validation"), (TRIAL_HISTORIES[0], n_judges, "held-out")):
        if (folder.path / name).exists():
            with open(folder.path / name, encoding="utf-8", newline="") as file:
                rows = [
                    {key: float(value) if value else None for key, value in row.items()} for row in csv.DictReader(file)
                ]
            told = diagnose(rows, n_val=n, blended=blended, keeps_best=keeps_best, judged_by=judged_by)
            return told or None
    return None


def score_lines(metrics: dict[str, Any]) -> list[str]:
    """Return the scores of val and test for a person, and what val was used for."""
    lines = [f"{split}: {_scores_from(metrics[split])}" for split in ("val", "test") if metrics[split] is not None]
    if metrics["val"] is None:
        return [*lines, "val: nothing to validate on", *_course(metrics)]
    return [*lines, f"     {VAL_USE[metrics['val_chose']]}", *_course(metrics)]


def _course(metrics: dict[str, Any]) -> list[str]:
    """Return the diagnosis as a line, where there is one; runs of earlier versions have none."""
    return [f"course: {metrics['diagnosis']}"] if metrics.get("diagnosis") else []


def file_lines(metrics: dict[str, Any], path: Path) -> list[str]:
    """Return what became of the files, and where the run is."""
    lost = f"{metrics['quarantined']} quarantined (quarantine.csv), {metrics['skipped']} others skipped"
    return [f"files: {lost}", f"run folder: {path}"]


def _scores_from(values: dict[str, Any]) -> Scores:
    interval = values["accuracy_ci95"]
    return Scores(**{**values, "accuracy_ci95": None if interval is None else tuple(interval)})
