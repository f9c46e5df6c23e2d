"""What a verb refuses, and what it writes, costs nothing that was there before."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.photos import make_photos
from tests.tasks.conftest import Runs
from tests.tasks.small import run
from toolkit.errors import ArtifactError
from toolkit.tasks.baseline import train_baseline
from toolkit.tasks.run import Run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "data", {"cat": 4, "dog": 4})


def content(folder: Path) -> dict[str, bytes | None]:
    """Return what is in a folder, files and folders."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def test_a_cache_that_cannot_be_costs_no_run(runs: Runs, data: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(runs("head").path, tmp_path / "run"))
    (tmp_path / "file").touch()
    nowhere = str(tmp_path / "file/cache")
    before = content(tmp_path)
    for place, overwrite in ((out, True), (tmp_path / "new", False)):
        with pytest.raises(ArtifactError, match="no cache can be kept here"):
            run(data, place, overwrite=overwrite, cache_dir=nowhere)
        with pytest.raises(ArtifactError, match="no cache can be kept here"):
            train_baseline(str(data), out=str(place), overwrite=overwrite, cache_dir=nowhere, workers=0, device="cpu")
    assert content(tmp_path) == before


def test_a_cache_may_lie_in_the_run_folder(data: Path, tmp_path: Path) -> None:
    def again(out: Path, cache: Path, overwrite: bool) -> Run:
        return run(data, out, overwrite=overwrite, cache_dir=str(cache))

    for overwrite in (False, True):
        assert again(tmp_path / "a", tmp_path / "a/cache", overwrite).metrics["train"]["n"] == 6
        assert again(tmp_path / "b", tmp_path / "b", overwrite).metrics["train"]["n"] == 6
