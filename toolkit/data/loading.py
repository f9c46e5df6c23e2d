"""Rows of a Manifest → batches of seeded views, in an order that a resumed run finds again."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from toolkit.data.ahead import DecodedAhead
from toolkit.data.decode import UnreadableImage, read_image
from toolkit.data.lost_workers import check_alive, ended_at_once, next_batch, waiting
from toolkit.data.manifest import Manifest
from toolkit.data.preprocessing import Preprocessing
from toolkit.data.samplers import SeededSampler
from toolkit.data.turns import by_turns
from toolkit.data.views import Augmentation, decoded_px, source_of, view, view_of_source
from toolkit.errors import LostWorkerError, SettingError
from toolkit.progress import say

Failure = tuple[int, str]

LOST_AFTER_S = 120.0  # seconds without a batch after which the processes that decode are given up
MOST_WORKERS, MANY_IMAGES = 16, 2_000  # a GPU passes more images than 8 cores decode, and to start 16 takes a while
GRACE_S = 60  # seconds for which they go on after a SIGTERM, for the steps up to the last checkpoint
SHARED_BYTES_A_WORKER = 2 * 32 * 3 * 384**2  # two batches ahead, of 32 images of at most 384 px


class Batch(NamedTuple):
    """B views of images and the files that failed.

    inputs: uint8 (B, 3, S, S), or what frozen stages made of such pixels. labels: int64 (B,), −1 where unlabelled.
    rows: int64 (B,), rows of the Manifest.
    failures: (row, reason) of files that were asked for and could not be read; they are not in the tensors.
    """

    inputs: Any
    labels: Tensor
    rows: Tensor
    failures: tuple[Failure, ...]


class ViewSource(Protocol):
    """What maps (row, view number) to a sample, and several samples to a Batch.

    costly: whether that is work which several processes should share.
    """

    costly: bool

    def __len__(self) -> int: ...

    def __getitem__(self, key: tuple[int, int]) -> Any: ...

    def collate(self, samples: Sequence[Any]) -> Batch:
        """Return the samples as one Batch."""


class ViewDataset(Dataset[tuple[int, NDArray[np.uint8] | str]]):
    """Maps (row, view number) to that view's pixels, or to the reason why there are none; holds no random state.

    by_source: bool (N,), the rows whose views are cut from the image's source, as is done where sources are stored.
    ready: clean views that need no decoding any more.
    """

    costly = True

    def __init__(
        self,
        manifest: Manifest,
        preprocessing: Preprocessing,
        augmentation: Augmentation,
        *,
        seed: int,
        max_pixels: int,
        by_source: NDArray[np.bool_] | None = None,
        ready: DecodedAhead | None = None,
    ) -> None:
        self.manifest = manifest
        self.preprocessing = preprocessing
        self.augmentation = augmentation
        self.seed = seed
        self.max_pixels = max_pixels
        self.by_source = by_source
        self.ready = ready

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, NDArray[np.uint8] | str]:
        row, number = key
        if self.ready is not None and number == 0 and self.by_source is None:
            decoded = self.ready.get(str(self.manifest.file(row)))
            if decoded is not None:
                return row, decoded.pixels
        try:
            content_digest, image = read_image(self.manifest.file(row), self.max_pixels, decoded_px(self.preprocessing))
        except UnreadableImage as reason:
            return row, str(reason)
        which: dict[str, Any] = {"digest": content_digest, "number": number, "seed": self.seed}
        if self.by_source is not None and self.by_source[row]:
            source = source_of(image, self.preprocessing)
            return row, view_of_source(source, image.size, self.preprocessing, self.augmentation, **which)
        return row, view(image, self.preprocessing, self.augmentation, **which)

    def collate(self, samples: Sequence[tuple[int, NDArray[np.uint8] | str]]) -> Batch:
        """Stack what could be read and list what could not."""
        size = self.preprocessing.crop_px
        read = [(row, pixels) for row, pixels in samples if not isinstance(pixels, str)]
        failures = tuple((row, pixels) for row, pixels in samples if isinstance(pixels, str))
        stacked = np.stack([pixels for _, pixels in read]) if read else np.empty((0, 3, size, size), np.uint8)
        rows = np.array([row for row, _ in read], dtype=np.int64)
        return Batch(
            torch.from_numpy(stacked), torch.from_numpy(self.manifest.labels[rows]), torch.from_numpy(rows), failures
        )


class ResumableLoader(DataLoader[Any]):
    """A DataLoader over a SeededSampler that knows how far its epoch has got, and can go on from there.

    Its own random generator seeds the workers, so that the global random state does not depend on them. Where a worker
    is killed, it is named, and the same batches come without workers.
    start: how they are started, such as "fork", where that matters. others: what Lightning adds where it makes a loader
    anew around a sampler of its own, which knows of no views: SettingError.
    """

    def __init__(
        self,
        dataset: ViewSource,
        sampler: SeededSampler,
        *,
        batch_size: int,
        workers: int,
        pin: bool,
        start: str | None = None,
        **others: Any,
    ) -> None:
        if others or not isinstance(sampler, SeededSampler):
            raise SettingError(
                "the order of these batches cannot be changed from outside; give the Trainer the data themselves, not "
                "their loaders: trainer.fit(module, data)"
            )
        self.workers, self.pin = workers, pin  # Lightning looks for them
        super().__init__(
            dataset,  # type: ignore[arg-type]  # it need not inherit from Dataset
            sampler=sampler,
            batch_size=batch_size,
            num_workers=workers,
            collate_fn=dataset.collate,
            pin_memory=pin,
            generator=torch.Generator().manual_seed(0),
            persistent_workers=workers > 0,
            worker_init_fn=leave_signals,
            multiprocessing_context=start if workers else None,
            timeout=LOST_AFTER_S if workers else 0,
        )
        self._done = (-1, 0)
        self._resume = (-1, 0)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        assert isinstance(self.sampler, SeededSampler) and self.batch_size is not None
        epoch = self.sampler.epoch
        done = self._resume[1] if self._resume[0] == epoch else 0
        self._resume = (-1, 0)
        self.sampler.skip = done * self.batch_size
        batches: Iterator[Any] | None = None
        while True:
            try:
                batches = self._begun() if batches is None else batches
                batch = next_batch(batches)
            except LostWorkerError as lost:
                self._give_up_workers(lost)
                batches, self.sampler.skip = None, done * self.batch_size
                continue
            if batch is None:
                return
            done += 1
            self._done = (epoch, done)
            yield batch

    def _begun(self) -> Iterator[Any]:
        check_alive(self._iterator)
        with waiting():
            return ended_at_once(super().__iter__())

    def _give_up_workers(self, lost: LostWorkerError) -> None:
        """Decode in this process from now on; raises the error where that would not help."""
        iterator: Any = self._iterator
        self._iterator = None
        if iterator is not None:
            iterator._shutdown_workers()
        if not (self.num_workers and lost.others_can):
            raise lost
        say(f"note: decoding {lost.lost}, maybe for want of memory; it goes on without such processes, where it was")
        self.num_workers, self.timeout = 0, 0

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and how many of its batches have been handed out."""
        return {"epoch": self._done[0], "batches": self._done[1]}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Skip the batches that were handed out when `state` was taken."""
        self._resume = self._done = (state["epoch"], state["batches"])


def leave_signals(worker: int) -> None:
    """Let a worker outlive Ctrl-C and SIGTERM: the main process ends it, after a last checkpoint.

    Both reach it too where a terminal, `timeout`, systemd or a cluster's scheduler stops a whole group of processes.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_later if hasattr(signal, "alarm") else signal.SIG_DFL)


