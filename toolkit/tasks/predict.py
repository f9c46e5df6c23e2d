"""`toolkit predict`: a saved model on files, folders and patterns."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from toolkit.errors import DataError
from toolkit.settings import checked
from toolkit.tasks.head_start import head_start_of


def predict(
    model: str,
    paths: list[str],
    *,
    ensemble: list[str] | None = None,
    mc: int | None = None,
    mirror: bool = False,
    device: str = "auto",
    workers: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield a record an image: path, label, probability and the top 5, or path and error for a broken file.

    With several opinions, of models or of passes with dropout, a record also has spread: the standard deviation of
    the label's probability over them. Decoding and preprocessing are exactly those of the training. Raises
    ToolkitError for a model that is missing or damaged, and for paths at which there is nothing.

    Args:
        model: a run folder or the model folder in it
        paths: image files, folders (searched for images) and patterns such as 'photos/*.jpg'
        ensemble: more models of the same classes; the probabilities of all are averaged, and their spread is told
        mc: ask each model so many times with dropout, and average; the spread says how sure it is
        mirror: ask about each image and its mirror image, and average; not for what has a left and a right
        device: auto, cpu, cuda, cuda:1, mps
        workers: how many processes (on a CPU: threads) decode; by the number of images and cores by default
    """
    workers = None if workers is None else checked("workers", workers)
    mc = None if mc is None else checked("mc", mc)
    files = image_files(paths)
    refused = {path: reason for path, reason in files.items() if reason is not None}
    with head_start_of(model, [path for path in files if path not in refused], workers):
        from toolkit.artifacts.model_folder import load_ensemble
        from toolkit.artifacts.predict import predict_paths
        from toolkit.data.ahead import take
        from toolkit.data.loading import default_workers
        from toolkit.hardware import resolve_device

        where = resolve_device(device)
        count = default_workers(len(files)) if workers is None else workers
        models = load_ensemble([model, *others(ensemble)], passes=mc, mirrored=mirror)
        ready = take(models.members[0].preprocessing.decoding, models.max_pixels)
    return predict_paths(models, list(files), refused=refused, device=where, workers=count, ready=ready)


def others(ensemble: Sequence[str] | str | None) -> list[str]:
    """Return the further models of an ensemble; a single one may come without a list, as a path of images may."""
    return [os.fspath(ensemble)] if isinstance(ensemble, (str, os.PathLike)) else list(ensemble or [])


def image_files(paths: Sequence[str]) -> dict[str, str | None]:
    """Return the files that paths, folders and patterns stand for, each once, in the order given.

    Of a file in a folder that can be read by no name, the reason is told; else it is None.
    A file that is named is returned whatever it is, and so is a name at which there is nothing if others are there:
    its record will say so. Of a folder, the files that look like images are. ~ is the home folder, where no shell has
    seen to it already. Raises DataError for a pattern or folder without any, and for a single missing name.
    """
    if isinstance(paths, (str, os.PathLike)):
        paths = [os.fspath(paths)]
    found: dict[str, str | None] = {}
    for path in map(_expanded, paths):
        if os.path.isdir(path):
            found |= _images_below(path)
        elif os.path.lexists(path) or not glob.has_magic(path):
            found[path] = None
        else:
            matches = sorted(glob.glob(path, recursive=True))
            if not matches:
                raise DataError(f"{path}: no file fits this pattern")
            for match in matches:
                found |= _images_below(match) if os.path.isdir(match) else {match: None}
    if not found:
        raise DataError("which images? Give files, folders or patterns: toolkit predict MODEL PATH…")
    if not any(reason is not None or os.path.lexists(path) for path, reason in found.items()):
        raise DataError(f"{next(iter(found))} does not exist")
    return found


def _expanded(path: str | os.PathLike[str]) -> str:
    """Return a path with ~ as the home folder, unless something has the very name that is given."""
    name = os.fspath(path)
    return name if os.path.lexists(name) or glob.glob(name, recursive=True) else os.path.expanduser(name)


def _images_below(folder: str) -> dict[str, str | None]:
    from toolkit.data.scan import scan_flat

    manifest = scan_flat(Path(folder).absolute())  # whatever is called ~ here is not the home folder
    reasons = {**dict.fromkeys(manifest.paths), **{item.path: item.reason for item in manifest.quarantined}}
    files = {os.path.join(folder, name): reasons[name] for name in sorted(reasons)}
    # what is there is read with the model's own limits; what is not has a name that the scan could but describe
    return {file: None if os.path.lexists(file) else reason for file, reason in files.items()}
