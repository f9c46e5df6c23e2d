"""The run folder as an object: what it refuses, what it removes, and when it counts as finished."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml
from filelock import FileLock, Timeout

from tests.artifacts.folders import config, created, names
from toolkit.artifacts.run_folder import FILES, LOCK, RunFolder
from toolkit.errors import ArtifactError
from toolkit.storage import TEMPORARY_PREFIX
from toolkit.training.best import BEST
from toolkit.training.checkpoints import LAST


def test_a_new_folder_holds_its_config_and_its_lock(tmp_path: Path) -> None:
    folder = created(tmp_path / "a/b", {"seed": 3, "data": "Größe"}, overwrite=False)
    assert names(folder.path) == ["checkpoints", "checkpoints/run.lock", "config.yaml"]
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
    assert names(folder.path) == ["checkpoints", "checkpoints/run.lock", "config.yaml", "mine.txt"]
    assert folder.config() == config(2)


def test_the_proof_of_being_finished_goes_first_and_that_of_being_a_run_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = created(tmp_path / "run", config(1), overwrite=False)
    folder.write("metrics.json", {})
    removed: list[str] = []
    unlink = Path.unlink

    def noted(path: Path, missing_ok: bool = False) -> None:
        if not path.name.startswith(TEMPORARY_PREFIX):
            assert folder.config() == config(1) and (folder.checkpoints / LOCK).exists()
            removed.append(path.name)
        unlink(path, missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", noted)
        created(folder.path, config(2), overwrite=True)
    assert removed[0] == "metrics.json" and "config.yaml" not in removed
    assert folder.config() == config(2)


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


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_config_of_another_program_is_no_run(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "config.yaml").write_text("lr: 1\n")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/epoch99.pt").write_text("precious")
    with pytest.raises(ArtifactError, match=r"config\.yaml that no run wrote"):
        created(tmp_path, config(1), overwrite=overwrite)
    assert (tmp_path / "config.yaml").read_text() == "lr: 1\n"
    assert (tmp_path / "checkpoints/epoch99.pt").read_text() == "precious"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_config_that_a_person_wrote_is_no_run(tmp_path: Path, overwrite: bool) -> None:
    """It has all that a run's has, and the files beside it have names that a run's have, too."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config(1)))
    for name in ("metrics.json", "history.csv", "checkpoints/last.ckpt", "model/model.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("precious")
    before = {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ArtifactError, match=r"config\.yaml that no run wrote"):
        created(tmp_path, config(2), overwrite=overwrite)
    assert {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("trace", ["quarantine.csv", "trained_on.csv", f"checkpoints/{LOCK}"])
def test_a_run_is_known_by_what_every_run_leaves(tmp_path: Path, trace: str) -> None:
    folder = created(tmp_path / "run", config(1), overwrite=False)
    folder.drop_checkpoints()
    (folder.path / trace).parent.mkdir(exist_ok=True)
    (folder.path / trace).touch()
    folder.check_own()
    assert created(folder.path, config(2), overwrite=True).config() == config(2)


def test_what_no_run_left_is_not_gone_on_with(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config(1)))
    (tmp_path / "mine.txt").touch()
    folder.check_own()  # a run would replace nothing
    for name in ("predictions.csv", "model/model.json", "checkpoints/last.ckpt", "checkpoints/trial/best.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
        with pytest.raises(ArtifactError, match=f"no run wrote, beside {name}"):
            folder.check_own()
        (tmp_path / name).unlink()


def test_only_our_own_events_are_removed(tmp_path: Path) -> None:
    folder = created(tmp_path / "run", config(1), overwrite=False)
    for name in ("history", "trial2_again", "mine"):
        (folder.path / "tensorboard" / name).mkdir(parents=True)
        (folder.path / "tensorboard" / name / "events.out.tfevents.1").touch()
    created(folder.path, config(2), overwrite=True)
    assert names(folder.path / "tensorboard") == ["mine", "mine/events.out.tfevents.1"]


def test_a_config_that_cannot_be_written_costs_no_run(tmp_path: Path) -> None:
    folder = created(tmp_path / "run", config(1), overwrite=False)
    folder.write("metrics.json", {})
    with pytest.raises(yaml.YAMLError):
        created(folder.path, {**config(2), "lr": object()}, overwrite=True)
    assert folder.finished and folder.config() == config(1)


def test_only_our_own_checkpoints_are_dropped(tmp_path: Path) -> None:
    folder = created(tmp_path / "run", config(1), overwrite=False)
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


def test_a_claim_that_comes_to_nothing_leaves_no_trace_there_either(tmp_path: Path, as_on_windows: None) -> None:
    with pytest.raises(KeyboardInterrupt), RunFolder(tmp_path / "a/run").claimed(overwrite=False):
        raise KeyboardInterrupt
    assert names(tmp_path) == []


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
