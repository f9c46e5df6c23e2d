"""The pictures at the end of a run: what each is made of, in the run folder, the data and the store."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toolkit.artifacts.model_folder import Model
from toolkit.artifacts.run_folder import (
    CONFUSION_PICTURE,
    CURVES,
    EXCITATION,
    FILTERS,
    HISTORY,
    METRICS,
    MISTAKES,
    MISTAKES_SHEET,
    PREDICTIONS,
    RATES,
    RELIABILITY,
    TRIAL_HISTORIES,
    RunFolder,
)
from toolkit.baselines.model import BaselineModel
from toolkit.baselines.net import CentredNet
from toolkit.baselines.options import BaselineOptions
from toolkit.data.decode import UnreadableImage, read_image
from toolkit.data.manifest import TRAIN, Manifest
from toolkit.data.preprocessing import Preprocessing
from toolkit.data.views import clean_view, decoded_px
from toolkit.evaluation.predictions_csv import PredictionTable, read_predictions
from toolkit.features.stored import Stored
from toolkit.plan import TransferPlan
from toolkit.reporting.confusion import draw_confusion
from toolkit.reporting.curves import draw_curves
from toolkit.reporting.excitation import CELL_PX, draw_excitation, most_excited
from toolkit.reporting.figure import png
from toolkit.reporting.filters import draw_filters, first_filters, unit_templates
from toolkit.reporting.mistakes import SHOWN, draw_mistakes
from toolkit.reporting.pictures import Drawing, publish_pictures
from toolkit.reporting.rates import RateLine, draw_rates, rate_lines, scheduled_line
from toolkit.reporting.reliability import Surety, draw_reliability
from toolkit.reporting.tables import HistoryRow, read_history, read_mistakes
from toolkit.training.network import TransferNetwork

SPLITS = {"val": "validation", "test": "test"}
SAMPLE = 128  # images that pass through a network whose stages were trained, to see what excites them
STORED_SAMPLE = 2_048  # images whose stored channels are looked at
CHUNK = 32
SHOWN_PX = 128


@dataclass(frozen=True, eq=False)
class Images:
    """The images of a run as its model sees them, by row of the Manifest.

    arrays: uint8 (N, S, S) in the place of files, or None.
    """

    manifest: Manifest
    preprocessing: Preprocessing
    max_pixels: int
    arrays: NDArray[np.uint8] | None = None

    def of_row(self, row: int, side_px: int | None = None) -> Tensor:
        """Return uint8 (3, S, S), S the model's own or as given; a grey square for a file that is gone or damaged."""
        if self.arrays is not None:
            return torch.from_numpy(self.arrays[row]).expand(3, -1, -1)
        how = self.preprocessing if side_px is None else self.preprocessing.at_image_size(side_px)
        try:
            _, image = read_image(self.manifest.file(row), self.max_pixels, decoded_px(how))
        except UnreadableImage:
            return _missing(how.crop_px)
        return torch.from_numpy(clean_view(image, how))

    def of_paths(self, paths: Collection[str]) -> dict[str, Tensor]:
        """Return the images at some paths as the tables spell them, small."""
        spelled = ((one.encode("utf-8", "backslashreplace").decode(), k) for k, one in enumerate(self.manifest.paths))
        found = {path: self.of_row(row, self.shown_px) for path, row in spelled if path in paths}
        return {path: found.get(path, _missing(self.shown_px)) for path in paths}

    @property
    def shown_px(self) -> int:
        """The side at which an image is shown: its own, if that is smaller."""
        return min(SHOWN_PX, self.preprocessing.crop_px)


def _missing(side_px: int) -> Tensor:
    return torch.full((3, side_px, side_px), 200, dtype=torch.uint8)


def draw_run(
    folder: RunFolder, model: Model, plan: TransferPlan, images: Images, stored: Stored | None, device: torch.device
) -> None:
    """Draw the pictures of a run of `finetune`.

    stored: pooled features of the network as it was before training, row by row those of the images' Manifest; None
    where its stages were trained since.
    """
    drawings = _of_predictions(folder, images)
    history = next((file for name in (HISTORY, *TRIAL_HISTORIES[:1]) if (file := folder.path / name).exists()), None)
    if history is not None:
        held_out = "" if history.name == HISTORY else " of the trial, judged by training images held out of it"
        drawings[CURVES] = lambda: png(_curves(folder, history, f"{plan.strategy} on {plan.backbone}{held_out}"))
        drawings[RATES] = lambda: _rates(rate_lines(plan, rows := read_history(history)), rows)
    drawings[FILTERS] = lambda: _filters(model)
    drawings[EXCITATION] = lambda: _excitation(model, images, stored, device)
    publish_pictures(folder.path, drawings)


def draw_baseline(folder: RunFolder, model: Model, options: BaselineOptions, images: Images) -> None:
    """Draw the pictures of a run of a baseline."""
    drawings = _of_predictions(folder, images)
    history = folder.path / HISTORY
    if history.exists():
        loss = "hinge loss" if options.value("loss") == "hinge" else "cross-entropy"
        title = f"{options.model} on {options.on}"
        drawings[CURVES] = lambda: png(_curves(folder, history, title, loss))
        drawings[RATES] = lambda: _rates(_baseline_rates(options, rows := read_history(history)), rows)
    drawings[FILTERS] = lambda: _filters(model)
    publish_pictures(folder.path, drawings)


