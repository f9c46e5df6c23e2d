"""The strategies on the store: a second run computes nothing, and nothing that is stored changes a result."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.photos import make_photos
from tests.tasks.small import run
from toolkit.backbones.backbone import Backbone
from toolkit.backbones.catalog import build_backbone
from toolkit.data.manifest import Manifest
from toolkit.data.scan import scan
from toolkit.data.split import assign_splits
from toolkit.errors import ArtifactError, SettingError
from toolkit.features import passes
from toolkit.features.request import Request
from toolkit.options import Options
from toolkit.plan import Recipe
from toolkit.tasks.cache import cache
from toolkit.tasks.job import Job, Stopwatch, plan_for
from toolkit.tasks.measure import counted
from toolkit.tasks.run import Run
from toolkit.tasks.training_pass import Fit, fit_to_disk, fitted


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return 24 photographs of three classes."""
    return make_photos(tmp_path / "photos", {"cat": 8, "dog": 8, "owl": 8})


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the list that grows by the number of images of every pass."""
    counts: list[int] = []
    compute = passes.compute

    def counted(request: Any, manifest: Any, rows: Any, *more: Any, **settings: Any) -> Any:
        counts.append(len(rows))
        return compute(request, manifest, rows, *more, **settings)

    monkeypatch.setattr("toolkit.features.store.compute", counted)
    return counts


def same(one: Run, other: Run) -> bool:
    """Return whether two runs gave the same predictions and the same weights."""
    files = ("predictions.csv", "model/model.safetensors")
    return all((one.path / file).read_bytes() == (other.path / file).read_bytes() for file in files)


STRATEGIES: list[tuple[str, dict[str, Any]]] = [
    ("head", {}),
    ("head", {"views": 3}),
    ("head", {"head": "knn", "folds": 3}),
    ("partial", {"views": 2, "epochs": 3}),
    ("partial", {"cut": 5, "taps": [3, 6, 7], "augment": "crop"}),
    ("full", {"epochs": 3}),
    ("scratch", {}),
]


@pytest.mark.parametrize(("strategy", "options"), STRATEGIES)
def test_cold_warm_and_uncached_runs_are_the_same(
    photos: Path, tmp_path: Path, computed: list[int], strategy: str, options: dict[str, Any]
) -> None:
    kept = {"cache_dir": str(tmp_path / "cache"), "precision": "32-true"}
    cold = run(photos, tmp_path / "cold", strategy, **kept, **options)
    assert sum(computed) >= 24
    computed.clear()
    warm = run(photos, tmp_path / "warm", strategy, **kept, **options)
    assert computed == [], "a second run over unchanged images computes nothing"
    live = run(photos, tmp_path / "live", strategy, cache=False, precision="32-true", **options)
    assert same(cold, warm) and same(cold, live)


def test_a_changed_and_a_new_file_cost_just_themselves(photos: Path, tmp_path: Path, computed: list[int]) -> None:
    kept = {"cache_dir": str(tmp_path / "cache")}
    run(photos, tmp_path / "first", **kept)
    computed.clear()
    shutil.copyfile(photos / "cat/000.jpg", photos / "cat/renamed.jpg")  # known by its content
    (photos / "cat/000.jpg").unlink()
    run(photos, tmp_path / "renamed", **kept)
    assert computed == []
    make_photos(photos, {"owl": 1}, seed=5)
    (photos / "owl/000.jpg").rename(photos / "owl/new.jpg")
    run(photos, tmp_path / "changed", **kept)
    assert computed == [1]


def test_without_cache_nothing_is_left(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    run(photos, tmp_path / "run", cache=False)
    assert not (tmp_path / "home").exists() and list((tmp_path / "tmp").iterdir()) == []


def test_a_cache_folder_that_cannot_be_is_one_line(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match=r"no cache can be kept here .*; choose another --cache_dir"):
        run(photos, tmp_path / "run", cache_dir=str(tmp_path / "file" / "cache"))


def test_a_platform_folder_that_cannot_be_costs_only_the_cache(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert run(photos, tmp_path / "run").metrics["val"]["n"] == 6
    assert "nothing is kept" in capsys.readouterr().err


class Disk:
    """A store without a disk: 24 images, 18 of which train; activations shrink by the cut."""

    def __init__(self, free: int) -> None:
        self.free = free

    def free_bytes(self) -> int:
        return self.free

    def missing_bytes(self, request: Request, manifest: Manifest, rows: Any) -> int:
        return len(rows) * request.views * {0: 1000, 5: 100, 6: 50, 7: 25}[request.cut or 0]


@pytest.mark.parametrize(
    ("free", "overridden", "cut", "views", "live"),
    [
        (18 * 8 * 100 + 6 * 100, (), 5, 8, False),
        (18 * 8 * 100 + 6 * 100 - 1, (), 5, 4, False),
        (18 * 2 * 100 + 6 * 100, (), 5, 2, False),
        (18 * 2 * 100 + 6 * 100 - 1, (), 6, 4, False),
        (18 * 2 * 25 + 6 * 25, (), 7, 2, False),
        (18 * 2 * 25 + 6 * 25 - 1, (), 5, 8, True),
        (18 * 2 * 100 + 6 * 100 - 1, ("cut",), 5, 8, True),
        (18 * 8 * 50 + 6 * 50, ("views",), 6, 8, False),
        (18 * 8 * 100 + 6 * 100 - 1, ("cut", "views"), 5, 8, True),
        (0, (), 5, 8, True),
    ],
)
def test_a_full_disk_costs_views_then_stages_then_time(
    photos: Path, free: int, overridden: tuple[str, ...], cut: int, views: int, live: bool
) -> None:
    manifest = assign_splits(scan(photos), val=0.25)
    options = Options(strategy="partial", image_size=32, device="cpu", precision="32-true")
    backbone = build_backbone("efficientnet_lite0", pretrained=False, image_size_px=32)
    job = Job(options, backbone, Disk(free), Stopwatch())  # type: ignore[arg-type]
    plan = replace(plan_for(counted(manifest, job), options, backbone), cut=5, views=8, overridden=overridden)
    fit = fit_to_disk(job, plan, manifest)
    assert (fit.cut, fit.views, fit.live) == (cut, views, live)
    assert (fit.reason is None) == ((cut, views, live) == (5, 8, False))
    after = fitted(plan, fit)
    assert (after.cut, after.views, after.freeze_spec().cut) == (
        cut,
        views,
        cut if cut != 5 else plan.freeze_spec().cut,
    )
    if fit.reason is not None:
        assert fit.reason in after.reasons and "cache's disk" in fit.reason


def test_a_full_disk_costs_no_stages_without_which_the_recipe_cannot_be(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def able(backbone: Backbone, recipe: Recipe, cut: int) -> None:
        if cut > 5:
            raise SettingError("drop_path: no stage that trains has blocks that can be skipped")

    options = Options(strategy="partial", cut=5, drop_path=0.1, image_size=32, device="cpu", precision="32-true")
    backbone = replace(build_backbone("efficientnet_lite0", pretrained=False, image_size_px=32), name="timm's")
    monkeypatch.setattr("toolkit.tasks.job.check_able", able)
    monkeypatch.setattr("toolkit.tasks.training_pass.check_able", able)
    manifest = assign_splits(scan(photos), val=0.25)
    job = Job(options, backbone, Disk(18 * 2 * 50 + 6 * 50), Stopwatch())  # type: ignore[arg-type]  # cut 6 would do
    plan = replace(plan_for(counted(manifest, job), options, backbone), overridden=())
    assert fit_to_disk(job, plan, manifest).live


@pytest.mark.parametrize(("cut", "kept"), [(5, 3), (6, 2), (7, 1)])
def test_stages_that_still_train_keep_the_rates_of_the_plan(photos: Path, cut: int, kept: int) -> None:
    options = Options(strategy="partial", cut=5, layer_decay=0.8, image_size=32, device="cpu", precision="32-true")
    backbone = build_backbone("efficientnet_lite0", pretrained=False, image_size_px=32)
    job = Job(options, backbone, Disk(0), Stopwatch())  # type: ignore[arg-type]
    plan = plan_for(counted(assign_splits(scan(photos), val=0.25), job), options, backbone)
    after = fitted(plan, Fit(cut, plan.views, reason="the disk is short"))
    assert after.multipliers == (*(0.0,) * cut, *(pytest.approx(0.8**below) for below in range(kept, 0, -1)), 1.0)
    by_hand = replace(plan, multipliers=(*(0.0,) * 5, 0.3, 0.02, 0.5, 2.0))
    assert fitted(by_hand, Fit(7, 2, reason="the disk is short")).multipliers == (*(0.0,) * 7, 0.5, 2.0)


def test_without_room_a_tail_trains_all_the_same(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {"cache_dir": str(tmp_path / "cache"), "precision": "32-true"}
    stored = run(photos, tmp_path / "stored", "partial", **kept)
    run(photos, tmp_path / "probe", "head", cache_dir=str(tmp_path / "other"), precision="32-true")
    monkeypatch.setattr("toolkit.tasks.prepare._probe_cut", lambda plan, job: None)  # the probe is there already
    monkeypatch.setattr("toolkit.features.store.FeatureStore.free_bytes", lambda store: 0)
    live = run(photos, tmp_path / "live", "partial", **{**kept, "cache_dir": str(tmp_path / "other")})
    assert "the frozen stages run anew" in capsys.readouterr().err
    assert same(stored, live)


def test_folds_are_printed_and_written(photos: Path, tmp_path: Path) -> None:
    found = run(photos, tmp_path / "run", folds=3)
    folds = found.metrics["folds"]
    assert (folds["k"], folds["n"]) == (3, 24) and len(folds["accuracies"]) == 3 * folds["repeats"]
    low, high = folds["accuracy_ci95"]
    assert 0 <= low <= folds["accuracy"] <= high <= 1
    assert folds["accuracy"] == pytest.approx(np.mean(folds["accuracies"]))
    assert f"folds: accuracy {folds['accuracy']:.3f} (95 % interval" in str(found)
    with pytest.raises(SettingError, match="folds is not used by the strategy 'partial'"):
        run(photos, tmp_path / "other", "partial", folds=3)


def test_what_the_validation_images_were_used_for_is_said(photos: Path, tmp_path: Path) -> None:
    assert "nothing was chosen by these images" in str(run(photos, tmp_path / "one", "partial"))
    assert "chose the epoch" in str(run(photos, tmp_path / "two", "partial", patience=1))


@pytest.mark.parametrize("kind", ["ridge", "logistic", "knn"])
def test_a_head_that_was_asked_for_is_taken(photos: Path, tmp_path: Path, kind: str) -> None:
    plan = run(photos, tmp_path / "run", head=kind).plan
    assert plan.head == kind and {probe["head"] for probe in plan.probes} == {kind}
    assert all(0 <= probe["accuracy"] <= 1 for probe in plan.probes)
    assert any(kind in reason for reason in plan.reasons)


def test_neighbours_cannot_be_trained_on(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="knn cannot be trained further"):
        run(photos, tmp_path / "run", "partial", head="knn")
    with pytest.raises(SettingError, match="sees the clean view alone"):
        run(photos, tmp_path / "run", "head", augment="crop")
    assert not (tmp_path / "run").exists()


def test_the_cache_is_shown_and_made_smaller(photos: Path, tmp_path: Path) -> None:
    kept = {"cache_dir": str(tmp_path / "cache")}
    run(photos, tmp_path / "one", **kept)
    run(photos, tmp_path / "two", image_size=40, **kept)
    shown = cache(cache_dir=kept["cache_dir"])
    assert [(one.backbone, one.n_shards) for one in shown.kept] == [("efficientnet_lite0", 1)] * 2
    assert {one.image_size_px for one in shown.kept} == {32, 40}
    assert "efficientnet_lite0 at 40 px" in str(shown) and shown.to_dict()["bytes"] > 1_000
    whole = shown.to_dict()["bytes"]
    half = cache(limit=str(whole - 1), cache_dir=kept["cache_dir"])
    assert 0 < half.to_dict()["bytes"] < whole and half.removed_bytes + half.to_dict()["bytes"] == whole
    assert half.kept[0].n_shards + half.kept[1].n_shards == 1, "the longest unused went first"
    assert next(one for one in half.kept if one.n_shards).image_size_px == 40
    assert cache(limit="0", cache_dir=kept["cache_dir"]).to_dict()["bytes"] == 0
    again = run(photos, tmp_path / "three", **kept)
    assert again.metrics["val"]["n"] == 6
    for limit in ("many", "-1", "5XB", "9" * 400, 10**400, "9" * 300 + "TB"):
        with pytest.raises(SettingError, match="limit: a size such as 5GB"):
            cache(limit=limit, cache_dir=kept["cache_dir"])
    assert str(cache(cache_dir=str(tmp_path / "none"))).startswith("  nothing")


def test_a_tail_never_starts_from_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from toolkit.tasks import prepare

    asked: list[str] = []
    choose = prepare.choose_head

    def noted(*arguments: Any, kind: str, **settings: Any) -> Any:
        asked.append(kind)
        return choose(*arguments, kind=kind, **settings)

    monkeypatch.setattr(prepare, "choose_head", noted)
    photos = make_photos(tmp_path / "photos", {"cat": 6, "dog": 6})
    for strategy in ("head", "partial", "full"):
        found = run(photos, tmp_path / strategy, strategy)
        assert strategy == "head" or "knn" not in {probe["head"] for probe in found.plan.probes}
    assert asked == ["auto", "linear", "linear"]


def test_a_disk_too_small_for_the_first_pass_of_a_tail_is_no_error(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from toolkit.features.store import FeatureStore

    stored = run(photos, tmp_path / "one", "partial", precision="32-true", cache_dir=str(tmp_path / "cache"))
    pooled_alone = 24 * 4 * (112 + 192 + 320 + 1280) + 2_000
    monkeypatch.setattr(FeatureStore, "free_bytes", lambda store: pooled_alone)
    found = run(photos, tmp_path / "two", "partial", precision="32-true", cache_dir=str(tmp_path / "other"), cut=4)
    assert found.metrics["val"]["n"] == stored.metrics["val"]["n"] == 6
