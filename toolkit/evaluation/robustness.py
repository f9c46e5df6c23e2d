"""How much of its accuracy a model keeps when images are seen from elsewhere, lit, bent, covered or put elsewhere."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toolkit.data.manifest import Manifest
from toolkit.data.preprocessing import Preprocessing
from toolkit.errors import DataError
from toolkit.evaluation.blocks import Block
from toolkit.evaluation.changes import CHANGES, DRAWS, Change
from toolkit.evaluation.csv_text import csv_text
from toolkit.evaluation.ensemble import Ensemble
from toolkit.progress import counting

POOL = 64  # images that others are pasted on
CLEAN = "unchanged"


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of the accuracy under one change.

    hits: bool (N,), which images were named rightly. drop: the accuracy lost against unchanged images. margin: half
    the width of the drop's 95 % interval, from the differences image by image (normal approximation). by_class:
    (name, images, accuracy) of every class that occurs.
    """

    name: str
    stands_for: str
    strength: str
    hits: NDArray[np.bool_]
    drop: float
    margin: float
    by_class: tuple[tuple[str, int, float], ...]

    @property
    def accuracy(self) -> float:
        """Return the share of images that was named rightly."""
        return float(self.hits.mean())

    @property
    def worst(self) -> tuple[str, int, float]:
        """Return the class with the lowest accuracy, the first of equals."""
        return min(self.by_class, key=lambda row: row[2])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "change": self.name,
            "stands_for": self.stands_for,
            "strength": self.strength,
            "accuracy": self.accuracy,
            "drop": self.drop,
            "margin": self.margin,
            "by_class": {name: accuracy for name, _, accuracy in self.by_class},
        }


@dataclass(frozen=True, eq=False)
class Robustness:
    """The Outcome for unchanged images, then for every change; `spread` is what classes differ by, unchanged.

    examples: (caption, uint8 (3, S, S)), the first image unchanged and under every change.
    """

    outcomes: tuple[Outcome, ...]
    examples: tuple[tuple[str, Tensor], ...] = ()

    @property
    def spread(self) -> float:
        """Return the standard deviation of the classes' accuracies on unchanged images: variety within a class."""
        return float(np.std([accuracy for _, _, accuracy in self.outcomes[0].by_class]))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"class_spread": self.spread, "changes": [outcome.to_dict() for outcome in self.outcomes]}

    def to_csv(self) -> str:
        """Return `change,strength,class,n,accuracy`, all images together as the class that has no name."""
        rows: list[tuple[str, str, str, int, float]] = []
        for outcome in self.outcomes:
            key = (outcome.name, outcome.strength)
            rows.append((*key, "", len(outcome.hits), outcome.accuracy))
            rows += [(*key, *row) for row in outcome.by_class]
        return csv_text(("change", "strength", "class", "n", "accuracy"), rows)

    def __str__(self) -> str:
        lines = ["change        strength                  accuracy  drop            worst class"]
        for one in self.outcomes:
            name, n, lowest = one.worst
            drop = "" if one.name == CLEAN else f"{one.drop:+.3f} ± {one.margin:.3f}"
            lines.append(
                f"{one.name:<13} {one.strength:<24}  {one.accuracy:.3f}     {drop:<14}  {name} {lowest:.2f} of {n}"
            )
        lines.append(
            f"classes differ by {self.spread:.3f} on unchanged images (standard deviation of their accuracies)"
        )
        return "\n".join(lines)


