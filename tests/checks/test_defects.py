"""Every planted defect is caught by the finding that it is meant for, and its sound counterpart is not."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.checks.defects import DATA, MODELS, SOUND_FOLDERS, SOUND_NETWORKS
from tests.checks.judge import DATA_FINDINGS, ROOM_OF, finding_on, report_on
from tests.checks.pictures import sound_folder
from tests.checks.planted import FAIL, PASS, DataDefect, ModelDefect, Planted, at_least


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sound_folder(tmp_path_factory.mktemp("pictures") / "sound")


@pytest.fixture
def folder(pictures: Path, tmp_path: Path) -> Path:
    """Return a copy of the sound folder."""
    return Path(shutil.copytree(pictures, tmp_path / "data"))


def assert_caught(found: Any, defect: DataDefect | ModelDefect) -> None:
    assert found.name == defect.finding
    assert at_least(found.status, defect.status), found
    assert found.seen and found.advice, found
    assert defect.word in f"{found.seen} {found.advice}", found


def of_data(*, needs_weights: bool) -> pytest.MarkDecorator:
    chosen = [defect for defect in DATA if defect.needs_weights == needs_weights]
    return pytest.mark.parametrize("defect", chosen, ids=lambda defect: defect.name)


def planted_is_caught(defect: DataDefect, folder: Path) -> None:
    planted = defect.plant(folder)
    report = report_on(planted, needs_weights=defect.needs_weights)
    assert_caught(report.finding(defect.finding), defect)
    assert at_least(report.status, defect.status)
    if planted.files:
        named = {Path(suspect.path).name for suspect in report.suspects if suspect.finding == defect.finding}
        assert named & set(planted.files), f"{named} are suspects, {planted.files} were planted"


def sound_passes(defect: DataDefect, folder: Path) -> None:
    found = report_on(defect.sound(folder), needs_weights=defect.needs_weights).finding(defect.finding)
    assert at_least(defect.sound_status, found.status), found


@of_data(needs_weights=False)
def test_a_defect_of_the_data_is_caught(defect: DataDefect, folder: Path) -> None:
    planted_is_caught(defect, folder)


@of_data(needs_weights=False)
def test_its_sound_counterpart_is_not(defect: DataDefect, folder: Path) -> None:
    sound_passes(defect, folder)


@pytest.mark.slow
@of_data(needs_weights=True)
def test_a_defect_that_takes_real_features_is_caught(defect: DataDefect, folder: Path) -> None:
    planted_is_caught(defect, folder)


@pytest.mark.slow
@of_data(needs_weights=True)
def test_its_sound_counterpart_is_not_with_real_features(defect: DataDefect, folder: Path) -> None:
    sound_passes(defect, folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", SOUND_FOLDERS)
def test_nothing_fails_on_a_sound_folder(folder: Path, name: str) -> None:
    report = report_on(SOUND_FOLDERS[name](folder), needs_weights=True)
    assert [found for found in report.findings if found.status == FAIL] == []
    assert [found.name for found in report.findings][: len(DATA_FINDINGS)] == DATA_FINDINGS


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mlp", "linear", "softmax", "svm"])
def test_nothing_fails_with_a_baseline_on_a_sound_folder(folder: Path, model: str) -> None:
    report = report_on(Planted(folder, settings={"model": model}), needs_weights=False)
    assert [found for found in report.findings if found.status == FAIL] == []
    if model == "mlp":  # the others have no layers for anything to fade or die in
        assert {found.name for found in report.findings} >= {*DATA_FINDINGS, *ROOM_OF}


@pytest.mark.filterwarnings("ignore:.*degrees of freedom is <= 0")  # what is planted there
@pytest.mark.parametrize("defect", MODELS, ids=lambda defect: f"{defect.finding}-{defect.name}")
def test_a_defect_of_a_network_is_caught(defect: ModelDefect) -> None:
    assert_caught(finding_on(defect.finding, defect.plant(0)), defect)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("defect", MODELS, ids=lambda defect: f"{defect.finding}-{defect.name}")
def test_its_sound_network_is_not(defect: ModelDefect, seed: int) -> None:
    found = finding_on(defect.finding, defect.sound(seed))
    assert at_least(defect.sound_status, found.status), found


@pytest.mark.parametrize("name", ROOM_OF)
@pytest.mark.parametrize("network", SOUND_NETWORKS)
def test_every_check_passes_a_sound_network(network: str, name: str) -> None:
    assert finding_on(name, SOUND_NETWORKS[network](0)).status == PASS


def test_the_catalogue_covers_every_finding_and_tells_its_defects_apart() -> None:
    counts = Counter(defect.finding for defect in (*DATA, *MODELS))
    assert set(counts) >= {*DATA_FINDINGS, *ROOM_OF}
    assert len({defect.name for defect in DATA}) == len(DATA) >= 25
    assert len({(defect.finding, defect.name) for defect in MODELS}) == len(MODELS) >= 25
