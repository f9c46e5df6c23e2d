"""`toolkit evaluate`: scores of a saved model, or of several together, on labelled data."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.errors import DataError, SettingError, unknown_name
from toolkit.settings import checked
from toolkit.storage import publish_bytes, publish_text
from toolkit.tasks.predict import others

if TYPE_CHECKING:
    import torch

    from toolkit.data.manifest import Manifest
    from toolkit.evaluation.blocks import Block
    from toolkit.evaluation.ensemble import Ensemble
    from toolkit.evaluation.robustness import Robustness
    from toolkit.evaluation.scoring import Answers
    from toolkit.scores import Scores

ROBUSTNESS, EXAMPLES = "robustness.csv", "robustness.png"
SPLITS = ("auto", "train", "val", "test", "all")


@dataclass(frozen=True)
class Evaluation:
    """How saved models did: which images were scored, the scores, and how many files could not be used.

    members: the accuracy of each model alone, where there are several. spread: the mean standard deviation of the
    opinions (of models, or passes with dropout) about the named class, over images named (rightly, wrongly).
    """

    split: str
    scores: Scores
    quarantined: int
    members: tuple[float, ...] = ()
    spread: tuple[float | None, float | None] | None = None
    robustness: Robustness | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; what was not asked for is not there."""
        more: dict[str, Any] = {}
        if self.members:
            more["members"] = list(self.members)
        if self.spread is not None:
            more["spread"] = {"right": self.spread[0], "wrong": self.spread[1]}
        if self.robustness is not None:
            more["robustness"] = self.robustness.to_dict()
        return {"split": self.split, **self.scores.to_dict(), "quarantined": self.quarantined, **more}

    def __str__(self) -> str:
        lines = [f"{self.split}: {self.scores}; {self.quarantined} files quarantined"]
        if self.members:
            lines.append(f"each model alone: accuracy {', '.join(f'{one:.3f}' for one in self.members)}")
        if self.spread is not None:
            right, wrong = ("none" if one is None else f"{one:.3f}" for one in self.spread)
            lines.append(f"spread of the named class's probability: {right} on right answers, {wrong} on wrong ones")
        if self.robustness is not None:
            lines.append(str(self.robustness))
        return "\n".join(lines)


