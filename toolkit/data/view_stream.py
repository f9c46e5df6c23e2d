"""Several views of each image with one decoding: what a pass over a data set reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from toolkit.data.ahead import DecodedAhead
from toolkit.data.decode import UnreadableImage, read_image
from toolkit.data.loading import LOST_AFTER_S, Failure, leave_signals
from toolkit.data.lost_workers import ended_at_once, next_batch
from toolkit.data.manifest import Manifest
from toolkit.data.preprocessing import Preprocessing
from toolkit.data.turns import by_turns
from toolkit.data.views import Augmentation, decoded_px, source_of, source_px, view

Wanted = tuple[int, tuple[int, ...]]  # a row of the Manifest, and the numbers of the views wanted of it


class Views(NamedTuple):
    """K views of some images, in the order in which they were asked for.

    pixels: uint8 (K, 3, S, S), or sources (K, 3, R, R). rows, numbers: int64 (K,), int32 (K,): whose view, and which.
    sizes: int32 (K, 2), width and height of the decoded image. digests: uint8 (K, 16), of the content that was decoded.
    failures: (row, reason) of images that could not be read.
    """

    pixels: Tensor
    rows: NDArray[np.int64]
    numbers: NDArray[np.int32]
    sizes: NDArray[np.int32]
    digests: NDArray[np.uint8]
    failures: tuple[Failure, ...]


_Sample = tuple[Wanted, bytes, tuple[int, int], NDArray[np.uint8] | str]


class _Several(Dataset[_Sample]):
    def __init__(
        self,
        manifest: Manifest,
        preprocessing: Preprocessing,
        augmentation: Augmentation,
        seed: int,
        max_pixels: int,
        source: bool,
        ready: DecodedAhead | None,
    ) -> None:
        self.manifest = manifest
        self.preprocessing = preprocessing
        self.augmentation = augmentation
        self.seed = seed
        self.max_pixels = max_pixels
        self.source = source
        self.ready = ready

    def __getitem__(self, wanted: Wanted) -> _Sample:
        row, numbers = wanted
        if self.ready is not None and numbers == (0,) and not self.source:
            decoded = self.ready.get(str(self.manifest.file(row)))
            if decoded is not None:
                return wanted, decoded.digest, decoded.size, decoded.pixels[None]
        try:
            digest, image = read_image(self.manifest.file(row), self.max_pixels, decoded_px(self.preprocessing))
        except UnreadableImage as reason:
            return wanted, b"", (0, 0), str(reason)
        if self.source:
            return wanted, digest, image.size, source_of(image, self.preprocessing)[None]
        several = [
            view(image, self.preprocessing, self.augmentation, digest=digest, number=number, seed=self.seed)
            for number in numbers
        ]
        return wanted, digest, image.size, np.stack(several)

    def collate(self, samples: Sequence[_Sample]) -> Views:
        side = source_px(self.preprocessing) if self.source else self.preprocessing.crop_px
        parts = [np.empty((0, 3, side, side), np.uint8)]
        rows: list[int] = []
        numbers: list[int] = []
        digests = b""
        failures: list[Failure] = []
        sizes: list[tuple[int, int]] = []
        for (row, views), digest, size, pixels in samples:
            if isinstance(pixels, str):
                failures.append((row, pixels))
                continue
            parts.append(pixels)
            rows += [row] * len(views)
            numbers += views
            sizes += [size] * len(views)
            digests += digest * len(views)
        return Views(
            torch.from_numpy(np.concatenate(parts)),
            np.array(rows, np.int64),
            np.array(numbers, np.int32),
            np.array(sizes, np.int32).reshape(-1, 2),
            np.frombuffer(digests, np.uint8).reshape(-1, 16),
            tuple(failures),
        )


def stream_views(
    manifest: Manifest,
    batches: Iterable[Sequence[Wanted]],
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    *,
    seed: int,
    workers: int,
    max_pixels: int,
    turns: bool = False,
    pin: bool = False,
    source: bool = False,
    ready: DecodedAhead | None = None,
) -> Iterator[Views]:
    """Yield the Views of each batch in turn, or the sources of its images.

    workers: how many processes decode, or with `turns` threads, while the caller does nothing; 0 for none.
    ready: clean views that need no decoding any more.
    Raises ToolkitError where the processes that decode are lost.
    """
    dataset = _Several(manifest, preprocessing, augmentation, seed, max_pixels, source, ready)
    if turns and workers:
        return by_turns(dataset.__getitem__, batches, dataset.collate, workers, _n_views)
    loader = DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]  # lists of keys, not of numbers
        num_workers=workers,
        collate_fn=dataset.collate,
        pin_memory=pin,
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=leave_signals,
        multiprocessing_context="fork" if workers and ready is not None else None,  # it shares memory with them
        timeout=LOST_AFTER_S if workers else 0,
    )
    return _guarded(ended_at_once(iter(loader)))


def _n_views(batch: Sequence[Wanted]) -> int:
    return sum(len(numbers) for _, numbers in batch)


def _guarded(batches: Iterator[Views]) -> Iterator[Views]:
    while (batch := next_batch(batches)) is not None:
        yield batch
