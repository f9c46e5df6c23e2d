"""Which of the images that are to be scored a model was trained on: its run folder says so."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from toolkit.artifacts.run_folder import PREDICTIONS, RunFolder
from toolkit.data.manifest import TEST, TRAIN, UNASSIGNED, VAL, Manifest
from toolkit.errors import DataError, ToolkitError
from toolkit.progress import say


def split_as_trained(manifest: Manifest, models: Sequence[str], data: str, split: str) -> Manifest:
    """Return the Manifest with the split of the runs that were trained on these very images and divided them.

    Images that every such run validated on become val, all others train: no image is scored that one of several
    models has learned by heart. Raises DataError where `split` is auto and there is none: no such image, no test image.
    """
    divided = manifest.splits == UNASSIGNED
    runs = [folder for model in models if (folder := _run_on(model, data)) is not None] if divided.any() else []
    if not runs:
        return manifest
    unseen = set(manifest.paths).intersection(*(_validated(folder / PREDICTIONS) for folder in runs))
    tested = bool(((manifest.splits == TEST) & (manifest.labels >= 0)).any())
    if split == "auto" and not unseen and not tested:
        raise DataError(_nothing_new(data, len(runs)))
    if len(runs) == 1:
        say("these are the images that the run was trained on: its own split is used again")
    else:
        say(
            f"these are the images that {len(runs)} of the models were trained on: {len(unseen)} are new to all of them"
        )
    was_validated = np.array([path in unseen for path in manifest.paths], dtype=bool)
    splits = np.where(divided, np.where(was_validated, VAL, TRAIN), manifest.splits)
    return replace(manifest, splits=splits.astype(np.int8))


def _nothing_new(data: str, n_runs: int) -> str:
    """Return what is wrong where every image was trained on, and what to do."""
    if n_runs == 1:
        return f"{data}: the run was trained on every image; score it on other images, or on these with --split all"
    return (
        f"{data}: every image was trained on by one of the {n_runs} models; train them with the same --seed and --val, "
        "or score them on other images"
    )


def _run_on(model: str, data: str) -> Path | None:
    """Return the run folder of a model, if it is that of a run on these data."""
    path = Path(model).expanduser().absolute()
    for folder in (path, path.parent):
        try:
            config = RunFolder.open(folder).config()
        except ToolkitError:
            continue
        if Path(str(config.get("data"))).resolve() == Path(data).expanduser().resolve():
            return folder
    return None


def _validated(file: Path) -> set[str]:
    """Return the paths that a run validated on; raises DataError."""
    try:
        with open(file, encoding="utf-8", newline="") as stream:
            return {row["path"] for row in csv.DictReader(stream) if row["split"] == "val"}
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise DataError(
            f"{file} cannot be read, and only it says which images were not trained on; copy model/ elsewhere to "
            "score it on all of them"
        ) from error
