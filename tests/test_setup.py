"""The set-up files: complete, consistent, without addresses; the installation code does what it says."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SCRIPTS = ["scripts/demo", "scripts/test", "scripts/make_stamps", ".ci/run"]


def constraint_lines() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def requirements() -> Iterator[Requirement]:
    for group in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()):
        yield from map(Requirement, group)


def test_constraints_are_exact_versions_without_addresses() -> None:
    pattern = re.compile(r'[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*( ; sys_platform == "linux")?')
    assert [line for line in constraint_lines() if not pattern.fullmatch(line)] == []
    assert "://" not in (ROOT / "constraints.txt").read_text()
    names = [canonicalize_name(Requirement(line).name) for line in constraint_lines()]
    assert len(names) == len(set(names))


def test_every_requirement_has_a_constraint_that_satisfies_it() -> None:
    pinned = {canonicalize_name(pin.name): pin for pin in map(Requirement, constraint_lines())}
    for requirement in requirements():
        pin = pinned[canonicalize_name(requirement.name)]
        version = next(iter(pin.specifier)).version
        assert requirement.specifier.contains(version), f"{pin} is not within {requirement}"


def test_every_requirement_is_a_range_with_a_floor() -> None:
    assert [str(r) for r in requirements() if not any(s.operator == ">=" for s in r.specifier)] == []


def test_lightning_is_not_one_of_the_compromised_versions() -> None:
    floors = {requirement.name: str(requirement.specifier) for requirement in requirements()}
    assert floors["lightning"] == floors["pytorch-lightning"] == ">=2.6.6"
    assert floors["pillow"] == ">=13.0"


def test_licence_is_the_one_that_is_declared() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in text and "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_executable_and_parse(name: str) -> None:
    script = ROOT / name
    assert os.access(script, os.X_OK)
    interpreter = script.read_text().splitlines()[0].removeprefix("#!/usr/bin/env ")
    if interpreter == "bash":
        subprocess.run(["bash", "-n", str(script)], check=True)
    else:
        assert interpreter == "python3"
        compile(script.read_text(), name, "exec")


PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def stamps(tmp_path: Path) -> Path:
    """A folder like Tux Paint's, with two pictures, a variant and a drawing in each category."""
    folders = "animals/birds animals/fish animals/insects animals/mammals food/fruit food/vegetables plants/flowers"
    folders += " seasonal/christmas seasonal/halloween symbols/money town/houses town/roadsigns"
    for folder in folders.split():
        inside = tmp_path / "stamps" / folder
        (inside / "cartoon").mkdir(parents=True)
        for name in ("a.png", "a_mirror.png", "a_mirror_flip.png", "a_flip.png", "a.svg", "a.txt", "cartoon/a.png"):
            (inside / name).write_bytes(PNG + name.encode())
    return tmp_path / "stamps"


def make_stamps(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(ROOT / "scripts/make_stamps"), *map(str, arguments)], capture_output=True, text=True)


def test_make_stamps_keeps_each_picture_once(stamps: Path, tmp_path: Path) -> None:
    done = make_stamps(tmp_path / "out", "--source", stamps)
    assert done.returncode == 0
    assert len(list((tmp_path / "out").iterdir())) == 12
    for folder in (tmp_path / "out").iterdir():
        assert sorted(path.name for path in folder.iterdir()) == ["a.png", "cartoon-a.png"]
    assert (tmp_path / "out" / "birds" / "cartoon-a.png").read_bytes() == PNG + b"cartoon/a.png"
    assert done.stdout.splitlines()[-1].split() == ["all", "24"]


def test_make_stamps_refuses_a_full_folder_and_a_wrong_source(stamps: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("keep")
    refused = make_stamps(tmp_path / "full", "--source", stamps)
    assert refused.returncode == 1 and "is not an empty folder" in refused.stderr
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]
    missing = make_stamps(tmp_path / "out", "--source", tmp_path / "full")
    assert missing.returncode == 1 and "animals/birds" in missing.stderr
    assert not (tmp_path / "out").exists()


def test_types_are_checked_in_every_script_of_python() -> None:
    checked = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["files"]
    files = [file for folder in ("scripts", "scripts/bench") for file in (ROOT / folder).iterdir() if file.is_file()]
    python = [file for file in files if file.suffix == ".py" or "python" in file.read_text().partition("\n")[0]]
    assert sorted(file.relative_to(ROOT).as_posix() for file in python) == sorted(checked[1:])
