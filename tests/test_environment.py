"""scripts/lib/environment.sh: installs once, again when the needs change, and never twice at a time.

A stand-in for Python makes the environments and notes what pip was asked for.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STAND_IN = """#!/usr/bin/env bash
if [[ "${1:-} ${2:-}" == "-m venv" ]]; then
    echo "venv" >>"$NOTES"
    mkdir -p "$3/bin" && cp "$0" "$3/bin/python"
elif [[ "${1:-} ${2:-}" == "-m pip" ]]; then
    echo "pip ${!#}" >>"$NOTES"
    sleep "${PIP_TAKES:-0}"
    exit "${PIP_ENDS:-0}"
else
    exec REAL "$@"
fi
"""


class Checkout:
    """A copy of the scripts beside set-up files, and the notes of the stand-in."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a checkout"
        self.root.mkdir()
        shutil.copytree(ROOT / "scripts", self.root / "scripts")
        (self.root / "pyproject.toml").write_text("[project]\n")
        (self.root / "constraints.txt").write_text("torch==2.15.0\n")
        self.venv = self.root / ".venv"
        self.notes = folder / "notes"
        self.notes.touch()
        self.interpreter = folder / "python-stand-in"
        self.interpreter.write_text(STAND_IN.replace("REAL", sys.executable))
        self.interpreter.chmod(0o755)

    def start(self, extra: str = "dev", **variables: str) -> subprocess.Popen[str]:
        command = f"set -euo pipefail; source scripts/lib/environment.sh; ensure_environment {extra}; echo ready"
        environment = os.environ | {"NOTES": str(self.notes), "PYTHON": str(self.interpreter)} | variables
        return subprocess.Popen(
            ["bash", "-c", command],
            cwd=self.root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, extra: str = "dev", **variables: str) -> tuple[bool, str]:
        """Return whether the script went on to its work, and what it said on stderr."""
        said, complaint = (process := self.start(extra, **variables)).communicate()
        assert (process.returncode == 0) == (said == "ready\n")
        return process.returncode == 0, complaint

    def noted(self) -> list[str]:
        """Return what was asked for since the last call."""
        lines = self.notes.read_text().splitlines()
        self.notes.write_text("")
        return [line.replace(str(self.root), ".") for line in lines]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_the_second_run_installs_nothing(checkout: Checkout) -> None:
    assert checkout.run()[0]
    assert checkout.noted() == ["venv", "pip .[dev]"]
    assert checkout.run() == (True, "")
    assert checkout.noted() == []


def test_the_demo_is_content_with_what_the_tests_installed_but_not_the_other_way(checkout: Checkout) -> None:
    checkout.run("core")
    assert checkout.noted() == ["venv", "pip ."]
    checkout.run("dev")
    assert checkout.noted() == ["pip .[dev]"]
    checkout.run("core")
    assert checkout.noted() == []


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_changed_needs_are_installed(checkout: Checkout, name: str) -> None:
    checkout.run()
    checkout.noted()
    (checkout.root / name).write_text("# changed\n")
    assert checkout.run()[0]
    assert checkout.noted() == ["pip .[dev]"]


def test_a_moved_checkout_is_installed_again(checkout: Checkout) -> None:
    checkout.run()
    checkout.noted()
    checkout.root = checkout.root.rename(checkout.root.parent / "moved")
    assert checkout.run()[0]
    assert checkout.noted() == ["pip .[dev]"]


def test_a_failed_installation_stops_the_script_and_is_tried_again(checkout: Checkout) -> None:
    went_on, complaint = checkout.run(PIP_ENDS="1")
    assert not went_on and "pip could not install" in complaint
    checkout.noted()
    assert checkout.run()[0]
    assert checkout.noted() == ["pip .[dev]"]


def test_an_environment_left_half_made_is_made_again(checkout: Checkout) -> None:
    checkout.run()
    checkout.noted()
    (checkout.venv / ".making").touch()
    (checkout.venv / "half").touch()
    assert checkout.run()[0]
    assert checkout.noted() == ["venv", "pip .[dev]"]
    assert not (checkout.venv / "half").exists()


def test_an_environment_whose_python_is_gone_is_made_again(checkout: Checkout) -> None:
    checkout.run()
    checkout.noted()
    (checkout.venv / "bin" / "python").unlink()
    assert checkout.run()[0]
    assert checkout.noted() == ["venv", "pip .[dev]"]


def test_two_runs_at_once_install_once(checkout: Checkout) -> None:
    if shutil.which("flock") is None:
        pytest.fail("this test needs flock (util-linux)")
    runs = [checkout.start(PIP_TAKES="0.5") for _ in range(2)]
    assert [run.communicate()[0] for run in runs] == ["ready\n", "ready\n"]
    assert checkout.noted() == ["venv", "pip .[dev]"]


def test_an_old_python_is_refused_in_one_line(checkout: Checkout, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    for name in ("python3", "python3.14", "python3.13", "python3.12", "python3.11"):
        (old / name).write_text("#!/bin/sh\nexit 1\n")
        (old / name).chmod(0o755)
    for variables in ({"PYTHON": str(old / "python3")}, {"PYTHON": "", "PATH": f"{old}:{os.environ['PATH']}"}):
        went_on, complaint = checkout.run(**variables)
        assert not went_on
        assert "no Python 3.11 or newer" in complaint and complaint.count("\n") == 1
    assert not checkout.venv.exists()
