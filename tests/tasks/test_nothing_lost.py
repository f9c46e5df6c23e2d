"""What a verb refuses, and what it writes, costs nothing that was there before."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import toolkit
from tests.photos import make_photos
from tests.tasks.conftest import Runs
from tests.tasks.small import SMALL, run
from toolkit.artifacts.run_folder import RunFolder
from toolkit.cli import main
from toolkit.errors import ArtifactError, DataError, SettingError
from toolkit.features import passes
from toolkit.features.mapped import SPARE_BYTES
from toolkit.features.passes import NoRoomError
from toolkit.features.store import FeatureStore
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


@pytest.mark.parametrize("verb", ["finetune", "plan", "check", "features", "baseline", "search"])
def test_a_cache_among_the_photos_is_refused(
    verb: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "link").symlink_to(data)
    before = content(tmp_path)
    out = {"plan": [], "check": [], "features": ["--out", str(tmp_path / "x.npz")]}.get(
        verb, ["--out", str(tmp_path / "run")]
    )
    for cache in (data, data / "cache", tmp_path / "link/cat/deep", tmp_path / "x/../data/cache"):
        assert main([verb, str(data), *out, "--cache_dir", str(cache), "--workers", "0"]) == 1
        told = "lies inside the folder of photos, which is only read; choose another --cache_dir"
        assert capsys.readouterr().err == f"error: {cache} {told}\n"
    assert content(tmp_path) == before


def test_a_cache_beside_the_photos_will_do(data: Path, tmp_path: Path) -> None:
    for cache in (tmp_path / "data-cache", tmp_path):
        assert toolkit.extract_features(str(data), cache_dir=str(cache), **SMALL).shape[0] == 8
    with pytest.raises(ArtifactError, match="no cache can be kept here"):
        toolkit.extract_features(str(data), cache_dir=str(tmp_path / "a\0b"), **SMALL)


def test_a_cache_may_lie_in_the_run_folder(data: Path, tmp_path: Path) -> None:
    def again(out: Path, cache: Path, overwrite: bool) -> Run:
        return run(data, out, overwrite=overwrite, cache_dir=str(cache))

    for overwrite in (False, True):
        assert again(tmp_path / "a", tmp_path / "a/cache", overwrite).metrics["train"]["n"] == 6
        assert again(tmp_path / "b", tmp_path / "b", overwrite).metrics["train"]["n"] == 6


@pytest.mark.parametrize("step", ["open_store", "say"])
@pytest.mark.parametrize("verb", ["finetune", "baseline"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_nobody_begins_in_a_folder_that_another_process_begins_in(
    runs: Runs, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, verb: str, overwrite: bool
) -> None:
    """Another process comes along right before a run begins, or right after it has."""
    out = tmp_path / "run"
    if overwrite:
        shutil.copytree(runs("head").path, out)
    place = f"toolkit.tasks.{'run' if verb == 'finetune' else 'baseline_run'}"
    plain = getattr(importlib.import_module(place), step)

    def go() -> None:
        if verb == "finetune":
            run(data, out, overwrite=overwrite)
        else:
            train_baseline(str(data), out=str(out), overwrite=overwrite, workers=0, device="cpu", epochs=1)

    def and_another_comes(*arguments: Any, **more: Any) -> Any:
        monkeypatch.setattr(f"{place}.{step}", plain)
        with pytest.raises(ArtifactError, match=r"another process is working|already holds a run"):
            go()
        return plain(*arguments, **more)

    monkeypatch.setattr(f"{place}.{step}", and_another_comes)
    go()
    assert getattr(importlib.import_module(place), step) is plain, "it came"
    assert RunFolder(out).finished and RunFolder(out).tidied


@pytest.mark.parametrize("verb", ["finetune", "baseline"])
def test_a_folder_with_a_config_for_a_run_is_no_run(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    """What a person keeps beside a config for --config stays as it is, whatever it is called."""
    mine = tmp_path / "mine"
    (mine / "checkpoints").mkdir(parents=True)
    values = {"data": str(data), "out": str(mine), "seed": 0, "workers": 0, "device": "cpu", "pictures": False}
    values |= {"strategy": "head", "image_size": 32} if verb == "finetune" else {"model": "softmax"}
    (mine / "config.yaml").write_text(yaml.safe_dump(values))
    for name in ("predictions.csv", "history.csv", "checkpoints/last.ckpt"):
        (mine / name).write_text("precious")
    before = content(mine)
    for more in (("--config", str(mine / "config.yaml"), "--overwrite"), ("--resume", str(mine))):
        assert main([verb, *more]) == 1
        assert "config.yaml that no run wrote" in capsys.readouterr().err
        assert content(mine) == before


def plain_layers() -> list[nn.Module]:
    """Return stages without a block that can be skipped, of which the second gives no map but tokens."""
    tokens = nn.Sequential(nn.Conv2d(4, 4, 3, 4), nn.Flatten(2), Transposed())
    return [nn.Conv2d(3, 4, 3, 4), tokens, nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 8)]


class Transposed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2)


@pytest.mark.parametrize(
    ("told", "given"),
    [
        ("drop_path: no stage", {"strategy": "full", "drop_path": 0.1}),
        ("drop_path: no stage", {"strategy": "partial", "drop_path": 0.0}),
        ("drop_path: no stage", {"drop_path": 0.1}),
        ("drop_path: no stage", {"strategy": "scratch", "drop_path": 0.1, "backbone": "resnet20"}),
        ("cutmix: nothing to cut from", {"strategy": "partial", "cut": 2, "cutmix": 1.0}),
        ("cutmix: nothing to cut from", {"strategy": "partial", "cut": 2, "cutmix": 1.0, "mixup": 0.2}),
        ("cutmix: nothing to cut from", {"cut": 2, "cutmix": 1.0}),
        ("mixup is not used by the strategy 'head'", {"strategy": "head", "mixup": 0.2}),
        ("unfreeze: a stage that begins to learn", {"strategy": "full", "epochs": 2, "unfreeze": 2}),
        ("taps: distinct stages", {"taps": [9]}),
    ],
)
def test_what_a_network_cannot_do_costs_no_run(
    runs: Runs, data: Path, tmp_path: Path, told: str, given: dict[str, Any]
) -> None:
    out = Path(shutil.copytree(runs("head").path, tmp_path / "run"))
    before = content(tmp_path)
    settings: dict[str, Any] = {"backbone": plain_layers(), "workers": 0, "device": "cpu", **given}
    for where, overwrite in ((out, True), (tmp_path / "new", False)):
        with pytest.raises(SettingError, match=told):
            toolkit.finetune(str(data), out=str(where), overwrite=overwrite, **settings)
    assert content(tmp_path) == before


def test_features_that_a_network_does_not_have_cost_no_baseline(runs: Runs, data: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(runs("head").path, tmp_path / "run"))
    before = content(tmp_path)
    for where, overwrite in ((out, True), (tmp_path / "new", False)):
        settings: dict[str, Any] = {"on": "features", "taps": [9], "image_size": 32, "workers": 0, "device": "cpu"}
        with pytest.raises(SettingError, match="taps: distinct stages from 0 to 7 expected"):
            train_baseline(str(data), out=str(where), overwrite=overwrite, **settings)
    assert content(tmp_path) == before


def test_an_evaluation_that_ends_in_a_line_replaces_no_table(
    runs: Runs, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **more: Any) -> Any:
        raise DataError("none of the images can be read any more")

    out = tmp_path / "scores"
    toolkit.evaluate(str(runs("head").path), str(photos), out=str(out), robustness=True, workers=0)
    before = content(tmp_path)
    for what in ("toolkit.scores.score", "toolkit.evaluation.robustness.robustness"):
        with monkeypatch.context() as patched:
            patched.setattr(what, refuse)
            with pytest.raises(DataError, match="none of the images"):
                settings: dict[str, Any] = {"robustness": True, "overwrite": True, "split": "all", "workers": 0}
                toolkit.evaluate(str(runs("head").path), str(photos), out=str(out), **settings)
        assert content(tmp_path) == before


BASELINE = {"workers": 0, "device": "cpu", "epochs": 1, "pictures": False}
AN_IMAGE = 4 * (112 + 192 + 320 + 1280)  # bytes of the pooled features of the last four stages
ALL_STAGES = AN_IMAGE + 4 * (16 + 24 + 40 + 80)  # which are stored where there is twice the room for them


@pytest.mark.parametrize(
    ("free", "verb", "given"),
    [
        (8 * AN_IMAGE - 1, "finetune", {"strategy": "head"}),
        (8 * AN_IMAGE, "finetune", {"strategy": "auto"}),  # which wants all stages
        (8 * AN_IMAGE - 1, "finetune", {"strategy": "partial"}),
        (8 * AN_IMAGE - 1, "finetune", {"strategy": "full"}),
        (8 * ALL_STAGES + 6 * 2 * AN_IMAGE - 1, "finetune", {"strategy": "head", "views": 3}),
        (8 * ALL_STAGES + 8 * 2 * AN_IMAGE - 1, "finetune", {"strategy": "head", "views": 3, "folds": 2}),
        (8 * AN_IMAGE, "finetune", {"strategy": "head", "backbone": "auto"}),
        (8 * 3 * 32**2 - 1, "baseline", {}),
        (8 * 4 * 1280 - 1, "baseline", {"on": "features", "image_size": 32}),
    ],
)
def test_a_full_disk_costs_no_run(
    runs: Runs, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, verb: str, given: dict[str, Any]
) -> None:
    out = Path(shutil.copytree(runs("head").path, tmp_path / "run"))
    (tmp_path / "cache/models").mkdir(parents=True)
    before = content(tmp_path)
    monkeypatch.setattr(FeatureStore, "free_bytes", lambda store: free)
    for where, overwrite in ((out, True), (tmp_path / "new", False)):
        for cache in (tmp_path / "cache", *(() if overwrite else (where / "cache",))):
            with pytest.raises(NoRoomError, match="are needed for the features"):
                if verb == "finetune":
                    run(data, where, overwrite=overwrite, cache_dir=str(cache), **given)
                else:
                    settings = {**BASELINE, "cache_dir": str(cache), **given}
                    train_baseline(str(data), out=str(where), overwrite=overwrite, **settings)
            assert content(tmp_path) == before


def test_a_disk_without_room_for_the_rows_of_a_baseline_costs_no_run(
    runs: Runs, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(runs("head").path, tmp_path / "run"))
    settings = {**BASELINE, "cache_dir": str(tmp_path / "cache")}
    train_baseline(str(data), out=str(tmp_path / "one"), on="hog", **settings)
    before, usage = content(tmp_path), shutil.disk_usage(tmp_path)
    rows = 8 * 3 * 32**2 + 8 * 4 * 332  # pixels, all of which are stored, and what is made of them
    for needed in (1, rows):
        free = needed - 1 + SPARE_BYTES
        with monkeypatch.context() as patched, pytest.raises(ArtifactError, match="no room for 0 MB; make room"):
            patched.setattr(shutil, "disk_usage", lambda path, free=free: usage._replace(free=free))
            train_baseline(str(data), out=str(out), on="hog", overwrite=True, **settings)
        assert content(tmp_path) == before


def test_what_is_stored_needs_no_room(runs: Runs, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"views": 3, "cache_dir": str(tmp_path / "cache")}
    first = run(data, tmp_path / "run", **settings)
    monkeypatch.setattr(FeatureStore, "free_bytes", lambda store: 0)
    again = run(data, tmp_path / "run", overwrite=True, **settings)
    assert again.metrics["val"] == first.metrics["val"]


@pytest.mark.parametrize(
    ("views", "folds", "room"),
    [
        (1, None, 8 * AN_IMAGE),
        (3, None, 8 * ALL_STAGES + 6 * 2 * AN_IMAGE),
        (3, 2, 8 * ALL_STAGES + 8 * 2 * AN_IMAGE),
    ],
)
def test_a_disk_with_just_enough_room_will_do(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, views: int, folds: int | None, room: int
) -> None:
    """The very bytes are counted: nothing is refused that could be stored."""
    used = [0]
    monkeypatch.setattr(FeatureStore, "free_bytes", lambda store: room - used[0])
    compute = passes.compute

    def counted(request: Any, manifest: Any, rows: Any, wanted: Any, *more: Any, **settings: Any) -> Any:
        used[0] += int(wanted.sum()) * request.bytes_per_view
        return compute(request, manifest, rows, wanted, *more, **settings)

    monkeypatch.setattr("toolkit.features.store.compute", counted)
    cache = str(tmp_path / "cache")
    assert run(data, tmp_path / "run", cache_dir=cache, views=views, folds=folds).metrics["used"] == 8
    assert used[0] == room
