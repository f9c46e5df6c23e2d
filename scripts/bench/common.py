"""What the resumable benchmarks share: results as lines of JSON, and smaller training sets."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import torch

from toolkit.data.manifest import TRAIN
from toolkit.data.scan import scan
from toolkit.data.split import assign_splits

RESULTS = Path(__file__).resolve().parent / "results"


def results(name: str) -> list[dict[str, Any]]:
    """Return what a benchmark has found so far."""
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def is_there(name: str, where: dict[str, Any]) -> bool:
    """Return whether a result with these values is there already."""
    return any(all(result.get(key) == value for key, value in where.items()) for result in results(name))


def add(name: str, result: dict[str, Any]) -> None:
    """Write a result down."""
    RESULTS.mkdir(exist_ok=True)
    with open(RESULTS / f"{name}.jsonl", "a") as file:
        file.write(json.dumps(result) + "\n")


def write_split(photos: Path, file: Path, val: float, seed: int) -> tuple[int, int]:
    """Write path,label,split of the images that train and validate, and return how many do."""
    manifest = assign_splits(scan(photos), val=val, seed=seed)
    rows = [row for row in range(len(manifest)) if manifest.splits[row] in (0, 1) and manifest.labels[row] >= 0]
    with open(file, "w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["path", "label", "split"])
        for row in rows:
            split = "train" if manifest.splits[row] == TRAIN else "val"
            writer.writerow([manifest.file(row).resolve(), manifest.classes[manifest.labels[row]], split])
    n_train = sum(int(manifest.splits[row]) == TRAIN for row in rows)
    return n_train, len(rows) - n_train


def subset(photos: Path, per_class: int, val: float, seed: int, folder: Path) -> Path:
    """Write a CSV of all images that are not trained on, and some training images of each class; return its path."""
    manifest = assign_splits(scan(photos), val=val, seed=seed)
    order = torch.randperm(len(manifest), generator=torch.Generator().manual_seed(seed)).tolist()
    left = dict.fromkeys(range(len(manifest.classes)), per_class)
    rows = []
    for row in order:
        label = int(manifest.labels[row])
        if manifest.splits[row] == TRAIN:
            left[label] -= 1
            if left[label] < 0:
                continue
        split = {0: "train", 1: "val", 2: "test"}[int(manifest.splits[row])]
        rows.append((manifest.file(row).absolute(), manifest.classes[label], split))
    with open(folder / "subset.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    return folder / "subset.csv"


def settings_of(text: str) -> dict[str, Any]:
    """Return the keys and values of `KEY=VALUE …`: JSON where it is some, else plain text."""
    values: dict[str, Any] = {}
    for part in text.split():
        key, _, value = part.partition("=")
        try:
            values[key] = json.loads(value)
        except ValueError:
            values[key] = value
    return values
