"""Rows of a Manifest → blocks of pixels, decoded in every way that the models of an Ensemble want them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from toolkit.data.ahead import DecodedAhead
from toolkit.data.gpu_jpegs import decoder_of, is_forced
from toolkit.data.loading import Batch, Failure, clean_batches
from toolkit.data.manifest import Manifest
from toolkit.data.preprocessing import Preprocessing
from toolkit.data.view_stream import clean_views
from toolkit.data.views import clean_view
from toolkit.evaluation.ensemble import Ensemble
from toolkit.features.prefix import CHUNK, chunk_of

CPU = torch.device("cpu")


class Block(NamedTuple):
    """Some images: rows int64 (N,), and for each decoding uint8 (N, 3, S, S), on the GPU if that has decoded them.
    failures: what could not be read."""

    rows: NDArray[np.int64]
    pixels: dict[Preprocessing, Tensor]
    failures: tuple[Failure, ...]

    def on_cpu(self) -> Block:
        """Return the same with all pixels on the CPU."""
        return self._replace(pixels={decoding: own.cpu() for decoding, own in self.pixels.items()})


def file_blocks(
    ensemble: Ensemble,
    manifest: Manifest,
    rows: NDArray[np.int64],
    *,
    workers: int,
    device: torch.device = CPU,
    ready: DecodedAhead | None = None,
) -> Iterator[Block]:
    """Yield the images of the given rows, in their order, a chunk of the device's at a time.

    workers: how many decode, beside a GPU that passes run on, or in turn with passes on the CPU.
    ready: images that are decoded already, in one of the ensemble's ways.
    """
    decodings, turns = ensemble.decodings, device.type == "cpu"
    settings: dict[str, Any] = {"batch_size": chunk_of(device), "max_pixels": ensemble.max_pixels}
    settings["workers"] = workers if turns else -(-workers // len(decodings))
    streams = []
    for decoding in decodings:
        gpu = decoder_of(device, decoding) if is_forced() else None
        if gpu is not None:
            streams.append(clean_views(manifest, rows, decoding, gpu=gpu, **settings))
        else:
            own = ready if ready and ready.preprocessing == decoding else None
            streams.append(clean_batches(manifest, rows, decoding, turns=turns, ready=own, **settings))
    for batches in zip(*streams, strict=True):
        yield _block(decodings, batches)


def array_blocks(ensemble: Ensemble, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> Iterator[Block]:
    """Yield the given rows of grey images (N, H, W), CHUNK at a time."""
    for start in range(0, len(rows), CHUNK):
        some = rows[start : start + CHUNK]
        coloured = [Image.fromarray(image).convert("RGB") for image in images[some]]
        pixels = {
            decoding: torch.from_numpy(np.stack([clean_view(image, decoding) for image in coloured]))
            for decoding in ensemble.decodings
        }
        yield Block(some, pixels, ())


def _block(decodings: tuple[Preprocessing, ...], batches: tuple[Batch, ...]) -> Block:
    """Join the batches of the same files; a file that one of them could not read is left out of all."""
    failures = {row: reason for batch in batches for row, reason in batch.failures}
    pixels = {}
    for decoding, batch in zip(decodings, batches, strict=True):
        kept = torch.tensor([row not in failures for row in batch.rows.tolist()], dtype=torch.bool)
        pixels[decoding] = batch.inputs if kept.all() else batch.inputs[kept.to(batch.inputs.device)]
    rows = batches[0].rows.numpy()
    return Block(rows[~np.isin(rows, list(failures))], pixels, tuple(failures.items()))
