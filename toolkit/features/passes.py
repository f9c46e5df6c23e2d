"""One pass over a data set: decode, run the prefix, publish shards; whatever is finished stays finished."""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toolkit.data.ahead import DecodedAhead, take
from toolkit.data.loading import Failure
from toolkit.data.manifest import Manifest
from toolkit.data.view_stream import Views, Wanted, stream_views
from toolkit.errors import ArtifactError, ToolkitError, WeightsError
from toolkit.features.prefix import chunk_of
from toolkit.features.request import SIZE, Request
from toolkit.features.shard import write_shard
from toolkit.progress import Counter, counting

SHARD_BYTES = 64 << 20  # about, at most twice that; a killed pass loses at most one shard's work
SHARD_IMAGES = 512

Outputs = dict[str, Tensor]


class NoRoomError(ToolkitError):
    """The disk has no room for what a pass would store."""


class Read(NamedTuple):
    """What a pass found: the K images that it read, int64 (K,) rows of the Manifest, and the digests of their contents,
    uint8 (K, 16); (row, reason) of the others; how many views were computed."""

    rows: NDArray[np.int64]
    digests: NDArray[np.uint8]
    failures: tuple[Failure, ...]
    n_views: int


def group_bounds(request: Request, positions: NDArray[np.int64]) -> list[int]:
    """Return where the groups of images begin that go into one shard, and the end: indices into `positions`.

    positions: int64 (K,), ascending: where the images to be computed stand among all that were asked for. Groups
    follow from them alone, so that a pass that goes on after a kill writes the shards that one without it writes.
    Groups of which little is missing are computed as one: every one of them ends in a padded forward pass.
    """
    size = _images_a_shard(request)
    bounds = [0]
    starts = [*np.flatnonzero(np.diff(positions // size, prepend=-1)).tolist(), len(positions)]
    for start, stop in pairwise(starts):
        if stop - bounds[-1] > size:
            bounds.append(start)
    return [*bounds, len(positions)] if len(positions) else bounds


def compute(
    request: Request,
    manifest: Manifest,
    rows: NDArray[np.int64],
    wanted: NDArray[np.bool_],
    bounds: Sequence[int],
    folder_of: Callable[[int], Path],
    *,
    workers: int,
    max_pixels: int,
) -> Read:
    """Compute views of images, and publish each group of them as a shard in `folder_of(view number)`.

    rows: int64 (K,), of the Manifest. wanted: bool (K, V), which of their views. bounds: of `group_bounds`.
    Raises NoRoomError where the disk is full, WeightsError where the activations are not finite.
    """
    device = torch.device("cpu") if request.cut == 0 else request.device  # pixels have no use for a GPU
    size, gpu = chunk_of(device), request.jpegs
    batches = _Batches(rows, wanted, bounds, size)
    maker = functools.cache(lambda: request.maker())  # once, whoever comes first
    on_cpu, some = request.device.type == "cpu", len(rows) >= 2 * size
    if some and on_cpu:
        maker()  # on one core, while what decodes ahead still has the others
    ready = take(request.backbone.preprocessing, max_pixels)
    if gpu is not None:
        ready = None  # by Pillow: what is stored must not depend on how far it got
    if not some or (ready is not None and not _many_left(ready, manifest, rows, size)):
        workers = 0
    found: list[tuple[NDArray[np.int64], NDArray[np.uint8]]] = [(np.empty(0, np.int64), np.empty((0, 16), np.uint8))]
    failures: list[Failure] = []
    n_views = 0
    with counting("features", len(rows)) as counter:
        stream = stream_views(
            manifest,
            batches,
            request.backbone.preprocessing,
            request.augmentation,
            seed=request.seed,
            workers=workers,
            max_pixels=max_pixels,
            turns=on_cpu,
            pin=device.type == "cuda",
            source=request.source,
            ready=ready,
            gpu=gpu,
        )
        if some:
            maker()  # for a GPU made now, while the first images are being decoded
        for start, stop in pairwise(bounds):
            read, outputs = _group(islice(stream, len(batches.of(start, stop))), maker, device, counter)
            if request.source and outputs:
                outputs[SIZE] = torch.from_numpy(np.concatenate([views.sizes for views in read]))
            _check_finite(outputs, request)
            _publish(read, outputs, folder_of)
            for views in read:
                first = np.flatnonzero(np.diff(views.rows, prepend=-1))  # of each image's views
                found.append((views.rows[first], views.digests[first]))
                failures.extend(views.failures)
                n_views += len(views.rows)
    return Read(
        np.concatenate([rows for rows, _ in found]),
        np.concatenate([digests for _, digests in found]),
        tuple(failures),
        n_views,
    )


def _many_left(ready: DecodedAhead, manifest: Manifest, rows: NDArray[np.int64], size: int) -> bool:
    """Return whether enough images have to be decoded yet for processes to be worth their start."""
    if len(rows) > 2 * len(ready.paths):
        return True
    return sum(ready.get(str(manifest.file(row))) is None for row in rows.tolist()) >= 2 * size


class _Batches:
    """What is asked for in each batch of a pass, said when its turn comes: lists for all images would take memory.

    size: how many views there are in a batch, about.
    """

    def __init__(self, rows: NDArray[np.int64], wanted: NDArray[np.bool_], bounds: Sequence[int], size: int) -> None:
        self.rows, self.wanted, self.bounds, self.size = rows, wanted, bounds, size

    def of(self, start: int, stop: int) -> range:
        """Return where the batches of a group begin."""
        return range(start, stop, max(1, self.size // self.wanted.shape[1]))

    def __iter__(self) -> Iterator[list[Wanted]]:
        for start, stop in pairwise(self.bounds):
            batches = self.of(start, stop)
            for first in batches:
                last = min(first + batches.step, stop)
                views = [tuple(np.flatnonzero(which).tolist()) for which in self.wanted[first:last]]
                yield list(zip(self.rows[first:last].tolist(), views, strict=True))


def _images_a_shard(request: Request) -> int:
    """Return how many images go into a shard: about SHARD_BYTES, so that they fill whole forward passes if possible."""
    bytes_an_image = max(1, request.bytes_per_view * request.views)
    size = max(1, min(SHARD_IMAGES, SHARD_BYTES // bytes_an_image))
    most = max(size, min(2 * size, 2 * SHARD_BYTES // bytes_an_image))
    chunk = chunk_of(request.device)

    def share_of_passes(n: int) -> float:
        return n * request.views / (-(-n * request.views // chunk) * chunk)

    return max(range(size, most + 1), key=share_of_passes)


def _group(
    stream: Iterator[Views], maker: Callable[[], Any], device: torch.device, counter: Counter
) -> tuple[list[Views], Outputs]:
    """Return what was read, without its pixels, and the outputs of all its views, computed a chunk at a time.

    Nothing waits for a GPU before the group's end: copies to it and its passes go on while the next images come.
    """
    size = chunk_of(device)
    read: list[Views] = []
    parts: list[Outputs] = []
    waiting: Tensor | None = None
    for views in stream:
        read.append(views._replace(pixels=torch.empty(0)))
        pixels = views.pixels.to(device, non_blocking=True)
        waiting = torch.cat([waiting, pixels]) if waiting is not None and len(waiting) else pixels
        while len(waiting) >= size:
            parts.append(maker()(waiting[:size]))
            waiting = waiting[size:]
        counter.advance(len(np.unique(views.rows)) + len(views.failures))
    if waiting is not None and len(waiting):
        parts.append(maker()(waiting))
    names = list(parts[0]) if parts else []
    return read, {name: torch.cat([part.pop(name) for part in parts]).cpu() for name in names}


def _publish(read: Sequence[Views], outputs: Outputs, folder_of: Callable[[int], Path]) -> None:
    """Write a group's outputs: one shard for the clean views, one for the others."""
    digests = np.concatenate([views.digests for views in read])
    numbers = np.concatenate([views.numbers for views in read])
    for chosen in (np.flatnonzero(numbers == 0), np.flatnonzero(numbers)):
        if len(chosen):
            rows = torch.from_numpy(chosen)
            some = outputs if len(chosen) == len(numbers) else {name: part[rows] for name, part in outputs.items()}
            folder = folder_of(int(numbers[chosen[0]]))
            try:
                write_shard(folder, digests[chosen], numbers[chosen], some)
            except OSError as error:
                raise cache_error(folder, error) from error


def cache_error(folder: Path, error: OSError) -> ToolkitError:
    """Return in one line why nothing can be stored in, or read from, a folder of the cache."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoRoomError(
            f"{folder}: the disk is full; what was computed is kept: make room (toolkit cache --limit 0 empties the "
            "cache) and run again, or choose another --cache_dir"
        )
    return ArtifactError(f"{folder}: the cache cannot be used ({error.strerror or error}); choose another --cache_dir")


def _check_finite(outputs: Outputs, request: Request) -> None:
    for part in outputs.values():
        if part.is_floating_point() and not (part.sum(dtype=torch.float32).isfinite() or part.isfinite().all()):
            cause = "the weights are damaged"
            if request.dtype != torch.float32:
                cause += f", or too large for {request.dtype}: take --precision 32-true"
            raise WeightsError(f"{request.backbone.name}: its features are not finite numbers; {cause}")
