"""A saved model on files: one record an image, whatever is wrong with some of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from toolkit.data.ahead import DecodedAhead
from toolkit.data.manifest import UNASSIGNED, UNLABELLED, Manifest
from toolkit.evaluation.blocks import file_blocks
from toolkit.evaluation.ensemble import Ensemble, Judgement

TOP = 5


def loose_files(paths: Sequence[str | Path]) -> Manifest:
    """Return a Manifest of single files, unlabelled, in the order given."""
    n = len(paths)
    names = tuple(str(path) for path in paths)
    return Manifest(Path(), (), names, np.full(n, UNLABELLED, np.int64), np.full(n, UNASSIGNED, np.int8))


def predict_paths(
    ensemble: Ensemble,
    paths: Sequence[str | Path],
    *,
    refused: Mapping[str, str] | None = None,
    device: torch.device,
    workers: int,
    ready: DecodedAhead | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield a record a path, in order: path, label, probability and top (at most 5), or path and error.

    With several opinions also spread, the standard deviation of the label's probability over them. Decoding and
    preprocessing are those of the training. refused: why a path cannot be read, where that is known. ready: images
    that are decoded already.
    """
    known = refused or {}
    manifest = loose_files(paths)
    rows = np.arange(len(manifest))
    for block in file_blocks(ensemble, manifest, rows, workers=workers, device=device, ready=ready):
        failed = ((row, manifest.paths[row], reason) for row, reason in block.failures)
        records = {row: {"path": path, "error": known.get(path, reason)} for row, path, reason in failed}
        if len(block.rows):
            said = ensemble.judge(block.pixels, device)
            for number, row in enumerate(block.rows.tolist()):
                records[row] = {"path": manifest.paths[row], **_record(ensemble.classes, said, number)}
        yield from (records[row] for row in sorted(records))


def _record(classes: Sequence[str], said: Judgement, number: int) -> dict[str, Any]:
    values, order = said.probabilities[number].sort(descending=True, stable=True)  # the first of equals is named
    top = [
        {"label": classes[label], "probability": value}
        for label, value in zip(order[:TOP].tolist(), values[:TOP].tolist(), strict=True)
    ]
    spread = {} if said.spread is None else {"spread": float(said.spread[number])}
    return {**top[0], **spread, "top": top}
