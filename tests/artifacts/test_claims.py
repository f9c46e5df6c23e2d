"""A folder is claimed for a run: nobody else begins one in it, and what comes to nothing leaves no trace."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.artifacts.folders import config, created, finished, names
from toolkit.artifacts.run_folder import LOCK, RunFolder
from toolkit.errors import ArtifactError


def test_a_run_that_is_worked_on_is_neither_resumed_nor_overwritten(tmp_path: Path) -> None:
    folder = created(tmp_path / "run", config(0), overwrite=False)
    with folder.held():
        with pytest.raises(ArtifactError, match="another process is working"), RunFolder.open(folder.path).held():
            raise AssertionError("held twice")
        with pytest.raises(ArtifactError, match="another process is working"):
            created(folder.path, config(1), overwrite=True)
    assert folder.config() == config(0)
    with RunFolder.open(folder.path).held():  # free again
        pass
    assert created(folder.path, config(1), overwrite=True).config() == config(1)


def test_a_claim_that_comes_to_nothing_leaves_no_trace(tmp_path: Path) -> None:
    old, done = created(tmp_path / "old", config(1), overwrite=False), finished(tmp_path / "done", config(1))
    before = names(tmp_path)
    for path, overwrite in ((old.path, True), (done.path, True), (tmp_path / "new/deep/er", False)):
        with pytest.raises(KeyboardInterrupt), RunFolder(path).claimed(overwrite=overwrite):
            raise KeyboardInterrupt
        assert names(tmp_path) == before
    (tmp_path / "other.txt").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(ArtifactError, match="is not empty and holds no run"):
            created(tmp_path, config(1), overwrite=overwrite)
    assert names(tmp_path) == sorted([*before, "other.txt"])


def test_a_claim_that_was_killed_bars_nobody(tmp_path: Path) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/checkpoints" / LOCK).touch()
    assert created(tmp_path / "run", config(1), overwrite=False).config() == config(1)
    (tmp_path / "mine/checkpoints").mkdir(parents=True)
    with pytest.raises(ArtifactError, match="is not empty and holds no run"):
        created(tmp_path / "mine", config(1), overwrite=False)


def test_a_place_that_the_system_refuses_to_look_at_is_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ArtifactError, match="cannot be written"):
        created(tmp_path / ("x" * 300), config(1), overwrite=False)
    stat = os.stat

    def closed(path: Any, *args: Any, **more: Any) -> os.stat_result:
        if str(path).startswith(str(tmp_path / "closed/")):
            raise PermissionError(13, "Permission denied", path)
        return stat(path, *args, **more)

    def no_folder(path: Path, *args: Any, **more: Any) -> None:
        raise PermissionError(13, "Permission denied", path)

    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(os, "stat", closed)
    monkeypatch.setattr(Path, "mkdir", no_folder)
    with pytest.raises(ArtifactError, match=r"cannot be written \(Permission denied\)"):
        created(tmp_path / "closed/run", config(1), overwrite=False)


@pytest.mark.parametrize("overwrite", [False, True])
def test_from_the_check_on_nobody_else_begins(tmp_path: Path, overwrite: bool) -> None:
    path = tmp_path / "run"
    if overwrite:
        finished(path, config(0))
    folder = RunFolder(path)
    with folder.claimed(overwrite=overwrite):
        for begun in (False, True):
            with pytest.raises(ArtifactError, match="another process is working"):
                created(path, config(2), overwrite=overwrite or begun)
            if not begun:
                folder.begin(config(1))
        with pytest.raises(ArtifactError, match="already holds a run"):
            created(path, config(2), overwrite=False)
    assert folder.config() == config(1)


def test_what_another_run_did_before_the_lock_was_ours_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = RunFolder.held

    def after_another(folder: RunFolder) -> AbstractContextManager[None]:
        monkeypatch.setattr(RunFolder, "held", held)
        finished(tmp_path / "run", config(1))
        return held(folder)

    monkeypatch.setattr(RunFolder, "held", after_another)
    with pytest.raises(ArtifactError, match="already holds a run"):
        created(tmp_path / "run", config(2), overwrite=False)
    assert RunFolder.open(tmp_path / "run").config() == config(1)
    assert names(tmp_path / "run") == ["config.yaml", "metrics.json", "quarantine.csv"]


def test_a_run_that_was_replaced_before_it_was_held_is_not_gone_on_with(tmp_path: Path) -> None:
    folder = created(tmp_path / "run", config(1), overwrite=False)
    as_read = folder.config()
    folder.check_still(as_read)
    created(tmp_path / "run", config(2), overwrite=True)
    with folder.held(), pytest.raises(ArtifactError, match="another run was put in its place"):
        folder.check_still(as_read)


def test_no_run_is_removed_where_there_is_no_room_for_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = created(tmp_path / "run", config(1), overwrite=False)
    folder.write("metrics.json", {})
    write = Path.write_text

    def full(path: Path, text: str, **more: Any) -> int:
        if path.name.endswith("config.yaml"):
            raise OSError(28, "No space left on device")
        return write(path, text, **more)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ArtifactError, match=r"cannot be written \(No space left on device"):
        created(folder.path, config(2), overwrite=True)
    assert folder.finished and folder.config() == config(1)
