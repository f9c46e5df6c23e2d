"""What is written stays apart from the photos. Imports no torch: it is looked at before anything slow begins."""

from __future__ import annotations

import os
from pathlib import Path

from toolkit.errors import ArtifactError
from toolkit.storage import cache_folder


def check_apart(data: str | os.PathLike[str], where: Path) -> None:
    """Raise ArtifactError for a run folder inside the photos' folder: the next scan would take it for a class."""
    if _lies_in(data, where):
        raise ArtifactError(f"{where} lies inside the folder of photos, which is only read; choose another --out")


def check_cache_apart(data: str | os.PathLike[str], cache_dir: str | None) -> None:
    """Raise ArtifactError for a cache that was put inside the photos' folder: its folders would be classes.

    For what begins; a run that began with such a cache can still be gone on with.
    """
    if cache_dir is not None and _lies_in(data, where := cache_folder(cache_dir)):
        raise ArtifactError(f"{where} lies inside the folder of photos, which is only read; choose another --cache_dir")


def _lies_in(data: str | os.PathLike[str], where: Path) -> bool:
    photos = Path(data).expanduser().resolve()
    try:
        return photos.is_dir() and where.resolve().is_relative_to(photos)
    except ValueError:  # a NUL in the path, which lies nowhere: who writes there says so
        return False
