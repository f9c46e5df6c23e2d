"""model.json, which describes a saved model: reading it imports no torch."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from toolkit.data.preprocessing import Preprocessing
from toolkit.errors import ArtifactError
from toolkit.storage import read_json

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
FORMAT = 1


def model_folder(path: str | os.PathLike[str]) -> Path:
    """Return the model folder that a path stands for: itself, or the `model/` of a run; raises ArtifactError."""
    path = Path(path).expanduser()
    for folder in (path, path / "model"):
        if (folder / DESCRIPTION).is_file():
            return folder
    if not path.exists():
        raise ArtifactError(f"{path} does not exist; expected a run folder or its model/")
    raise ArtifactError(f"{path} holds no finished model (there is no {DESCRIPTION} in it or in its model/)")


def read_description(folder: Path) -> dict[str, Any]:
    """Return what a model folder says of its model; raises ArtifactError for what was not written by `save_model`."""
    file = folder / DESCRIPTION
    try:
        description = read_json(file)
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{file} cannot be read ({type(error).__name__}); train again") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ArtifactError(f"{file} is not of format {FORMAT}, the one this version reads")
    if description.get("description_sha256") != description_sha256(description):
        raise ArtifactError(f"{file} is not what was saved (its digest differs); restore or train again")
    return description


def description_sha256(description: dict[str, Any]) -> str:
    """Return the digest of everything in a description but that digest: scores alone do not tell swapped classes."""
    rest = {key: value for key, value in description.items() if key != "description_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def reading_of(description: dict[str, Any]) -> tuple[Preprocessing, int]:
    """Return how the model wants images, and the number of pixels above which it refuses them."""
    return Preprocessing.from_dict(description["preprocessing"]), int(description["decoding"]["max_pixels"])