def evaluate(
    model: str,
    data: str,
    *,
    split: str = "auto",
    out: str | None = None,
    overwrite: bool = False,
    ensemble: list[str] | None = None,
    mc: int | None = None,
    mirror: bool = False,
    robustness: bool = False,
    seed: int = 0,
    device: str = "auto",
    workers: int | None = None,
) -> Evaluation:
    """Return the scores of a saved model, or of several together, on labelled images.

    `auto` takes the test images if there are labelled ones, else val, else all. On the very folder that a run was
    trained on, the run's own split is used again, so that no training image is scored. Raises ToolkitError.

    Args:
        model: a run folder or the model folder in it
        data: labelled photos: DIR/CLASS/…, DIR/train/CLASS/…, a CSV, or IDX files; classes that the model knows
        split: auto, train, val, test, all
        out: a folder for predictions.csv, per_class.csv, confusion.csv and mistakes.csv (robustness.csv and .png)
        overwrite: replace those of these files that are in the folder already
        ensemble: more models of the same classes; the probabilities of all are averaged
        mc: ask each model so many times with dropout, and average; the spread says how sure it is
        mirror: ask about each image and its mirror image, and average; not for what has a left and a right
        robustness: score the images again turned, tilted, lit, recoloured, bent, covered and pasted elsewhere
        seed: of the changes that robustness makes
        device: auto, cpu, cuda, cuda:1, mps
        workers: how many processes (on a CPU: threads) decode; by the number of images and cores by default
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    workers = None if workers is None else checked("workers", workers)
    mc, seed = None if mc is None else checked("mc", mc), checked("seed", seed)
    if overwrite and out is None:
        raise SettingError("overwrite is not used where nothing is written; give out, or remove it")
    from toolkit.artifacts.model_folder import load_ensemble
    from toolkit.baselines.idx import is_idx, read_idx
    from toolkit.data.scan import scan
    from toolkit.evaluation.scoring import answers_to
    from toolkit.hardware import resolve_device
    from toolkit.scores import score
    from toolkit.tasks.own_split import split_as_trained

    where = resolve_device(device)
    names = [model, *others(ensemble)]
    trained = load_ensemble(names, passes=mc, mirrored=mirror)
    if is_idx(data):
        manifest, images = read_idx(data, classes=trained.classes)
    else:
        manifest, images = scan(data, max_pixels=trained.max_pixels, classes=trained.classes), None
    manifest = split_as_trained(manifest, names, data, split)
    name, rows = _pick(manifest, split)
    folder = None if out is None else _make_folder(out, data, robustness=robustness, overwrite=overwrite)
    blocks = _reader(trained, manifest, images, workers, where)
    answers = answers_to(trained, manifest, blocks(rows), len(rows), device=where)
    predictions = answers.predictions
    if not len(predictions):
        raise DataError(f"{data}: none of the {len(rows)} images can be read; the first: {answers.failures[0][1]}")
    import torch

    scores = score(predictions.probabilities, torch.from_numpy(predictions.labels))
    changed = _robustness(trained, manifest, rows, blocks, answers, seed, where) if robustness else None
    if folder is not None:  # when nothing can be refused any more: tables of an earlier evaluation go all together
        _write_tables(folder, predictions)
        if changed is not None:
            _write_robustness(folder, changed)
    lost = len(manifest.quarantined) + len(answers.failures)
    return Evaluation(name, scores, lost, _alone(answers), _spread(answers), changed)


def _reader(
    ensemble: Ensemble, manifest: Manifest, images: Any, workers: int | None, device: torch.device
) -> Callable[[Any], Iterable[Block]]:
    """Return what reads rows of a Manifest, from its files or from the arrays in their place."""
    from toolkit.data.loading import default_workers
    from toolkit.evaluation.blocks import array_blocks, file_blocks

    def blocks(rows: Any) -> Iterable[Block]:
        if images is not None:
            return array_blocks(ensemble, images, rows)
        count = default_workers(len(rows)) if workers is None else workers
        return file_blocks(ensemble, manifest, rows, workers=count, device=device)

    return blocks


def _robustness(
    ensemble: Ensemble,
    manifest: Manifest,
    rows: Any,
    blocks: Callable[[Any], Iterable[Block]],
    answers: Answers,
    seed: int,
    device: torch.device,
) -> Robustness:
    import numpy as np

    from toolkit.evaluation.robustness import POOL, robustness

    lost = [row for row, _ in answers.failures]
    readable = rows[~np.isin(rows, lost)]
    pool = np.sort(np.random.default_rng(seed).permutation(readable)[:POOL])
    return robustness(ensemble, manifest, blocks(readable), blocks(pool), len(readable), seed=seed, device=device)


def _alone(answers: Answers) -> tuple[float, ...]:
    """Return the accuracy of each model of several."""
    labels = answers.predictions.labels
    return tuple(float((votes == labels).mean()) for votes in answers.votes) if len(answers.votes) > 1 else ()


def _spread(answers: Answers) -> tuple[float | None, float | None] | None:
    """Return the mean spread over right and over wrong answers, None where there are none."""
    if answers.spread is None:
        return None
    right = answers.predictions.predicted == answers.predictions.labels
    means = [float(answers.spread[which].mean()) if which.any() else None for which in (right, ~right)]
    return means[0], means[1]


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


def _make_folder(out: str, data: str, *, robustness: bool, overwrite: bool) -> Path:
    """Make the folder of the tables before the work; a run's own tables are not to be replaced, nor photos mixed.

    A file that would be replaced is refused unless `overwrite` is set. What is not written now is left as it is.
    """
    from toolkit.artifacts.run_folder import CONFIG, CONFUSION, MISTAKES, PER_CLASS, PREDICTIONS
    from toolkit.errors import ArtifactError
    from toolkit.progress import say
    from toolkit.tasks.apart import check_apart

    folder = Path(out).expanduser().absolute()
    check_apart(data, folder)
    if (folder / CONFIG).exists():
        raise ArtifactError(f"{folder} holds a run, whose tables would be replaced; choose another --out")
    tables, changed = (PREDICTIONS, CONFUSION, PER_CLASS, MISTAKES), (ROBUSTNESS, EXAMPLES)
    for path in (folder / name for name in (*tables, *(changed if robustness else ()))):
        if os.path.isdir(path):
            raise ArtifactError(f"{path}: cannot be written (Is a directory); choose another --out")
        if os.path.lexists(path) and not overwrite:
            raise ArtifactError(f"{path} is there already; choose another --out, or replace it by --overwrite")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"{folder}: cannot be written ({error.strerror}); choose another --out") from error
    if not robustness and (left := [name for name in changed if os.path.lexists(folder / name)]):
        say(f"note: not of this evaluation, and left as it is in {folder}: {', '.join(left)}")
    return folder


def _write_tables(folder: Path, predictions: Any) -> None:
    from toolkit.artifacts.run_folder import CONFUSION, MISTAKES, PER_CLASS, PREDICTIONS
    from toolkit.evaluation.tables import write_confusion_csv, write_mistakes_csv, write_per_class_csv

    predictions.to_csv(folder / PREDICTIONS)
    write_confusion_csv(folder / CONFUSION, predictions)
    write_per_class_csv(folder / PER_CLASS, predictions)
    write_mistakes_csv(folder / MISTAKES, predictions)


def _write_robustness(folder: Path, found: Robustness) -> None:
    from toolkit.evaluation.sheet import sheet_png

    publish_text(folder / ROBUSTNESS, found.to_csv())
    publish_bytes(folder / EXAMPLES, sheet_png(found.examples, columns=5))