def _curves(folder: RunFolder, history: Path, title: str, loss: str = "cross-entropy") -> Any:
    """Return the curves of a finished run, with what it says of them."""
    caption = folder.read(METRICS).get("diagnosis") or ""
    return draw_curves(read_history(history), caption, title=title, loss=loss)


def _rates(lines: list[RateLine], rows: list[HistoryRow]) -> bytes | None:
    return png(draw_rates(lines, rows)) if lines else None


def _baseline_rates(options: BaselineOptions, rows: list[HistoryRow]) -> list[RateLine]:
    from toolkit.baselines.module import factor

    lr, schedule = options.value("lr"), options.value("schedule")
    return scheduled_line(
        f"all weights, {schedule}",
        lambda step, total: lr * factor(schedule, step, total),
        rows,
        options.value("epochs"),
    )


def _of_predictions(folder: RunFolder, images: Images) -> dict[str, Drawing]:
    """Return the drawings that are made of the run's tables."""
    classes: list[str] = folder.read(METRICS)["classes"]

    def confusion() -> bytes | None:
        table = read_predictions(folder.path / PREDICTIONS)
        number = {name: k for k, name in enumerate(classes)}
        counts = np.zeros((len(classes), len(classes)), np.int64)
        known = [row for split in SPLITS for row in table.labelled(split)]
        for row in known:
            counts[number[table.labels[row]], number[table.predictions[row]]] += 1
        return png(draw_confusion(counts, classes, _told(table))) if known else None

    def reliability() -> bytes | None:
        table = read_predictions(folder.path / PREDICTIONS)
        rows = {split: table.labelled(split) for split in SPLITS}
        splits = [
            Surety(f"{len(some):,} {SPLITS[split]} images", table.probabilities[some], table.right[some])
            for split, some in rows.items()
            if some
        ]
        return png(draw_reliability(splits)) if splits else None

    def mistakes() -> bytes | None:
        table, rows = read_predictions(folder.path / PREDICTIONS), read_mistakes(folder.path / MISTAKES)
        n = sum(int((~table.right[table.labelled(split)]).sum()) for split in SPLITS)
        title = f"The surest of {n:,} mistakes in {_told(table)}: what it is, how sure the model was of what else"
        seen = images.of_paths({row["path"] for row in rows[:SHOWN]})
        return draw_mistakes(rows, seen.__getitem__, title) if rows else None

    return {CONFUSION_PICTURE: confusion, RELIABILITY: reliability, MISTAKES_SHEET: mistakes}


def _told(table: PredictionTable) -> str:
    """Return which images were scored: "200 validation and 100 test images"."""
    counts = {SPLITS[split]: len(table.labelled(split)) for split in SPLITS}
    return " and ".join(f"{n:,} {name}" for name, n in counts.items() if n) + " images"


def _filters(model: Model) -> bytes | None:
    if not isinstance(model, BaselineModel):
        filters = first_filters(model.network.stages)
        return None if filters is None else draw_filters(filters)
    body, reading = model.network.body, model.network.reading
    if reading.on != "pixels" or not isinstance(body, CentredNet):
        return None
    weights = unit_templates(next(p for p in body.net.parameters() if p.ndim == 2), reading.channels)
    scores = None if body.spec.hidden else [*model.classes]
    return None if weights is None else draw_filters(weights, scores)


def _excitation(model: Model, images: Images, stored: Stored | None, device: torch.device) -> bytes | None:
    """Return the sheet from what is stored, or else from a sample of images by the network as it is shipped."""
    if isinstance(model, BaselineModel):
        return None
    train = images.manifest.rows(TRAIN)
    most = SAMPLE if stored is None else STORED_SAMPLE
    rows = train[np.linspace(0, len(train) - 1, min(most, len(train))).round().astype(np.int64)]
    if stored is None:
        pooled = _pooled_live(model.network, rows, images, device)
    else:
        pooled = {tap: stored.pooled(rows, taps=(tap,))[:] for tap in stored.request.taps}
    found = [one for stage, values in pooled.items() for one in most_excited(stage, values)]
    some = f"{len(rows):,}" if len(rows) == len(train) else f"{len(rows):,} of {len(train):,}"
    title = f"The training images that excite a few channels of each stage most (mean of a channel; {some} images)"
    side = min(CELL_PX, images.shown_px)
    return draw_excitation(found, lambda k: images.of_row(int(rows[k]), side), title) if found else None


def _pooled_live(
    network: TransferNetwork, rows: NDArray[np.int64], images: Images, device: torch.device
) -> dict[int, NDArray[np.float32]]:
    """Return the pooled outputs of every stage, float32 (n, C), of some images."""
    network.eval().to(device)
    found: dict[int, list[Tensor]] = {stage: [] for stage in range(len(network.stages))}
    with torch.inference_mode():
        for start in range(0, len(rows), CHUNK):
            pixels = torch.stack([images.of_row(int(row)) for row in rows[start : start + CHUNK]])
            activation = network.normalise(pixels.to(device)).contiguous(memory_format=torch.channels_last)
            for stage, module in enumerate(network.stages):
                activation = module(activation)
                found[stage].append(network.backbone.pool(activation).float().cpu())
    return {stage: torch.cat(parts).numpy() for stage, parts in found.items()}
