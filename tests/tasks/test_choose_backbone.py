"""`--backbone auto`: the networks that are here are compared by what a head makes of them, and by their work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import toolkit
from tests.tasks.small import SMALL, run
from toolkit.backbones.backbone import Backbone
from toolkit.errors import SettingError
from toolkit.options import Options
from toolkit.plan import Recipe
from toolkit.planning.probes import Probe
from toolkit.tasks import choose_backbone as room
from toolkit.tasks.plan import plan_transfer

NAMES = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
Pretend = Callable[..., None]


@pytest.fixture()
def pretend(monkeypatch: pytest.MonkeyPatch) -> Pretend:
    """Return a function that has networks be here, with random weights, and heads on them be right so often."""
    from toolkit.tasks import job

    def open_random(options: Options, *, pretrained: bool = True) -> Backbone:
        return job.open_backbone(options, pretrained=options.backbone == NAMES[0])

    def here(*accuracies: float) -> None:
        found = dict(zip(NAMES, accuracies, strict=False))

        def probes_of(manifest: object, stored: object, job: job.Job) -> tuple[Probe, ...]:
            return (Probe((7,), found[job.backbone.name], 0.02, 0.5, 100),)

        monkeypatch.setattr(room, "local_backbones", lambda: tuple(found))
        monkeypatch.setattr(room, "open_backbone", open_random)
        monkeypatch.setattr(room, "probes_of", probes_of)

    return here


def test_the_default_is_always_here_and_what_has_no_weights_is_not() -> None:
    names = room.local_backbones()
    assert names[0] == "efficientnet_lite0" and len(set(names)) == len(names)
    assert "resnet20" not in names and not any(name.startswith("timm/") for name in names)


@pytest.mark.parametrize(
    ("accuracies", "chosen"),
    [
        ((0.80, 0.90, 0.95), NAMES[2]),
        ((0.80, 0.94, 0.95), NAMES[1]),  # within a standard error of the best, with less work
        ((0.94, 0.90, 0.95), NAMES[0]),
        ((0.80,), NAMES[0]),
    ],
)
def test_the_least_work_within_a_standard_error_of_the_best_is_taken(
    photos: Path, pretend: Pretend, accuracies: tuple[float, ...], chosen: str
) -> None:
    pretend(*accuracies)
    plan = plan_transfer(str(photos), backbone="auto", **SMALL)
    assert plan.backbone == chosen
    told = next(reason for reason in plan.reasons if reason.startswith("backbone: "))
    assert f"{chosen} {accuracies[NAMES.index(chosen)]:.3f}" in told
    assert all(f"{name} {accuracy:.3f}" in told for name, accuracy in zip(NAMES, accuracies, strict=False))


def test_one_that_is_beyond_the_budget_takes_no_part(
    photos: Path, pretend: Pretend, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(0.5, 0.9)
    assert plan_transfer(str(photos), backbone="auto", budget=0, **SMALL).backbone == NAMES[0]
    assert "efficientnet_lite1: takes no part" in capsys.readouterr().err


def test_without_probes_the_default_is_taken(photos: Path, pretend: Pretend, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(0.5, 0.9)
    monkeypatch.setattr(room, "probes_of", lambda *_: ())
    plan = plan_transfer(str(photos), backbone="auto", **SMALL)
    assert plan.backbone == NAMES[0]
    assert "backbone: efficientnet_lite0, the default one: no stage could be probed" in plan.reasons


def test_a_run_keeps_what_it_chose(photos: Path, tmp_path: Path, pretend: Pretend) -> None:
    done = run(photos, tmp_path / "run", "auto", backbone="auto")
    assert done.plan.backbone == "efficientnet_lite0" and done.metrics["backbone"] == "efficientnet_lite0"
    config = yaml.safe_load((done.path / "config.yaml").read_text(encoding="utf-8"))
    assert config["backbone"] == "auto"
    assert toolkit.finetune(resume=str(done.path)).plan == done.plan
    records = list(toolkit.predict(str(done.path), [str(next(photos.rglob("*.jpg")))]))
    assert records[0]["label"] in done.metrics["classes"]


def test_a_resumed_run_goes_on_with_the_backbone_of_its_plan(photos: Path, tmp_path: Path, pretend: Pretend) -> None:
    pretend(0.5, 0.9)
    options = Options(backbone="auto", **SMALL)
    from toolkit.data.scan import scan
    from toolkit.tasks.job import Stopwatch
    from toolkit.tasks.stores import open_store

    with open_store(True, str(tmp_path)) as store:
        job = room.open_job(options, scan(photos), store, Stopwatch(), known=NAMES[0])
    assert job.backbone.name == job.options.backbone == NAMES[0]


def test_what_does_not_go_with_it_is_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="strategy: name the backbone that it is for"):
        Options(backbone="auto", strategy="scratch")
    with pytest.raises(SettingError, match="weights: name the backbone that it is for"):
        Options(backbone="auto", weights="x.pth")
    with pytest.raises(SettingError, match="backbone: 'auto' is chosen by finetune and plan; here, name one"):
        toolkit.extract_features(str(photos), out=str(tmp_path / "x.npz"), backbone="auto")
    assert replace(Options(backbone="auto"), backbone="resnet18").backbone == "resnet18"


def test_one_that_cannot_be_opened_takes_no_part(
    photos: Path, pretend: Pretend, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(0.5, 0.9)
    opened = room.open_backbone

    def damaged(options: Options) -> Backbone:
        if options.backbone != NAMES[0]:
            raise SettingError("its file is damaged")
        return opened(options)

    monkeypatch.setattr(room, "open_backbone", damaged)
    assert plan_transfer(str(photos), backbone="auto", **SMALL).backbone == NAMES[0]
    assert "efficientnet_lite1: takes no part: its file is damaged" in capsys.readouterr().err


def test_one_that_cannot_do_what_is_set_takes_no_part(
    photos: Path, pretend: Pretend, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def able(backbone: Backbone, recipe: Recipe, cut: int) -> None:
        if backbone.name == NAMES[1]:
            raise SettingError(f"drop_path: no stage of {backbone.name} that trains has blocks that can be skipped")

    pretend(0.5, 0.9)
    monkeypatch.setattr("toolkit.tasks.job.check_able", able)
    plan = plan_transfer(str(photos), backbone="auto", strategy="full", drop_path=0.1, **SMALL)
    assert plan.backbone == NAMES[0]
    assert "efficientnet_lite1: takes no part: drop_path: no stage of" in capsys.readouterr().err


def test_one_whose_features_find_no_room_takes_no_part(
    photos: Path, tmp_path: Path, pretend: Pretend, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(0.5)
    plan_transfer(str(photos), backbone="auto", cache_dir=str(tmp_path), **SMALL)
    pretend(0.5, 0.9)
    monkeypatch.setattr("toolkit.features.store.FeatureStore.free_bytes", lambda store: 0)
    assert plan_transfer(str(photos), backbone="auto", cache_dir=str(tmp_path), **SMALL).backbone == NAMES[0]
    told = capsys.readouterr().err
    assert "efficientnet_lite1: takes no part: " in told and "are needed for the features of 30 views" in told
