"""Decoding begins while torch is imported where that helps, and changes nothing but the time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.photos import make_photos
from tests.tasks.conftest import Runs
from toolkit.data import ahead
from toolkit.data.preprocessing import Preprocessing
from toolkit.features.contents import Contents
from toolkit.options import Options
from toolkit.tasks.head_start import head_start, head_start_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it forks")
several_cores = pytest.mark.skipif(sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2, reason="one core")


@pytest.fixture
def few(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos", {"cat": 4, "dog": 4})


@pytest.fixture
def model(runs: Runs) -> Path:
    return runs("head").path


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Note what is begun, in a program that has not imported torch and has three cores."""
    calls: list[tuple[Any, ...]] = []

    def begin(paths: Any, *rest: Any) -> None:
        calls.extend([(files, *rest)] if (files := list(paths)) else [])

    monkeypatch.setattr(ahead, "begin", begin)
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2})
    return calls


def start(data: Any, folder: Path, **settings: Any) -> None:
    with head_start(data, Options(cache_dir=str(folder), **settings)):
        pass


def test_it_begins_with_the_preprocessing_of_the_run(few: Path, tmp_path: Path, begun: list[Any]) -> None:
    start(few, tmp_path / "cache", image_size=64, max_pixels=1000)
    start(str(few), tmp_path / "cache", strategy="partial", backbone="efficientnet_lite1")
    (paths, wanted, max_pixels, processes), (_, other, _, _) = begun
    assert paths == sorted(str(path) for path in few.rglob("*.jpg")) and len(paths) == 8
    assert (wanted.crop_px, wanted.resize_px, max_pixels, processes) == (64, 73, 1000, 2)
    assert (other.crop_px, other.resize_px) == (240, 272)


def test_it_begins_with_the_files_of_a_list(few: Path, tmp_path: Path, begun: list[Any]) -> None:
    (tmp_path / "list.csv").write_text(f"path,label\nphotos/dog/1.jpg,dog\n{few}/cat/0.jpg,cat\nphotos/dog/1.jpg,dog\n")
    start(tmp_path / "list.csv", tmp_path / "cache")
    assert [call[0] for call in begun] == [[f"{few}/cat/0.jpg", f"{tmp_path}/photos/dog/1.jpg"]]


def test_it_begins_as_a_saved_model_wants_files(model: Path, few: Path, begun: list[Any]) -> None:
    files = [str(few / "cat/000.jpg"), "./somewhere/../b.jpg"]
    with head_start_of(model, files, None):
        pass
    ((paths, wanted, max_pixels, processes),) = begun
    assert paths == [files[0], "somewhere/../b.jpg"]
    assert (wanted, max_pixels, processes) == (Preprocessing(37, 32, "bicubic", (0,) * 3, (1,) * 3), 50_000_000, 2)


def test_it_is_not_begun_for_a_model_that_cannot_be_read(model: Path, tmp_path: Path, begun: list[Any]) -> None:
    (tmp_path / "model.json").write_text((model / "model/model.json").read_text().replace("37", "36"))
    for broken in (tmp_path, tmp_path / "none", 3):
        with head_start_of(broken, ["a.jpg"] * 9, None):
            pass
    assert begun == []


@pytest.mark.parametrize("settings", [{"workers": 0}, {"strategy": "scratch"}, {"backbone": "resnet18"}], ids=str)
def test_it_is_not_begun_where_it_cannot_help(few: Path, tmp_path: Path, begun: list[Any], settings: Any) -> None:
    start(few, tmp_path / "cache", **settings)
    assert begun == []


def test_it_is_not_begun_on_one_core(few: Path, tmp_path: Path, begun, monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    start(few, tmp_path / "cache")
    assert begun == []


def test_it_is_not_begun_once_torch_is_there(few: Path, tmp_path: Path, begun, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", sys)
    start(few, tmp_path / "cache")
    assert begun == []


def test_it_is_not_begun_for_a_folder_that_the_cache_knows(few: Path, tmp_path: Path, begun: list[Any]) -> None:
    known = Contents(tmp_path / "cache" / "contents", few).path
    known.parent.mkdir(parents=True)
    known.touch()
    start(few, tmp_path / "cache")
    assert begun == []
    with head_start(few, Options(cache=False)):
        assert len(begun) == 1


@pytest.mark.parametrize("data", [None, 3, "no such folder", "list.csv"], ids=str)
def test_whatever_is_wrong_with_the_data_is_said_elsewhere(data: Any, tmp_path: Path, begun: list[Any]) -> None:
    (tmp_path / "list.csv").write_text("path,label\n")
    start(data if not isinstance(data, str) else tmp_path / data, tmp_path / "cache")
    assert begun == []


def test_nothing_goes_on_when_the_run_fails(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    with pytest.raises(RuntimeError, match="refused"), head_start(few, Options(cache_dir=str(tmp_path / "cache"))):
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


def ahead_of(verb: str, *words: object) -> subprocess.CompletedProcess[bytes]:
    """Run a command that says on stderr whether it was given something that had been decoded ahead."""
    code = (
        "import sys; from toolkit.cli import main; from toolkit.data import ahead; take = ahead.take\n"
        "def told(*a): found = take(*a); print('ahead:', found is not None, file=sys.stderr); return found\n"
        "ahead.take = told; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, verb, *map(str, words)]
    return subprocess.run(command, check=True, capture_output=True)


@pytest.mark.slow
@several_cores
def test_predictions_are_as_they_are_without(model: Path, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", {"cat": 60, "dog": 60})
    (photos / "cat" / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    made = [ahead_of("predict", model, photos, "--device", "cpu", *more) for more in ([], ["--workers", "0"])]
    assert made[0].stdout == made[1].stdout and made[0].stdout.count(b"\n") == 121
    assert [b"ahead: True" in one.stderr for one in made] == [True, False]


@pytest.mark.slow
@several_cores
def test_features_are_as_they_are_without(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", {"cat": 60, "dog": 60})
    tables = []
    for name, more in (("ahead", []), ("without", ["--workers", "0"])):
        done = ahead_of("features", photos, "--out", tmp_path / f"{name}.npz", "--cache", "false", *more)
        assert (b"ahead: True" in done.stderr) == (name == "ahead")
        with np.load(tmp_path / f"{name}.npz") as table:
            tables.append({key: table[key].tolist() for key in table})
    assert tables[0] == tables[1] and len(tables[0]["X"]) == 120


def test_it_is_not_begun_where_processes_that_end_are_forgotten(few: Path, tmp_path: Path, begun: list[Any]) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        start(few, tmp_path / "cache")
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert begun == []
