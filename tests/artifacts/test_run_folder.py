"""The run folder as an object: what it refuses, what it removes, and when it counts as finished."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml
from filelock import FileLock, Timeout

from toolkit.artifacts.run_folder import FILES, LOCK, RunFolder
from toolkit.errors import ArtifactError
from toolkit.storage import TEMPORARY_PREFIX
from toolkit.training.best import BEST
from toolkit.training.checkpoints import LAST


def config(seed: int) -> dict[str, object]:
    """Return what tells a run's config from another program's."""
    return {"data": "photos", "out": "run", "strategy": "auto", "seed": seed}


def created(path: Path, config: dict[str, object], *, overwrite: bool) -> RunFolder:
    """Return a folder in which a run has begun."""
    folder = RunFolder(path)
    folder.check_free(overwrite=overwrite)
    folder.begin(config)
    return folder


def test_a_new_folder_holds_its_config_alone(tmp_path: Path) -> None:
    folder = created(tmp_path / "a/b", {"seed": 3, "data": "Größe"}, overwrite=False)
    assert [file.name for file in folder.path.iterdir()] == ["config.yaml"]
    assert folder.config() == {"seed": 3, "data": "Größe"}
    assert "Größe" in (folder.path / "config.yaml").read_text(encoding="utf-8")
    assert not folder.finished
    folder.write("metrics.json", {})
    assert folder.finished and RunFolder.open(folder.path).finished


def test_an_empty_folder_will_do_and_so_will_one_where_a_kill_left_a_temporary_file(tmp_path: Path) -> None:
    (tmp_path / f"{TEMPORARY_PREFIX}1234-config.yaml").write_text("half")
    assert created(tmp_path, config(1), overwrite=False).config() == config(1)


def test_overwriting_removes_what_a_run_writes_and_nothing_else(tmp_path: Path) -> None:
    folder = created(tmp_path / "run", config(1), overwrite=False)
    for name in (*FILES[1:], "mine.txt", "model/model.json", "model/model.safetensors", "checkpoints/last.ckpt"):
        (folder.path / name).parent.mkdir(exist_ok=True)
        (folder.path / name).write_text("old")
    created(folder.path, config(2), overwrite=True)
    assert sorted(file.name for file in folder.path.iterdir()) == ["config.yaml", "mine.txt"]
    assert folder.config() == config(2)


def test_the_proof_of_being_finished_goes_first_and_that_of_being_a_run_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = created(tmp_path / "run", config(1), overwrite=False)
    folder.write("metrics.json", {})
    removed: list[str] = []
    unlink = Path.unlink
    monkeypatch.setattr(
        Path, "unlink", lambda self, missing_ok=False: (removed.append(self.name), unlink(self, missing_ok))
    )
    created(folder.path, config(2), overwrite=True)
    assert removed[0] == "metrics.json"
    assert [name for name in removed if name in FILES or name.startswith("model.")][-1] == "config.yaml"


def test_checking_writes_nothing(tmp_path: Path) -> None:
    RunFolder(tmp_path / "new").check_free(overwrite=False)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "other.txt").write_text("x")
    with pytest.raises(ArtifactError, match="is not empty and holds no run"):
        RunFolder(tmp_path).check_free(overwrite=True)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    folder = created(tmp_path, config(1), overwrite=False)
    with pytest.raises(ArtifactError, match=r"plan.json cannot be read \(FileNotFoundError\)"):
        folder.read("plan.json")
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"plan.json cannot be read \(JSONDecodeError\)"):
        folder.read("plan.json")
    (tmp_path / "config.yaml").write_bytes(b"\xff")
    with pytest.raises(ArtifactError, match=r"config.yaml cannot be read \(UnicodeDecodeError\)"):
        folder.config()
    with pytest.raises(ArtifactError, match="holds no run"):
        RunFolder.open(tmp_path / "elsewhere")


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


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_config_of_another_program_is_no_run(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "config.yaml").write_text("lr: 1\n")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/epoch99.pt").write_text("precious")
    with pytest.raises(ArtifactError, match=r"config\.yaml that no run wrote"):
        created(tmp_path, config(1), overwrite=overwrite)
    assert (tmp_path / "config.yaml").read_text() == "lr: 1\n"
    assert (tmp_path / "checkpoints/epoch99.pt").read_text() == "precious"


def test_a_config_that_cannot_be_written_costs_no_run(tmp_path: Path) -> None:
    folder = created(tmp_path / "run", config(1), overwrite=False)
    folder.write("metrics.json", {})
    with pytest.raises(yaml.YAMLError):
        created(folder.path, {**config(2), "lr": object()}, overwrite=True)
    assert folder.finished and folder.config() == config(1)


def test_only_our_own_checkpoints_are_dropped(tmp_path: Path) -> None:
    folder = created(tmp_path / "run", config(1), overwrite=False)
    folder.checkpoints.mkdir()
    for name in (LAST, BEST, f"{TEMPORARY_PREFIX}12-{LAST}", "mine.pt"):
        (folder.checkpoints / name).write_text("x")
    folder.drop_checkpoints()
    assert [file.name for file in folder.checkpoints.iterdir()] == ["mine.pt"]


@pytest.fixture
def as_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a lock's file be one that cannot be removed as long as the lock is held."""
    unlink = Path.unlink

    def unlink_closed(path: Path, missing_ok: bool = False) -> None:
        if path.name == LOCK and path.exists():
            try:
                FileLock(path).acquire(timeout=0).lock.release()
            except Timeout:
                raise PermissionError(13, "used by another process") from None
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink_closed)


def test_the_lock_goes_when_it_is_given_back_where_an_open_file_cannot_be_removed(
    tmp_path: Path, as_on_windows: None
) -> None:
    folder = created(tmp_path / "run", config(1), overwrite=False)
    with folder.held():
        (folder.checkpoints / LAST).write_text("x")
        folder.drop_checkpoints()
        assert [file.name for file in folder.checkpoints.iterdir()] == [LOCK]
    assert folder.tidied
    with folder.held():  # nothing is dropped: the run is not at its end
        (folder.checkpoints / LAST).write_text("x")
    assert (folder.checkpoints / LAST).exists()


def test_a_lock_that_another_process_holds_cannot_be_dropped(tmp_path: Path, as_on_windows: None) -> None:
    folder = created(tmp_path / "run", config(1), overwrite=False)
    with folder.held(), pytest.raises(PermissionError):
        RunFolder.open(folder.path).drop_checkpoints()
    assert not folder.tidied


def test_giving_back_takes_no_lock_from_the_next_one(tmp_path: Path) -> None:
    folder = created(tmp_path / "run", config(1), overwrite=False)
    with ExitStack() as ending, ExitStack() as next_one:
        ending.enter_context(folder.held())
        folder.drop_checkpoints()
        assert folder.tidied, "the file goes while the lock is held"
        next_one.enter_context(RunFolder.open(folder.path).held())
        ending.close()
        with pytest.raises(ArtifactError, match="another process is working"), RunFolder.open(folder.path).held():
            raise AssertionError("held twice")
