"""Fixtures for every room."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.photos import make_photos


@pytest.fixture
def photo_folder(tmp_path: Path) -> Path:
    """Return a folder of 3 classes (5, 4 and 6 small JPEGs) in the layout DIR/CLASS."""
    return make_photos(tmp_path / "photos", {"cat": 5, "dog": 4, "owl": 6})
