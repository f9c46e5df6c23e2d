"""Pooled activations of frozen stages for the images of a Manifest, every image once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from toolkit.backbones.backbone import Backbone
from toolkit.backbones.normalise import Normalise
from toolkit.backbones.taps import check_taps
from toolkit.data.loading import Failure, clean_batches
from toolkit.data.manifest import Manifest
from toolkit.errors import WeightsError
from toolkit.hardware import autocast
from toolkit.progress import counting

CHUNK = 32  # images in every forward pass, padded where there are fewer


@dataclass(frozen=True, eq=False)
class Features:
    """Pooled features of the images that could be read.

    rows: int64 (N,), rows of the Manifest. values: float32 (N, D), the taps' features side by side.
    failures: (row, reason) of the other files. taps: the stages they come from.
    """

    rows: NDArray[np.int64]
    values: NDArray[np.float32]
    failures: tuple[Failure, ...]
    taps: tuple[int, ...]


class PooledStages(nn.Module):
    """float (N, 3, H, W) → float32 (N, D): the pooled outputs of some stages side by side."""

    def __init__(self, backbone: Backbone, taps: Sequence[int] | None) -> None:
        super().__init__()
        self.taps = check_taps(taps, len(backbone))
        self.normalise = Normalise(backbone.preprocessing)
        self.stages = nn.ModuleList(backbone.stages[: self.taps[-1] + 1])
        self.pool = backbone.pool

    def forward(self, pixels: Tensor) -> Tensor:
        """Return float32 (N, D) for uint8 (N, 3, H, W)."""
        activation = self.normalise(pixels)
        pooled: dict[int, Tensor] = {}
        for index, stage in enumerate(self.stages):
            activation = stage(activation)
            if index in self.taps:
                pooled[index] = self.pool(activation).float()
        return torch.cat([pooled[tap] for tap in self.taps], dim=1)


def in_chunks(function: Callable[[Tensor], Tensor], pixels: Tensor, size: int = CHUNK) -> Tensor:
    """Apply `function` to uint8 (N, 3, H, W) in passes of exactly `size` images, and return its rows on the CPU.

    Kernels are chosen by shape: with one shape, an image's result does not depend on how many came with it.
    """
    results = []
    for start in range(0, max(1, len(pixels)), size):
        part = pixels[start : start + size]
        padding = part.new_zeros((size - len(part), *part.shape[1:]))
        results.append(function(torch.cat([part, padding]))[: len(part)].cpu())
    return torch.cat(results)


def extract(
    backbone: Backbone,
    manifest: Manifest,
    *,
    rows: NDArray[np.int64] | None = None,
    taps: Sequence[int] | None = None,
    device: torch.device,
    precision: str,
    workers: int,
    max_pixels: int,
) -> Features:
    """Return the pooled features of view 0 of `rows` (all by default) at `taps` (the last stage by default)."""
    rows = np.arange(len(manifest)) if rows is None else rows
    model = PooledStages(backbone, taps).eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    batches = clean_batches(
        manifest,
        rows,
        backbone.preprocessing,
        batch_size=CHUNK,
        workers=workers,
        max_pixels=max_pixels,
        pin=device.type == "cuda",
    )
    kept: list[NDArray[np.int64]] = []
    values: list[NDArray[np.float32]] = []
    failures: list[Failure] = []
    with counting("features", len(rows)) as counter, torch.inference_mode(), autocast(precision, device):
        for batch in batches:
            failures.extend(batch.failures)
            if len(batch.rows):
                pixels = batch.pixels.to(device, non_blocking=True)
                values.append(in_chunks(model, pixels).numpy())
                kept.append(batch.rows.numpy())
            counter.advance(len(batch.rows) + len(batch.failures))
    found = np.concatenate(values) if values else np.empty((0, 0), np.float32)
    if not np.isfinite(found).all():
        raise WeightsError(f"{backbone.name}: its features are not finite numbers; the weights are damaged")
    return Features(
        np.concatenate(kept) if kept else np.empty(0, np.int64),
        found,
        tuple(failures),
        model.taps,
    )
