"""Every shipped config is complete, says how it is used, and runs."""

import inspect
import shlex
from pathlib import Path

import pytest
import yaml

from tests.photos import make_photos
from toolkit.cli import main
from toolkit.tasks.finetune import finetune

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
NAMES = [path.stem for path in CONFIGS]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("photos"), {"cat": 6, "dog": 6}, size=(40, 40), seed=0)


def test_there_is_one_for_the_main_job_and_for_each_strategy() -> None:
    assert NAMES == ["auto", "full", "head", "partial", "scratch"]


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_a_config_has_every_key_and_names_its_strategy(path: Path) -> None:
    keys = set(inspect.signature(finetune).parameters) - {"data", "out", "resume", "overwrite"}
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert set(values) == keys
    assert values["strategy"] == path.stem


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_its_head_gives_a_command_that_parses_and_a_result(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = path.read_text(encoding="utf-8").split("\n\n")[0].replace("\\\n#", "")
    head = [line.removeprefix("#").strip() for line in text.splitlines()]
    command = next(line for line in head if line.startswith("toolkit finetune"))
    assert f"configs/{path.name}" in command
    assert any(line.startswith("gives val accuracy 0.") for line in head)
    # The data are not there, so a command that parses ends with 1, one that does not with 2.
    words = [word.replace("runs/demo-digits", "no-such-folder") for word in shlex.split(command)[1:]]
    words[words.index("--config") + 1] = str(path)
    assert main(words) == 1
    assert "no-such-folder does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_it_runs_at_a_tiny_scale(path: Path, photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["finetune", str(photos), "--config", str(path), "--out", str(run), "--image_size", "32"]
    if path.stem in ("partial", "full", "scratch"):
        words += ["--epochs", "1"]
    assert main(words) == 0
    assert (run / "metrics.json").exists()
    written = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert written["strategy"] == path.stem and written["image_size"] == 32
