"""`notes`: the list, one experiment with its picture, and mistakes in one line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from PIL import Image

from toolkit.errors import SettingError
from toolkit.experiments.catalog import EXPERIMENTS
from toolkit.tasks.notes import notes


def test_without_a_name_they_are_listed():
    report = notes()
    lines = str(report).splitlines()
    assert [line.split()[0] for line in lines] == list(EXPERIMENTS)
    assert report.to_dict() == {"experiments": {name: line for name, (_, line) in EXPERIMENTS.items()}}


def test_an_experiment_prints_its_numbers_and_writes_its_picture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report = notes("linear_net")
    picture = tmp_path / "runs" / "notes" / "linear_net.png"
    with Image.open(picture) as image:
        assert image.size[0] > 800
    assert [file.name for file in picture.parent.iterdir()] == ["linear_net.png"]
    text = str(report)
    assert "Shown: " in text and "The notes: " in text and text.endswith("Picture: runs/notes/linear_net.png")
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["shown"] is True
    before = picture.read_bytes()
    again = notes("linear_net", out=str(tmp_path / "deep" / "er" / "again.png"))
    assert (tmp_path / "deep" / "er" / "again.png").read_bytes() == before
    assert again.finding == report.finding


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: notes("initialisation"), "unknown experiment 'initialisation'; did you mean one of: initialization"),
        (lambda: notes(out="x.png"), "out is not used"),
        (lambda: notes("zigzag", out="x.jpg"), "ends in .png expected, got 'x.jpg'"),
        (lambda: notes("zigzag", seed=-1), "seed: 0 to"),
        (lambda: notes("zigzag", seed=True), "seed: 0 to"),
    ],
)
def test_mistakes_are_one_line(call, said):
    with pytest.raises(SettingError, match=said):
        call()


def test_a_folder_is_no_picture(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(SettingError, match="is a folder"):
        notes("zigzag", out=str(tmp_path / "a.png"))


def test_listing_imports_neither_torch_nor_matplotlib():
    code = (
        "import sys\nfrom toolkit.tasks.notes import notes\nprint(notes())\n"
        "sys.exit(any(m in sys.modules for m in ('torch', 'matplotlib', 'sklearn', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
