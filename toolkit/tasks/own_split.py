"""Which of the images that are to be scored a model was trained on: its run folder says so."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolkit.artifacts.run_folder import PREDICTIONS, TRAINED_ON, RunFolder
from toolkit.data.fingerprints import fingerprint, is_among, size_in
from toolkit.data.manifest import TEST, TRAIN, UNASSIGNED, VAL, Manifest
from toolkit.errors import DataError, ToolkitError
from toolkit.evaluation.csv_text import csv_text
from toolkit.progress import say
from toolkit.storage import publish_text


def write_trained_on(folder: Path, manifest: Manifest) -> None:
    """Write the path and the fingerprint of every training image; of what is no file, or not there any more, "-"."""
    rows = [(manifest.paths[row], _fingerprint(manifest.file(row))) for row in manifest.rows(TRAIN)]
    publish_text(folder / TRAINED_ON, csv_text(("path", "fingerprint"), rows))


def split_as_trained(manifest: Manifest, models: Sequence[str], data: str, split: str) -> Manifest:
    """Return the Manifest with what models were trained on as train, and all else of an undivided folder as val.

    So no image is scored that one of several models has learned by heart. A run on these data knows them by their
    paths, any other run by their content: copies, a folder that was moved, or one that has grown. Where the folder is
    divided by itself, or all of it is copies, a line says so. Raises DataError where `split` is auto and nothing of a
    run's own data is left to score.
    """
    runs = [run for model in models if (run := _run_of(model)) is not None]
    on_these = [run for run in runs if _is_on(run, data)]
    trained = np.zeros(len(manifest), dtype=bool)
    for run in runs:
        trained |= _by_path(run, manifest) if run in on_these else _by_content(run, manifest)
    divided = manifest.splits == UNASSIGNED
    if not divided.any():
        n = int((trained & (manifest.splits != TRAIN)).sum())
        if n:
            say(f"note: {n} images of val or test are copies of images that were trained on")
        return manifest
    if not on_these and not trained.any():
        return manifest
    n_new = int((divided & ~trained).sum())
    if not on_these and not n_new:
        say("note: these are copies of images that were trained on, and say nothing of new ones")
        return manifest
    tested = bool(((manifest.splits == TEST) & (manifest.labels >= 0)).any())
    if split == "auto" and not n_new and not tested:
        raise DataError(_nothing_new(data, len(runs)))
    if len(on_these) == len(runs) == 1:
        since = n_new - int((divided & _validated_rows(runs[0], manifest)).sum())
        grown = f"; {since} images are new since" if since else ""
        say(f"these are the images that the run was trained on: its own split is used again{grown}")
    elif on_these:
        say(f"these are the images that {len(on_these)} of the models were trained on: {n_new} are new to all of them")
    else:
        say(f"{int(trained.sum())} of these images are copies of images that were trained on; {n_new} are new")
    splits = np.where(divided, np.where(trained, TRAIN, VAL), manifest.splits)
    return replace(manifest, splits=splits.astype(np.int8))


def _nothing_new(data: str, n_runs: int) -> str:
    """Return what is wrong where every image was trained on, and what to do."""
    if n_runs == 1:
        return f"{data}: the run was trained on every image; score it on other images, or on these with --split all"
    return (
        f"{data}: every image was trained on by one of the {n_runs} models; train them with the same --seed and --val, "
        "or score them on other images"
    )


def _run_of(model: str) -> Path | None:
    """Return the run folder of a model, if it lies in one."""
    path = Path(model).expanduser().absolute()
    for folder in (path, path.parent):
        with suppress(ToolkitError):
            RunFolder.open(folder).config()
            return folder
    return None


def _is_on(run: Path, data: str) -> bool:
    return Path(str(RunFolder(run).config().get("data"))).resolve() == Path(data).expanduser().resolve()


def _by_path(run: Path, manifest: Manifest) -> NDArray[np.bool_]:
    """Return which rows a run on the same data was trained on; without a list of them, those it did not validate on."""
    if not (run / TRAINED_ON).exists():
        return ~_validated_rows(run, manifest)
    known = {path for path, _ in _read(run / TRAINED_ON, ("path", "fingerprint"))}
    return np.array([path in known for path in manifest.paths], dtype=bool)


def _by_content(run: Path, manifest: Manifest) -> NDArray[np.bool_]:
    """Return which rows have the content of an image that a run was trained on, be it an earlier version's; a file
    is read if its size is one of theirs."""
    found = np.zeros(len(manifest), dtype=bool)
    if not (run / TRAINED_ON).exists():
        return found
    known = {one for _, one in _read(run / TRAINED_ON, ("path", "fingerprint")) if one != "-"}
    sizes = {size_in(one) for one in known}
    for row in range(len(manifest)) if known else ():
        with suppress(OSError):
            file = manifest.file(row)
            found[row] = file.stat().st_size in sizes and is_among(file, known)
    return found


def _validated_rows(run: Path, manifest: Manifest) -> NDArray[np.bool_]:
    validated = {path for path, split in _read(run / PREDICTIONS, ("path", "split")) if split == "val"}
    return np.array([path in validated for path in manifest.paths], dtype=bool)


def _fingerprint(file: Path) -> str:
    with suppress(OSError):
        return fingerprint(file)
    return "-"


def _read(file: Path, columns: tuple[str, str]) -> list[tuple[str, str]]:
    """Return two columns of a run's table; raises DataError."""
    try:
        with open(file, encoding="utf-8", newline="") as stream:
            return [(row[columns[0]], row[columns[1]]) for row in csv.DictReader(stream)]
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise DataError(
            f"{file} cannot be read, and only it says which images were not trained on; copy model/ elsewhere to "
            "score it on all of them"
        ) from error