def robustness(
    ensemble: Ensemble,
    manifest: Manifest,
    blocks: Iterable[Block],
    pool: Iterable[Block],
    n_images: int,
    *,
    seed: int,
    device: torch.device,
) -> Robustness:
    """Return how an ensemble names the labelled images in `blocks`, unchanged and under each of CHANGES.

    pool: images of which the backgrounds are made. An image's changes are a pure function of (seed, its path), but for
    the background, which also depends on the pool. All models of the ensemble see the same change.
    """
    backgrounds = _joined(pool)
    hits: list[NDArray[np.bool_]] = []
    rows: list[NDArray[np.int64]] = []
    examples: list[tuple[str, Tensor]] = []
    with counting("changing", n_images) as counter:
        for block in blocks:
            counter.advance(len(block.rows) + len(block.failures))
            if not len(block.rows):
                continue
            labels = manifest.labels[block.rows]
            others = _others(manifest, block.rows, backgrounds, seed)
            block = block.on_cpu()
            versions = [(CLEAN, block.pixels)]
            for change in CHANGES:
                draws = torch.stack([_draws(seed, change, manifest.paths[row]) for row in block.rows])
                changed = {key: change(own, draws, others[key]) for key, own in block.pixels.items()}
                versions.append((f"{change.name}\n{change.text}", changed))
            hits.append(np.stack([_named(ensemble, pixels, device) == labels for _, pixels in versions]))
            examples = examples or [(name, next(iter(pixels.values()))[0]) for name, pixels in versions]
            rows.append(block.rows)
    labels = manifest.labels[np.concatenate(rows)]
    return Robustness(_outcomes(np.concatenate(hits, axis=1), labels, ensemble.classes), tuple(examples))


def _outcomes(hits: NDArray[np.bool_], labels: NDArray[np.int64], classes: tuple[str, ...]) -> tuple[Outcome, ...]:
    """Return the outcomes of hits (1 + changes, N)."""
    found = []
    named = ((CLEAN, "", ""), *((change.name, change.stands_for, change.text) for change in CHANGES))
    for (name, stands_for, strength), column in zip(named, hits, strict=True):
        lost = hits[0].astype(float) - column
        drop = float(lost.mean())
        by_class = tuple(
            (classes[label], int((labels == label).sum()), float(column[labels == label].mean()))
            for label in np.unique(labels)
        )
        variance = float((lost**2).mean()) - drop**2  # sums of whole numbers, the same in any order of the images
        margin = 1.96 * math.sqrt(variance / len(lost))
        found.append(Outcome(name, stands_for, strength, column, drop, margin, by_class))
    return tuple(found)


def _named(ensemble: Ensemble, pixels: dict[Preprocessing, Tensor], device: torch.device) -> NDArray[np.int64]:
    return ensemble.judge(pixels, device).probabilities.argmax(dim=1).numpy()


def _draws(seed: int, change: Change, path: str) -> Tensor:
    """Return float32 (DRAWS,) in [−1, 1], the same for both strengths of a change."""
    digest = hashlib.blake2b(f"{seed}:{change.name}:{path}".encode(errors="backslashreplace"), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))
    return torch.rand(DRAWS, generator=generator) * 2 - 1


def _joined(pool: Iterable[Block]) -> Block:
    blocks = [block.on_cpu() for block in pool]
    rows = np.concatenate([block.rows for block in blocks])
    if not len(rows):
        raise DataError("none of the images that were scored can be read any more")
    pixels = {key: torch.cat([block.pixels[key] for block in blocks]) for key in blocks[0].pixels}
    return Block(rows, pixels, ())


def _others(manifest: Manifest, rows: NDArray[np.int64], pool: Block, seed: int) -> dict[Preprocessing, Tensor]:
    """Return for each row an image of the pool, of another class where the pool has one."""
    chosen = []
    for row in rows:
        foreign = np.flatnonzero(manifest.labels[pool.rows] != manifest.labels[row])
        candidates = foreign if len(foreign) else np.arange(len(pool.rows))
        digest = hashlib.blake2b(f"{seed}:{manifest.paths[row]}".encode(errors="backslashreplace"), digest_size=8)
        chosen.append(candidates[int.from_bytes(digest.digest(), "little") % len(candidates)])
    return {key: own[torch.tensor(chosen)] for key, own in pool.pixels.items()}
