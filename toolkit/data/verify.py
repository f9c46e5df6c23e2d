"""Decode every file once, for runs that have no other reason to before they train."""

from __future__ import annotations

import numpy as np

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
