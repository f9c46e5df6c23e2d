"""`notes`: the list, one experiment with its picture, and mistakes in one line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from PIL import Image

from toolkit.cli import main
from toolkit.errors import ArtifactError, SettingError
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


def test_a_file_that_is_there_is_replaced_only_if_asked(tmp_path, monkeypatch, capsys):
    def too_early(seed):
        raise AssertionError("the experiment ran")

    picture = tmp_path / "mine.png"
    picture.write_bytes(b"mine")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    with monkeypatch.context() as patched:
        patched.setattr("toolkit.experiments.zigzag.run", too_early)
        for path in (picture, tmp_path / "dangling.png"):
            with pytest.raises(ArtifactError, match=f"{path} is there already; .* or replace it by --overwrite"):
                notes("zigzag", out=str(path))
        with pytest.raises(SettingError, match="overwrite is not used without the name of an experiment"):
            notes(overwrite=True)
    assert picture.read_bytes() == b"mine" and not (tmp_path / "nowhere.png").exists()
    assert main(["notes", "zigzag", "--out", str(picture)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {picture} is there already")
    assert main(["notes", "zigzag", "--out", str(picture), "--overwrite"]) == 0
    with Image.open(picture) as image:
        assert image.size[0] > 800


def test_the_picture_without_a_name_of_its_own_is_drawn_anew(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/notes").mkdir(parents=True)
    (tmp_path / "runs/notes/zigzag.png").write_bytes(b"of another day")
    notes("zigzag")
    assert (tmp_path / "runs/notes/zigzag.png").read_bytes() != b"of another day"
