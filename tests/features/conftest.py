"""What most tests of the store begin with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.features.small import photos
from toolkit.data.manifest import Manifest


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return photos(tmp_path / "photos", 12)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"
