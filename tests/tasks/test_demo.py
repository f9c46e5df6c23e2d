"""`toolkit demo`: on its own photos, into its own run folder, beside whatever else lies there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import toolkit
from tests.photos import make_photos
from tests.tasks.small import SMALL, run
from toolkit.errors import ArtifactError
from toolkit.tasks import demo as room

FEW = 12  # scans a digit


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder in which the demo runs, on a few of its scans and at the smallest size."""
    import sklearn.datasets

    whole = sklearn.datasets.load_digits()
    few = np.sort(np.concatenate([np.flatnonzero(whole.target == digit)[:FEW] for digit in range(10)]))
    scans = type(whole)(images=whole.images[few], target=whole.target[few])
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: scans)
    monkeypatch.setattr("toolkit.tasks.finetune.finetune", smaller(toolkit.finetune))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def smaller(finetune: Any) -> Any:
    def run(data: str, **options: Any) -> Any:
        return finetune(data, **{**options, **SMALL, "strategy": "head", "pictures": False})

    return run


def test_it_shows_a_scan_of_each_of_the_first_digits(here: Path) -> None:
    lines = room.demo().splitlines()
    shown = [line for line in lines if line.startswith("runs/demo-digits/")]
    assert [line.split("/")[2] for line in shown] == list("01234")
    assert all(line.endswith(")") for line in shown)


@pytest.mark.parametrize("stray", [".DS_Store", "Thumbs.db", "000.txt", ".git/0000.png", "0000 copy.png"])
def test_what_else_lies_among_its_photos_is_not_shown(here: Path, stray: str) -> None:
    file = here / "runs/demo-digits/0" / stray
    file.parent.mkdir(parents=True)
    if stray.endswith(".png"):
        Image.new("L", (8, 8)).save(file)
    else:
        file.write_bytes(b"\0")
    before = file.read_bytes()
    assert "runs/demo-digits/0/0000.png: " in room.demo()
    assert file.read_bytes() == before


def test_it_replaces_its_own_run_and_no_other(here: Path) -> None:
    room.demo()
    first = (here / "runs/demo/config.yaml").stat().st_ino
    room.demo()
    assert (here / "runs/demo/config.yaml").stat().st_ino != first
    shutil.rmtree(here / "runs")
    photos = make_photos(here / "photos", {"cat": 4, "dog": 4})
    run(photos, here / "runs/demo")
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    with pytest.raises(ArtifactError, match=f"runs/demo holds a run on {photos}, which the demo would replace"):
        room.demo()
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before
