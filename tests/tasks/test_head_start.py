"""Decoding begins while torch is imported where that helps, and changes nothing but the time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.photos import make_photos
from toolkit.data import ahead
from toolkit.features.contents import Contents
from toolkit.options import Options
from toolkit.tasks.head_start import head_start

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it forks")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos", {"cat": 4, "dog": 4})


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Note what is begun, in a program that has not imported torch and has three cores."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(ahead, "begin", lambda *arguments: calls.append(arguments))
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2})
    return calls


def start(data: Any, folder: Path, **settings: Any) -> None:
    with head_start(data, Options(cache_dir=str(folder), **settings)):
        pass


def test_it_begins_with_the_preprocessing_of_the_run(photos: Path, tmp_path: Path, begun: list[Any]) -> None:
    start(photos, tmp_path / "cache", image_size=64, max_pixels=1000)
    start(str(photos), tmp_path / "cache", strategy="partial", backbone="efficientnet_lite1")
    (folder, wanted, max_pixels, processes), (_, other, _, _) = begun
    assert (folder, wanted.crop_px, wanted.resize_px, max_pixels, processes) == (photos, 64, 73, 1000, 2)
    assert (other.crop_px, other.resize_px) == (240, 272)


@pytest.mark.parametrize("settings", [{"workers": 0}, {"strategy": "scratch"}, {"backbone": "resnet18"}], ids=str)
def test_it_is_not_begun_where_it_cannot_help(photos: Path, tmp_path: Path, begun: list[Any], settings: Any) -> None:
    start(photos, tmp_path / "cache", **settings)
    assert begun == []


def test_it_is_not_begun_on_one_core(photos: Path, tmp_path: Path, begun, monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    start(photos, tmp_path / "cache")
    assert begun == []


def test_it_is_not_begun_once_torch_is_there(photos: Path, tmp_path: Path, begun, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", sys)
    start(photos, tmp_path / "cache")
    assert begun == []


def test_it_is_not_begun_for_a_folder_that_the_cache_knows(photos: Path, tmp_path: Path, begun: list[Any]) -> None:
    known = Contents(tmp_path / "cache" / "contents", photos).path
    known.parent.mkdir(parents=True)
    known.touch()
    start(photos, tmp_path / "cache")
    assert begun == []
    with head_start(photos, Options(cache=False)):
        assert len(begun) == 1


@pytest.mark.parametrize("data", [None, 3, "no such folder", "list.csv"], ids=str)
def test_whatever_is_wrong_with_the_data_is_said_elsewhere(data: Any, tmp_path: Path, begun: list[Any]) -> None:
    (tmp_path / "list.csv").write_text("path,label\n")
    start(data if not isinstance(data, str) else tmp_path / data, tmp_path / "cache")
    assert begun == []


def test_nothing_goes_on_when_the_run_fails(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    with pytest.raises(RuntimeError, match="refused"), head_start(photos, Options(cache_dir=str(tmp_path / "cache"))):
        assert ahead._begun is not None
        (process,) = ahead._begun._processes
        raise RuntimeError("refused")
    assert ahead._begun is None
    with pytest.raises(ChildProcessError):  # ended, and waited for
        os.waitpid(process, os.WNOHANG)


@pytest.mark.slow
def test_a_run_ends_as_it_does_without(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", {"cat": 60, "dog": 60})
    (photos / "cat" / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    made = []
    for name, more in (("ahead", []), ("without", ["--workers", "0"])):
        command = [sys.executable, "-m", "toolkit", "finetune", photos, "--out", tmp_path / name, *more]
        subprocess.run([*command, "--cache_dir", tmp_path / f"cache-{name}"], check=True, capture_output=True)
        made.append([(tmp_path / name / file).read_bytes() for file in ("predictions.csv", "quarantine.csv")])
    assert made[0] == made[1]
