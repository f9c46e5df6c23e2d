"""Where features are kept: the cache folder, or a folder that goes with the run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from toolkit.errors import ArtifactError
from toolkit.features.store import FeatureStore
from toolkit.progress import say
from toolkit.storage import cache_folder


@contextmanager
def open_store(cache: bool, cache_dir: str | None) -> Iterator[FeatureStore]:
    """Yield the store to compute into: the cache folder, or one that is removed afterwards where nothing shall be kept.

    Where the platform's own cache folder cannot be written, the run goes on without keeping anything, and says so.
    """
    if cache:
        try:
            store = FeatureStore(cache_folder(cache_dir))
        except ArtifactError as error:
            if cache_dir is not None:
                raise
            say(f"note: {error}; nothing is kept")
        else:
            yield store
            return
    with tempfile.TemporaryDirectory(prefix="transfer-toolkit-") as folder:
        advice = "make room, or let temporary files go elsewhere: TMPDIR=/another/folder"
        yield FeatureStore(folder, advice=advice)
