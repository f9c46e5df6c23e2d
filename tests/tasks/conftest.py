"""Runs that many tests read; whoever changes one copies it first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.photos import make_photos
from tests.tasks.small import run
from toolkit.tasks.run import Run

Runs = Callable[[str], Run]


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 3 classes with 10 photographs each, in the layout DIR/CLASS."""
    return make_photos(tmp_path_factory.mktemp("session") / "photos", {"cat": 10, "dog": 10, "owl": 10})


@pytest.fixture(scope="session")
def runs(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Return a function from a strategy to its run on `photos`, made once."""
    made: dict[str, Run] = {}

    def of(strategy: str) -> Run:
        if strategy not in made:
            made[strategy] = run(photos, tmp_path_factory.mktemp(strategy) / "run", strategy)
        return made[strategy]

    return of
