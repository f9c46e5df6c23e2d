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
from toolkit.data.decode import UnreadableImage, decode, read_content
from toolkit.data.gpu_jpegs import Encoded, GpuJpegs
from toolkit.data.loading import LOST_AFTER_S, Batch, Failure, leave_signals
from toolkit.data.lost_workers import ended_at_once, next_batch
from toolkit.data.manifest import Manifest
from toolkit.data.plain_jpeg import plain_jpeg
from toolkit.data.preprocessing import Preprocessing
from toolkit.data.turns import by_turns
from toolkit.data.views import AUGMENTATIONS, Augmentation, decoded_px, source_of, source_px, view
from toolkit.storage import digest as digest_of

Wanted = tuple[int, tuple[int, ...]]  # a row of the Manifest, and the numbers of the views wanted of it


class Views(NamedTuple):
    """K views of some images, in the order in which they were asked for.

    pixels: uint8 (K, 3, S, S), or sources (K, 3, R, R). rows, numbers: int64 (K,), int32 (K,): whose view, and which.
    sizes: int32 (K, 2), width and height of the decoded image. digests: uint8 (K, 16), of the content that was decoded.
    failures: (row, reason) of images that could not be read. encoded: of those of the K that a GPU is yet to decode;
    `pixels` are then the others', until the stream hands the batch over.
    """

    pixels: Tensor
    rows: NDArray[np.int64]
    numbers: NDArray[np.int32]
    sizes: NDArray[np.int32]
    digests: NDArray[np.uint8]
    failures: tuple[Failure, ...]
    encoded: Encoded | None = None


class _Sample(NamedTuple):
    """What became of an image: the views wanted of it, the digest and the size of what was decoded, and the views, or
    why there are none. jpeg: its EXIF orientation and content, where a GPU is to make the first of the views."""

    wanted: Wanted
    digest: bytes
    size: tuple[int, int]
    pixels: NDArray[np.uint8] | str
    jpeg: tuple[int, bytes] | None = None


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
        on_gpu: bool,
    ) -> None:
        self.manifest = manifest
        self.preprocessing = preprocessing
        self.augmentation = augmentation
        self.seed = seed
        self.max_pixels = max_pixels
        self.source = source
        self.ready = ready
        self.on_gpu = on_gpu
        side = source_px(preprocessing) if source else preprocessing.crop_px
        self.no_pixels = np.empty((0, 3, side, side), np.uint8)

    def __getitem__(self, wanted: Wanted) -> _Sample:
        row, numbers = wanted
        if self.ready is not None and numbers == (0,) and not self.source:
            decoded = self.ready.get(str(self.manifest.file(row)))
            if decoded is not None:
                return _Sample(wanted, decoded.digest, decoded.size, decoded.pixels[None])
        path, least_px = self.manifest.file(row), decoded_px(self.preprocessing)
        try:
            content = read_content(path, self.max_pixels)
            digest = digest_of(content)
            jpeg = None
            if self.on_gpu and numbers[0] == 0:
                jpeg = plain_jpeg(content, self.max_pixels, least_px)
                if jpeg is not None and len(numbers) == 1:
                    return _Sample(wanted, digest, jpeg.size, self.no_pixels, (jpeg.orientation, content))
            image = decode(content, self.max_pixels, least_px)
        except UnreadableImage as reason:
            return _Sample(wanted, b"", (0, 0), str(reason))
        if self.source:
            return _Sample(wanted, digest, image.size, source_of(image, self.preprocessing)[None])
        several = [
            view(image, self.preprocessing, self.augmentation, digest=digest, number=number, seed=self.seed)
            for number in numbers[jpeg is not None :]
        ]
        here = None if jpeg is None else (jpeg.orientation, content)
        return _Sample(wanted, digest, image.size, np.stack(several), here)

    def collate(self, samples: Sequence[_Sample]) -> Views:
        parts = [self.no_pixels]
        rows: list[int] = []
        numbers: list[int] = []
        digests = b""
        failures: list[Failure] = []
        sizes: list[tuple[int, int]] = []
        jpegs: list[tuple[int, int, bytes]] = []
        for (row, views), digest, size, pixels, jpeg in samples:
            if isinstance(pixels, str):
                failures.append((row, pixels))
                continue
            if jpeg is not None:
                jpegs.append((len(rows), *jpeg))
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
            Encoded.of(*zip(*jpegs, strict=True)) if jpegs else None,
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
    gpu: GpuJpegs | None = None,
) -> Iterator[Views]:
    """Yield the Views of each batch in turn, or the sources of its images.

    workers: how many processes decode, or with `turns` threads, while the caller does nothing; 0 for none.
    ready: clean views that need no decoding any more. gpu: what decodes plain JPEGs for clean views, whose pixels are
    then on its device; not for sources, nor with `turns`.
    Raises ToolkitError where the processes that decode are lost.
    """
    dataset = _Several(manifest, preprocessing, augmentation, seed, max_pixels, source, ready, gpu is not None)
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
    batches_of_views = _guarded(ended_at_once(iter(loader)))
    return batches_of_views if gpu is None else _completed(batches_of_views, gpu, preprocessing, max_pixels)


def clean_views(
    manifest: Manifest,
    rows: NDArray[np.int64],
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    workers: int,
    max_pixels: int,
    gpu: GpuJpegs,
) -> Iterator[Batch]:
    """Yield view 0 of the given rows in their order, plain JPEGs decoded by a GPU: `clean_batches` with its help.

    workers: how many processes read files, and decode the others. Inputs are on the GPU.
    """
    spans = ([(row, (0,)) for row in rows[i : i + batch_size].tolist()] for i in range(0, len(rows), batch_size))
    none = AUGMENTATIONS["none"]
    stream = stream_views(
        manifest,
        spans,
        preprocessing,
        none,
        seed=0,
        workers=workers,
        max_pixels=max_pixels,
        pin=gpu.device.type == "cuda",
        gpu=gpu,
    )
    for views in stream:
        labels = torch.from_numpy(manifest.labels[views.rows])
        yield Batch(views.pixels, labels, torch.from_numpy(views.rows), views.failures)


def _n_views(batch: Sequence[Wanted]) -> int:
    return sum(len(numbers) for _, numbers in batch)


def _guarded(batches: Iterator[Views]) -> Iterator[Views]:
    while (batch := next_batch(batches)) is not None:
        yield batch


def _completed(
    batches: Iterator[Views], gpu: GpuJpegs, preprocessing: Preprocessing, max_pixels: int
) -> Iterator[Views]:
    """Yield the batches with all of their pixels, on the GPU."""
    for views in batches:
        if views.encoded is None:
            yield views._replace(pixels=views.pixels.to(gpu.device, non_blocking=True))
            continue
        pixels, refused = gpu.complete(views.pixels, views.encoded, preprocessing, max_pixels)
        failures = {int(views.rows[place]): reason for place, reason in refused.items()}
        kept = ~np.isin(views.rows, list(failures))
        yield Views(
            pixels if kept.all() else pixels[torch.from_numpy(kept).to(gpu.device)],
            views.rows[kept],
            views.numbers[kept],
            views.sizes[kept],
            views.digests[kept],
            (*views.failures, *failures.items()),
        )
