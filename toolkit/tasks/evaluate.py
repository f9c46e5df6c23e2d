"""`toolkit evaluate`: scores of a saved model on labelled data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.errors import DataError, unknown_name

if TYPE_CHECKING:
    from toolkit.data.manifest import Manifest
    from toolkit.scores import Scores

SPLITS = ("auto", "train", "val", "test", "all")


@dataclass(frozen=True)
class Evaluation:
    """How a saved model did: which images were scored, the scores, and how many files could not be used."""

    split: str
    scores: Scores
    quarantined: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"split": self.split, **self.scores.to_dict(), "quarantined": self.quarantined}

    def __str__(self) -> str:
        return f"{self.split}: {self.scores}; {self.quarantined} files quarantined"


def evaluate(
    model: str,
    data: str,
    *,
    split: str = "auto",
    out: str | None = None,
    device: str = "auto",
    workers: int | None = None,
) -> Evaluation:
    """Return the scores of a saved model on labelled images.

    `auto` takes the test images if there are labelled ones, else val, else all. On the very folder that a run was
    trained on, the run's own split is used again, so that no training image is scored. Raises ToolkitError.

    Args:
        model: a run folder or the model folder in it
        data: labelled photos: DIR/CLASS/…, DIR/train/CLASS/…, a CSV, or IDX files; classes that the model knows
        split: auto, train, val, test, all
        out: a folder for predictions.csv, per_class.csv, confusion.csv and mistakes.csv
        device: auto, cpu, cuda, cuda:1, mps
        workers: processes that decode; by the number of images and cores by default
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    from toolkit.artifacts.model_folder import load_model
    from toolkit.baselines.idx import is_idx, read_idx
    from toolkit.data.loading import default_workers
    from toolkit.data.scan import scan
    from toolkit.evaluation.scoring import predict_arrays, predict_rows
    from toolkit.hardware import resolve_device
    from toolkit.scores import score

    where = resolve_device(device)
    trained = load_model(model)
    if is_idx(data):
        manifest, images = read_idx(data, classes=trained.classes)
    else:
        manifest, images = scan(data, max_pixels=trained.max_pixels, classes=trained.classes), None
    manifest = _split_as_trained(manifest, model, data)
    name, rows = _pick(manifest, split)
    if out is not None:
        _make_folder(Path(out).expanduser())
    count = default_workers(len(rows)) if workers is None else workers
    if images is None:
        predictions, lost = predict_rows(trained, manifest, rows, device=where, workers=count)
    else:
        predictions, lost = predict_arrays(trained, manifest, images, rows, device=where), ()
    if not len(predictions):
        raise DataError(f"{data}: none of the {len(rows)} images can be read; the first: {lost[0][1]}")
    if out is not None:
        _write_tables(Path(out).expanduser(), predictions)
    import torch

    scores = score(predictions.probabilities, torch.from_numpy(predictions.labels))
    return Evaluation(name, scores, len(manifest.quarantined) + len(lost))


def _split_as_trained(manifest: Manifest, model: str, data: str) -> Manifest:
    """Return the Manifest with the run's own split, if the model is a run's and the data are what it trained on."""
    import numpy as np

    from toolkit.artifacts.run_folder import PREDICTIONS, RunFolder
    from toolkit.data.manifest import TRAIN, UNASSIGNED, VAL
    from toolkit.errors import ToolkitError
    from toolkit.progress import say

    path = Path(model).expanduser().absolute()
    for folder in (path, path.parent):
        try:
            config = RunFolder.open(folder).config()
        except ToolkitError:
            continue
        same = Path(str(config.get("data"))).resolve() == Path(data).expanduser().resolve()
        if same and (manifest.splits == UNASSIGNED).any():
            say("these are the images that the run was trained on: its own split is used again")
            validated = _validated(folder / PREDICTIONS)
            was_validated = np.array([path in validated for path in manifest.paths], dtype=bool)
            splits = np.where(manifest.splits == UNASSIGNED, np.where(was_validated, VAL, TRAIN), manifest.splits)
            return replace(manifest, splits=splits.astype(np.int8))
    return manifest


def _validated(file: Path) -> set[str]:
    """Return the paths that a run validated on; raises DataError."""
    import csv

    try:
        with open(file, encoding="utf-8", newline="") as stream:
            return {row["path"] for row in csv.DictReader(stream) if row["split"] == "val"}
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise DataError(
            f"{file} cannot be read, and only it says which images were not trained on; copy model/ elsewhere to "
            "score it on all of them"
        ) from error


def _pick(manifest: Manifest, split: str) -> tuple[str, Any]:
    """Return the name and the labelled rows of what is to be scored."""
    import numpy as np

    from toolkit.data.manifest import SPLIT_NAMES

    labelled = manifest.labels >= 0
    rows_of = {name: np.flatnonzero(labelled & (manifest.splits == i)) for i, name in enumerate(SPLIT_NAMES)}
    rows_of["all"] = np.flatnonzero(labelled)
    if split == "auto":
        split = next(name for name in ("test", "val", "all") if len(rows_of[name]))
    if not len(rows_of[split]):
        raise DataError(f"{manifest.root}: there are no labelled images in {split}")
    return split, rows_of[split]


def _make_folder(folder: Path) -> None:
    """Make the folder of the tables before the work; a run's own tables are not to be replaced."""
    from toolkit.artifacts.run_folder import CONFIG
    from toolkit.errors import ArtifactError

    if (folder / CONFIG).exists():
        raise ArtifactError(f"{folder} holds a run, whose tables would be replaced; choose another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"{folder}: cannot be written ({error.strerror}); choose another --out") from error


def _write_tables(folder: Path, predictions: Any) -> None:
    from toolkit.artifacts.run_folder import CONFUSION, MISTAKES, PER_CLASS, PREDICTIONS
    from toolkit.evaluation.tables import write_confusion_csv, write_mistakes_csv, write_per_class_csv

    predictions.to_csv(folder / PREDICTIONS)
    write_confusion_csv(folder / CONFUSION, predictions)
    write_per_class_csv(folder / PER_CLASS, predictions)
    write_mistakes_csv(folder / MISTAKES, predictions)
