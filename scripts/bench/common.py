"""What the benchmarks share: results as lines of JSON with machine and day, splits, processes by the clock."""

from __future__ import annotations

import csv
import datetime
import functools
import importlib.metadata
import io
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from toolkit.backbones.embedded_source import network
from toolkit.data.decode import read_image
from toolkit.data.manifest import TRAIN
from toolkit.data.scan import scan
from toolkit.data.split import assign_splits

HERE = Path(__file__).resolve().parent
NO_PICTURES = ("--pictures", "false")  # no peer draws any
ROOT, PEERS, RESULTS = HERE.parent.parent, HERE / "peers", HERE / "results"


def results(name: str) -> list[dict[str, Any]]:
    """Return what a benchmark has found so far."""
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def is_there(name: str, where: dict[str, Any], *, on_this_cpu: bool = False) -> bool:
    """Return whether a result with these values is there already; of seconds, one of this kind of machine."""
    found = (one for one in results(name) if all(one.get(key) == value for key, value in where.items()))
    return any(not on_this_cpu or one["about"]["cpu"] == about()["cpu"] for one in found)


def add(name: str, result: dict[str, Any]) -> None:
    """Write a result down, with what it depends on: see `about`."""
    RESULTS.mkdir(exist_ok=True)
    with open(RESULTS / f"{name}.jsonl", "a") as file:
        file.write(json.dumps({**result, "about": about()}) + "\n")


@functools.cache
def about() -> dict[str, Any]:
    """Return the machine, the versions and the day."""
    facts: dict[str, Any] = {"cpu": _processor(), "cores": len(os.sched_getaffinity(0))}
    facts["instructions"] = torch.backends.cpu.get_cpu_capability()
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    facts |= {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "transfer-toolkit")}
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {**facts, "commit": commit.stdout.strip(), "date": datetime.date.today().isoformat()}


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


class Told(NamedTuple):
    """What a contestant took and reached: seconds of the process, seconds of the training, validation accuracy, and
    where it has one its curve of (seconds of training, accuracy)."""

    process_s: float
    train_s: float
    accuracy: float
    curve: list[tuple[float, float]]


def run_toolkit(words: Sequence[str | Path], out: Path, **environment: str) -> Told:
    """Run `toolkit finetune` with these words; its training is extraction and fit."""
    command = [sys.executable, "-m", "toolkit", "finetune", *words, "--out", out, "--overwrite", *NO_PICTURES]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT, env={**os.environ, **environment})
    process = time.perf_counter() - start
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    seconds = metrics["seconds"]
    return Told(process, seconds["extract"] + seconds["fit"], metrics["val"]["accuracy"], [])


def run_peer(python: str, script: str, *words: str | Path) -> Told:
    """Run a script of `peers/`, whose last line is JSON: accuracy, train_s and maybe a curve."""
    start = time.perf_counter()
    done = subprocess.run([python, PEERS / script, *words], check=True, stdout=subprocess.PIPE, text=True)
    process = time.perf_counter() - start
    told = json.loads(done.stdout.strip().splitlines()[-1])
    return Told(process, told["train_s"], told["accuracy"], [tuple(point) for point in told.get("curve", [])])


def write_weights(file: Path) -> None:
    """Write the default backbone's ImageNet weights as the state dict that timm's network of that name takes."""
    torch.save(network("efficientnet_lite0", None, published=True).model.state_dict(), file)


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


def bound(decode: float, forward: float, device: torch.device) -> float:
    """Return the seconds an image that a machine takes which decodes and passes images on, and does nothing else.

    decode: core-seconds. forward: seconds with all cores. A CPU does one after the other, a GPU both at once.
    """
    share = decode / len(os.sched_getaffinity(0))
    return share + forward if device.type == "cpu" else max(share, forward)


def write_photos(photos: Path, n: int, folder: Path, enlarge: float = 1) -> dict[str, str]:
    """Write n JPEGs, all of different content, into two folders, and return the class of each: the images of a data
    set in turn, each time cut a little differently, enlarged by a factor, and encoded anew (quality 90)."""
    found = scan(photos)
    classes: dict[str, str] = {}
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
    for number in range(n):
        row, again = number % len(found), number // len(found)
        _, image = read_image(found.file(row))
        cut = image.crop((again % 8, again // 8, image.width, image.height))
        if enlarge != 1:
            cut = cut.resize((round(cut.width * enlarge), round(cut.height * enlarge)), Image.Resampling.BICUBIC)
        content = io.BytesIO()
        cut.save(content, "JPEG", quality=90)
        file = folder / "ab"[number % 2] / f"{number:06d}.jpg"
        file.write_bytes(content.getvalue())
        classes[str(file)] = found.classes[found.labels[row]]
    return classes
