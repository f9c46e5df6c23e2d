"""A trial that is stopped anywhere and gone on with ends with the same weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.tasks.trials import (  # fixtures among them
    STEPS,
    TRIAL_STEPS,
    Killed,
    assert_same,
    go,
    half,
    narrow,
    photos,
    resumed,
    stop_at,
    undisturbed,
)
from toolkit.errors import ArtifactError, Interrupted
from toolkit.tasks import run as run_module
from toolkit.tasks import tail, trial
from toolkit.tasks.run import Run

__all__ = ["half", "photos", "undisturbed"]


@pytest.mark.usefixtures("half")
@pytest.mark.parametrize(
    ("step", "how"),
    [
        (3, "kill"),
        (9, "signal"),
        (TRIAL_STEPS - 1, "signal"),
        (TRIAL_STEPS, "kill"),
        (TRIAL_STEPS + 11, "signal"),
        (TRIAL_STEPS + 11, "kill"),
        (TRIAL_STEPS + STEPS - 1, "signal"),
    ],
)
def test_stopped_in_a_step_and_resumed_a_run_ends_the_same(
    photos: Path, tmp_path: Path, undisturbed: Run, step: int, how: str
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        stop_at(step, how, patched)
        with pytest.raises((Interrupted, Killed)):
            go(photos, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "start.safetensors").is_file()
    torch.manual_seed(99)  # nothing may hang on what the process drew before
    assert_same(resumed(tmp_path / "run"), undisturbed)


@pytest.mark.usefixtures("half")
def test_images_that_hold_something_else_and_other_weights_are_not_gone_on_with(photos: Path, tmp_path: Path) -> None:
    mine = shutil.copytree(photos, tmp_path / "photos")
    with pytest.MonkeyPatch.context() as patched:
        stop_at(3, "signal", patched)
        with pytest.raises(Interrupted):
            go(mine, tmp_path / "run")
    files = sorted((mine / "cat").iterdir())
    first, second = files[0].read_bytes(), files[1].read_bytes()
    files[0].write_bytes(second)
    with pytest.raises(ArtifactError, match="images hold something else than when this run began"):
        resumed(tmp_path / "run")
    files[0].write_bytes(first)

    def others() -> list[nn.Module]:
        stages = narrow()
        with torch.no_grad():
            next(stages[0].parameters()).mul_(1.001)
        return stages

    with pytest.raises(ArtifactError, match="its weights are others than when this run began"):
        resumed(tmp_path / "run", others)
    assert resumed(tmp_path / "run").metrics["val"]["accuracy"] is not None


@pytest.mark.usefixtures("half")
@pytest.mark.parametrize(
    ("room", "name", "after"),
    [
        (tail, "start_row", False),
        (trial, "judge", False),
        (trial, "judge", True),
        (run_module, "score", False),
        (run_module, "publish_results", True),
    ],
    ids=["between the starting weights", "after the trial", "after the verdict", "before scoring", "after publishing"],
)
def test_stopped_between_the_trainings_and_resumed_a_run_ends_the_same(
    photos: Path, tmp_path: Path, undisturbed: Run, room: Any, name: str, after: bool
) -> None:
    whole = getattr(room, name)

    def stops(*arguments: Any, **settings: Any) -> Any:
        if after:
            whole(*arguments, **settings)
        raise Killed

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(room, name, stops)
        with pytest.raises(Killed):
            go(photos, tmp_path / "run")
    torch.manual_seed(99)
    assert_same(resumed(tmp_path / "run"), undisturbed)


@pytest.mark.usefixtures("half")
def test_stopped_many_times_a_run_ends_the_same(photos: Path, tmp_path: Path, undisturbed: Run) -> None:
    for number, step in enumerate((5, 5, 5, 5, 5)):
        with pytest.MonkeyPatch.context() as patched:
            stop_at(step, "signal", patched)
            with pytest.raises(Interrupted):
                resumed(tmp_path / "run") if number else go(photos, tmp_path / "run")
    assert_same(resumed(tmp_path / "run"), undisturbed)


@pytest.mark.usefixtures("half")
def test_without_a_cache_the_verdict_and_the_weights_are_the_same(
    photos: Path, tmp_path: Path, undisturbed: Run
) -> None:
    live = go(photos, tmp_path / "run", cache=False, cache_dir=None)
    assert_same(live, undisturbed)
    whole = {"strategy": "full", "cut": None}  # which stores sources, and not views
    assert_same(go(photos, tmp_path / "a", **whole, cache=False, cache_dir=None), go(photos, tmp_path / "b", **whole))


@pytest.mark.usefixtures("half")
def test_resumed_without_a_cache_a_run_ends_the_same(photos: Path, tmp_path: Path, undisturbed: Run) -> None:
    with pytest.MonkeyPatch.context() as patched:
        stop_at(TRIAL_STEPS + 3, "signal", patched)
        with pytest.raises(Interrupted):
            go(photos, tmp_path / "run", cache=False, cache_dir=None)
    assert_same(resumed(tmp_path / "run"), undisturbed)