def _end_later(number: int, frame: FrameType | None) -> None:
    """End the process in GRACE_S, or at once when it is told again."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(GRACE_S)


def clean_batches(
    manifest: Manifest,
    rows: NDArray[np.int64],
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    workers: int,
    max_pixels: int,
    turns: bool = False,
    pin: bool = False,
    ready: DecodedAhead | None = None,
) -> Iterator[Batch]:
    """Yield view 0 of the given rows in their order, decoded by processes, or with `turns` by threads: see by_turns.

    ready: clean views that need no decoding any more.
    """
    from toolkit.data.views import AUGMENTATIONS

    dataset = ViewDataset(manifest, preprocessing, AUGMENTATIONS["none"], seed=0, max_pixels=max_pixels, ready=ready)
    if turns and workers:
        spans = ([(row, 0) for row in rows[i : i + batch_size].tolist()] for i in range(0, len(rows), batch_size))
        return by_turns(dataset.__getitem__, spans, dataset.collate, workers)
    sampler = SeededSampler(rows, views=1, seed=0, shuffle=False)
    start = None if ready is None else "fork"  # it shares memory with them
    return iter(ResumableLoader(dataset, sampler, batch_size=batch_size, workers=workers, pin=pin, start=start))


def default_workers(n_images: int) -> int:
    """Return how many decoding processes to use: none for a handful of images, else one a core up to 8, or up to 16
    for many images.

    Fewer where shared memory, through which they hand batches over, is small (64 MB in a Docker container).
    """
    if n_images < 64:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shared = shutil.disk_usage("/dev/shm").free // SHARED_BYTES_A_WORKER if os.path.isdir("/dev/shm") else cores
    return min(MOST_WORKERS if n_images >= MANY_IMAGES else MOST_WORKERS // 2, cores, shared)
