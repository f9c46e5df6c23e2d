"""Which files cannot be used: by decoding every one once, or by their headers, for those whom nothing else tells."""

from __future__ import annotations

import numpy as np

from toolkit.data.decode import TooLargeImage, UnreadableImage, probe_image
from toolkit.data.loading import Failure, clean_batches
from toolkit.data.manifest import Manifest
from toolkit.data.preprocessing import Preprocessing
from toolkit.progress import counting


def unreadable(manifest: Manifest, *, workers: int, max_pixels: int) -> tuple[Failure, ...]:
    """Return (row, reason) of the images that cannot be decoded."""
    failures: list[Failure] = []
    smallest = Preprocessing(1, 1, "nearest")
    batches = clean_batches(
        manifest, np.arange(len(manifest)), smallest, batch_size=32, workers=workers, max_pixels=max_pixels
    )
    with counting("checking files", len(manifest)) as counter:
        for batch in batches:
            failures.extend(batch.failures)
            counter.advance(len(batch.rows) + len(batch.failures))
    return tuple(failures)


def too_large(manifest: Manifest, *, max_pixels: int) -> tuple[Failure, ...]:
    """Return (row, reason) of the images that `max_pixels` rules out, by their headers.

    For a Manifest that no scan has made: what is stored of an image says nothing of its size.
    """
    found: list[Failure] = []
    for row in range(len(manifest)):
        try:
            probe_image(manifest.file(row), max_pixels)
        except TooLargeImage as reason:
            found.append((row, str(reason)))
        except UnreadableImage:  # who reads it says so
            pass
    return tuple(found)
