"""What is written stays apart from the photos. Imports no torch: it is looked at before anything slow begins."""

from __future__ import annotations

import os
from pathlib import Path

from toolkit.errors import ArtifactError


def check_apart(data: str | os.PathLike[str], where: Path) -> None:
    """Raise ArtifactError for a run folder inside the photos' folder: the next scan would take it for a class."""
    photos = Path(data).expanduser().resolve()
    if photos.is_dir() and where.resolve().is_relative_to(photos):
        raise ArtifactError(f"{where} lies inside the folder of photos, which is only read; choose another --out")
