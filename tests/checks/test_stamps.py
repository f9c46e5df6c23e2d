"""Drawings that look much alike and are none of them copies: Debian's stamps, where the package is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import toolkit

STAMPS = Path("/usr/share/tuxpaint/stamps")  # of tuxpaint-stamps-default
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(not STAMPS.is_dir(), reason="tuxpaint-stamps-default is not installed")
def test_traffic_lights_coins_and_road_signs_are_no_copies_of_each_other(tmp_path: Path) -> None:
    """Looked at by eye: the most alike of the 339 are lights of other colours, coins of other values, other signs; none
    is another one saved again, cropped or mirrored, and none is in two classes."""
    command = [sys.executable, str(ROOT / "scripts/make_stamps"), str(tmp_path / "stamps"), "--source", str(STAMPS)]
    subprocess.run(command, check=True, capture_output=True)
    report = toolkit.check(str(tmp_path / "stamps"), image_size=96, workers=0, cache_dir=str(tmp_path / "cache"))
    found = {one.name: one.status for one in report.findings}
    assert [found[name] for name in ("exact_duplicates", "near_duplicates", "conflicting_labels", "leaks")] == [
        "pass"
    ] * 4
