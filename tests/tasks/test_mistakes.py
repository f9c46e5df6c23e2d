"""What a person can mend: exit 1, one line that says what and what to do, no traceback, nothing half-made."""

from __future__ import annotations

import json
import shutil
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

import toolkit
from tests.photos import make_photos, photo
from tests.tasks.conftest import Runs
from tests.tasks.small import run, words
from toolkit import storage
from toolkit.cli import main
from toolkit.errors import SettingError, ToolkitError

Fails = Callable[..., str]


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    """Return a function that runs a command line, checks that it ends well-mannered, and returns the error line."""

    def check(*arguments: object, code: int = 1) -> str:
        assert main([str(argument) for argument in arguments]) == code
        captured = capsys.readouterr()
        errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and captured.err.splitlines()[-1] == errors[0]
        assert "Traceback" not in captured.err and captured.out == ""
        return errors[0].removeprefix("error: ")

    return check


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "data", {"cat": 4, "dog": 4})


def test_a_folder_that_is_not_there(fails: Fails, tmp_path: Path) -> None:
    for verb in ("finetune", "plan", "features"):
        text = fails(verb, tmp_path / "nowhere", *(["--out", tmp_path / "run"] if verb == "finetune" else []))
        assert f"{tmp_path / 'nowhere'} does not exist; expected DIR/train/CLASS/" in text
    assert list(tmp_path.iterdir()) == []


def test_data_that_make_no_data_set(fails: Fails, tmp_path: Path) -> None:
    empty, flat, single = tmp_path / "empty", tmp_path / "flat", tmp_path / "single"
    empty.mkdir()
    flat.mkdir()
    photo(0, 0).save(flat / "a.jpg")
    make_photos(single, {"cat": 5})
    broken = make_photos(tmp_path / "broken", {"cat": 2, "dog": 2})
    for file in broken.rglob("*.jpg"):
        file.write_bytes(b"\xff\xd8 nothing")
    table = tmp_path / "table.csv"
    table.write_text("a,b\n1,2\n")
    text_file = tmp_path / "notes.txt"
    text_file.write_text("hello")
    listing = tmp_path / "list.csv"
    listing.write_text("path,label\ngone.jpg,cat\nlost.jpg,dog\n")
    before = sorted(tmp_path.iterdir())
    for source, wanted in (
        (empty, "no class with usable training images; at least 2 are needed"),
        (flat, "'a.jpg': not in a class folder"),
        (single, "only one class, 'cat', with usable training images"),
        (broken, "none of 4 image files can be used; the first: 'cat/000.jpg'"),
        (table, "the first line must be path,label"),
        (text_file, "is neither a folder nor a .csv file"),
        (listing, "none of 2 image files can be used; the first: 'gone.jpg'"),
    ):
        text = fails("finetune", source, "--out", tmp_path / "run")
        assert wanted in text and str(source) in text
    assert sorted(tmp_path.iterdir()) == before


def test_images_that_only_prove_broken_when_decoded(fails: Fails, data: Path, tmp_path: Path) -> None:
    for file in data.rglob("*.jpg"):
        file.write_bytes(file.read_bytes()[:700])
    for strategy in ("head", "scratch"):
        text = fails("finetune", data, "--out", tmp_path / strategy, *words(strategy=strategy))
        assert "none of the 8 images can be used; the first: cat/000.jpg: " in text
    assert "none of the 8 images can be used" in fails("features", data, *words())


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"backbone": "resnet81"}, "unknown backbone 'resnet81'; did you mean one of: resnet18"),
        ({"backbone": "timm/resnet_nothing"}, "timm"),
        ({"backbone": "timm/"}, "timm"),
        ({"backbone": "vit_b_16", "image_size": 40}, "image_size must be a multiple of its patch size, 16 px"),
        ({"image_size": 20}, "image_size of at least 32 px expected, got 20"),
        ({"weights": "nowhere.pth"}, "there is no weights file 'nowhere.pth'"),
        ({"strategy": "heads"}, "unknown strategy 'heads'; did you mean one of: head"),
        ({"strategy": "full", "optimizer": "adam"}, "unknown optimizer 'adam'; did you mean one of: adamw"),
        ({"strategy": "full", "augment": "strong"}, "unknown augment 'strong'; did you mean one of: "),
        ({"class_weights": "rare"}, "unknown class_weights 'rare'"),
        ({"precision": "half"}, "unknown precision 'half'"),
        ({"precision": "16-mixed"}, "needs a GPU"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"device": "cpu:x"}, "device 'cpu:x'"),
        ({"device": "cuda:99"}, "this machine has"),
        ({"epochs": 0, "strategy": "full"}, "epochs: 1 to 100000 expected, got 0"),
        ({"val": 1.5}, "val: a fraction between 0 and 1 expected, got 1.5"),
        ({"lr": "1e3", "strategy": "full"}, "lr: a number above 0, at most 100, or auto expected, got 1000.0"),
        ({"cut": 8, "strategy": "partial"}, "cut: 1 to 7 expected for the 8 stages"),
        ({"cut": 0, "strategy": "partial"}, "for 0 use the strategy 'full'"),
        ({"taps": "6,8"}, "taps: distinct stages from 0 to 7 expected, got [6, 8]"),
        ({"taps": "7,7"}, "taps: distinct stage numbers expected"),
        ({"taps": "[]"}, "taps: distinct stage numbers expected"),
        ({"taps": "3", "strategy": "partial"}, "add 7 to the taps"),
        ({"epochs": 3, "strategy": "head"}, "epochs is not used by the strategy 'head'; remove it"),
        ({"weights": "x.pth", "strategy": "scratch"}, "weights is not used by the strategy 'scratch'"),
        ({"cut": 3, "folds": 2}, "cut is not used by the strategy 'head' or what else auto may choose"),
        ({"budget": 3, "strategy": "full"}, "budget: only the strategy 'auto' chooses by it"),
    ],
)
def test_an_option_that_cannot_be(fails: Fails, data: Path, tmp_path: Path, given: dict[str, Any], wanted: str) -> None:
    text = fails("finetune", data, "--out", tmp_path / "run", *words(**given))
    assert wanted in text
    assert not (tmp_path / "run").exists()


def test_names_and_numbers_are_refused_before_anything_is_read(fails: Fails, tmp_path: Path) -> None:
    for given in ({"optimizer": "adam"}, {"augment": "x"}, {"precision": "x"}, {"backbone": "x"}, {"device": "x"}):
        assert "unknown" in fails("finetune", tmp_path / "nowhere", *words(**{"strategy": "full", **given}))


def test_no_network_for_weights(fails: Fails, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*arguments: object, **more: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    text = fails("finetune", data, "--out", tmp_path / "run", *words(backbone="resnet18"))
    assert "resnet18: its weights" in text and str(tmp_path / "hub") in text and "--weights FILE" in text
    assert not (tmp_path / "run").exists()


def test_a_weights_file_that_is_damaged_or_of_another_network(fails: Fails, data: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.pth").write_bytes(b"not weights")
    torch.save({"layer.weight": torch.zeros(3)}, tmp_path / "other.pth")
    for name, wanted in (("broken.pth", "damaged"), ("other.pth", "does not fit this backbone")):
        text = fails("finetune", data, "--out", tmp_path / "run", *words(weights=tmp_path / name))
        assert wanted in text and name in text
    assert not (tmp_path / "run").exists()


def test_an_output_that_cannot_be_written(fails: Fails, data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere/deep")
    for out in (tmp_path / "file", tmp_path / "file/run", Path("/proc/nowhere/run"), tmp_path / "dangling"):
        text = fails("finetune", data, "--out", out, *words())
        assert f"{out}: cannot be written (" in text and "choose another --out" in text
    assert (tmp_path / "file").read_text() == "x"


def test_an_output_inside_the_photos(fails: Fails, data: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(data)
    before = sorted(data.rglob("*"))
    for out in (data, data / "runs/a", tmp_path / "link/run", tmp_path / "x/../data/run"):
        assert "lies inside the folder of photos" in fails("finetune", data, "--out", out, *words(), "--overwrite")
    assert sorted(data.rglob("*")) == before


def test_an_output_folder_that_holds_something_else_is_left_alone(fails: Fails, data: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.tex").write_text("words")
    for more in ((), ("--overwrite",)):
        text = fails("finetune", data, "--out", tmp_path / "thesis", *words(), *more)
        assert "is not empty and holds no run; choose another --out" in text
    assert [file.name for file in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]


def test_an_output_in_the_way_is_noticed_before_the_scan(
    runs: Runs, data: Path, monkeypatch: pytest.MonkeyPatch, fails: Fails, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise AssertionError("a scan began")

    out = runs("head").path
    capsys.readouterr()
    monkeypatch.setattr("toolkit.tasks.run.scan", refuse)
    assert "already holds a run" in fails("finetune", data, "--out", out, *words())


def test_a_run_is_only_replaced_on_request_and_only_its_own_files(
    fails: Fails, data: Path, photos: Path, runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(runs("partial").path, out)
    (out / "mine.txt").write_text("keep")
    (out / "model/mine.txt").write_text("keep")
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    text = fails("finetune", data, "--out", out, *words())
    assert f"{out} already holds a run" in text and f"--resume {out}" in text and "--overwrite" in text
    assert "unknown backbone" in fails("finetune", data, "--out", out, *words(backbone="x"), "--overwrite")
    assert "cut: 1 to 7" in fails("finetune", data, "--out", out, *words(strategy="partial", cut=9), "--overwrite")
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before

    assert main(["finetune", str(data), "--out", str(out), *words(), "--overwrite"]) == 0
    capsys.readouterr()
    assert json.loads((out / "metrics.json").read_text())["train"]["n"] == 6
    assert not (out / "history.csv").exists(), "of the run before"
    assert (out / "mine.txt").read_text() == (out / "model/mine.txt").read_text() == "keep"


def test_resume_needs_a_run_and_takes_nothing_else(
    fails: Fails, runs: Runs, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "holds no run (there is no config.yaml in it)" in fails("finetune", "--resume", tmp_path / "nothing")
    finished = runs("partial").path
    for more in (("--epochs", 3), ("--seed", 1), ("--overwrite",), ("--out", tmp_path), (photos,)):
        assert "give no data and no other option with it" in fails("finetune", *more, "--resume", finished)
    assert "which photos?" in fails("finetune", "--out", tmp_path / "run")

    before = {file: file.stat().st_mtime_ns for file in finished.rglob("*")}
    assert main(["finetune", "--resume", str(finished)]) == 0
    captured = capsys.readouterr()
    assert f"{finished} is finished; nothing to do" in captured.err
    assert captured.out == f"{runs('partial')}\n"
    assert {file: file.stat().st_mtime_ns for file in finished.rglob("*")} == before


def unfinished(runs: Runs, strategy: str, out: Path) -> Path:
    """Return a copy of a run, as it would be right after its start."""
    out.mkdir()
    config = yaml.safe_load((runs(strategy).path / "config.yaml").read_text())
    (out / "config.yaml").write_text(yaml.safe_dump({**config, "out": str(out)}))
    return out


def test_a_run_without_a_checkpoint_begins_again(runs: Runs, tmp_path: Path) -> None:
    out = unfinished(runs, "head", tmp_path / "run")
    resumed = toolkit.finetune(resume=str(out))
    assert resumed.path == out
    assert (out / "predictions.csv").read_bytes() == (runs("head").path / "predictions.csv").read_bytes()


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("- 1\n", "is not a table of keys"),
        ("a: [\n", "cannot be read"),
        ("nonsense: 3\n", "is not one that a run wrote"),
        ("strategy: head\n", "is not one that a run wrote"),
        ("data: null\nstrategy: head\n", "is not one that a run wrote"),
        ("data: /nowhere/photos\nepochs: -3\nstrategy: full\n", "epochs: 1 to 100000 expected, got -3"),
        ("data: /nowhere/photos\n", "/nowhere/photos does not exist"),
        ("data: /nowhere/photos\nbackbone: custom\n", "has a backbone of your own"),
    ],
)
def test_a_run_whose_config_is_no_run_s(fails: Fails, tmp_path: Path, content: str, wanted: str) -> None:
    (tmp_path / "config.yaml").write_text(content)
    assert wanted in fails("finetune", "--resume", tmp_path)


@pytest.mark.parametrize("content", ["{}", "[1]", '{"strategy": "head", "alien": 1}', "{"])
def test_a_finished_run_whose_plan_is_none(fails: Fails, runs: Runs, tmp_path: Path, content: str) -> None:
    shutil.copytree(runs("head").path, tmp_path / "run")
    (tmp_path / "run/plan.json").write_text(content)
    assert str(tmp_path / "run/plan.json") in fails("finetune", "--resume", tmp_path / "run")


def test_a_backbone_of_ones_own_is_resumed_with_it(photos: Path, tmp_path: Path) -> None:
    def layers() -> list[torch.nn.Module]:
        torch.manual_seed(0)
        return [torch.nn.Conv2d(3, 4, 3, 4), torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Conv2d(4, 8, 3, 4))]

    first = toolkit.finetune(str(photos), out=str(tmp_path / "a"), backbone=layers(), workers=0)  # type: ignore[arg-type]
    out = unfinished(lambda _: first, "head", tmp_path / "b")
    with pytest.raises(ToolkitError, match="has a backbone of your own"):
        toolkit.finetune(resume=str(out))
    toolkit.finetune(resume=str(out), backbone=layers())  # type: ignore[arg-type]
    assert (out / "predictions.csv").read_bytes() == (first.path / "predictions.csv").read_bytes()
    named = unfinished(lambda _: run(photos, tmp_path / "c"), "head", tmp_path / "d")
    with pytest.raises(ToolkitError, match="has the backbone efficientnet_lite0"):
        toolkit.finetune(resume=str(named), backbone=layers())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"a: [1,", "not valid YAML"),
        (b"- 1\n- 2\n", "a table of keys and values expected, found a list"),
        (b"just words\n", "a table of keys and values expected, found a str"),
        (b"\xff\xfe\x00", "not a YAML file"),
        (b"epoch: 3\n", "unknown key 'epoch'; did you mean one of: epochs"),
        (b"resume_from: x\n", "unknown key 'resume_from'"),
        (b"epochs: many\n", "epochs: int expected, got 'many'"),
        (b"val: [1]\n", "val: float expected"),
        (b"overwrite: maybe\n", "overwrite: true or false expected, got 'maybe'"),
        (b"taps: 7\n", "taps: a list such as [a, b] expected, got 7"),
        (b"taps: [six]\n", "taps: int expected"),
        (b"strategy: null\n", "strategy: a value expected, got null"),
        (b"out: null\n", "out: a value expected, got null"),
        (b"seed: null\n", "seed: a value expected, got null"),
        (b"!!python/object/apply:os.system ['true']\n", "not valid YAML"),
    ],
)
def test_a_yaml_file_that_cannot_be(fails: Fails, data: Path, tmp_path: Path, content: bytes, wanted: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(content)
    text = fails("finetune", data, "--out", tmp_path / "run", "--config", file)
    assert text.startswith(f"{file}: ") and wanted in text
    assert not (tmp_path / "run").exists()


def test_a_yaml_file_that_is_not_there(fails: Fails, data: Path, tmp_path: Path) -> None:
    assert "No such file" in fails("plan", data, "--config", tmp_path / "no.yaml")
    assert "Is a directory" in fails("plan", data, f"--config={tmp_path}")


@pytest.mark.parametrize(
    "arguments",
    [
        ["finetun"],
        ["finetune", "--nothing", "3"],
        ["finetune", "a", "b"],
        ["finetune", "--epochs", "many"],
        ["finetune", "--taps", "a,b"],
        ["finetune", "--epochs"],
        ["finetune", "--config"],
        ["plan"],
        ["plan", "--config", "", "x"],
        ["predict", "model"],
        ["evaluate"],
        ["backbones", "more"],
        ["predict", "--strategy", "head", "m", "p"],
    ],
)
def test_a_command_line_that_cannot_be_parsed_ends_with_2(fails: Fails, arguments: list[str]) -> None:
    assert fails(*arguments, code=2)


def test_a_full_disk_is_one_line(fails: Fails, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = storage.publish_bytes

    def full(path: Any, content: bytes) -> None:
        if Path(path).name == "model.safetensors":
            raise OSError(28, "No space left on device", str(path))
        before(path, content)

    monkeypatch.setattr("toolkit.artifacts.model_folder.publish_bytes", full)
    text = fails("finetune", data, "--out", tmp_path / "run", *words())
    assert "No space left on device" in text and "model.safetensors" in text
    assert not (tmp_path / "run/metrics.json").exists()


def test_too_little_memory_is_one_line(fails: Fails, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def greedy(*arguments: object, **more: object) -> None:
        raise MemoryError

    monkeypatch.setattr("toolkit.tasks.run.start_run", greedy)
    assert fails("finetune", tmp_path) == "out of memory"


def test_a_defect_is_not_dressed_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def defective(*arguments: object, **more: object) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr("toolkit.tasks.run.start_run", defective)
    with pytest.raises(RuntimeError, match="shapes differ"):
        main(["finetune", str(tmp_path)])


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    for arguments in (["--debug", "finetune", str(tmp_path / "x")], ["finetune", str(tmp_path / "x"), "--debug"]):
        with pytest.raises(ToolkitError, match="does not exist"):
            main(arguments)


def test_python_raises_the_same_line(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"^unknown backbone 'x'; did you mean one of: "):
        toolkit.finetune(str(tmp_path), backbone="x")
    with pytest.raises(TypeError, match="unexpected keyword argument 'epoch'"):
        toolkit.finetune(str(tmp_path), epoch=3)  # type: ignore[call-arg]


@pytest.mark.parametrize("strategy", ["head", "partial"])
def test_files_that_vanish_before_they_are_read_are_quarantined(
    data: Path, tmp_path: Path, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from toolkit.tasks import run as line

    ahead = line.plan_ahead

    def and_then_one_goes(*arguments: Any) -> Any:
        planned = ahead(*arguments)
        (data / "cat/000.jpg").unlink()
        return planned

    monkeypatch.setattr(line, "plan_ahead", and_then_one_goes)
    metrics = run(data, tmp_path / "run", strategy).metrics
    assert (metrics["scanned"], metrics["used"], metrics["quarantined"]) == (8, 7, 1)
    assert "cat/000.jpg,No such file or directory" in (tmp_path / "run/quarantine.csv").read_text()


def test_files_that_vanish_while_the_tail_trains_are_accounted_for(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from toolkit.tasks import tail

    train, gone = tail.train_tail, []

    def after_two_files_have_gone(folder: Any, prepared: Any, *more: Any) -> Any:
        for split in (0, 1):
            path = prepared.manifest.paths[prepared.manifest.rows(split)[0]]
            (data / path).unlink()
            gone.append(path)
        return train(folder, prepared, *more)

    monkeypatch.setattr(tail, "train_tail", after_two_files_have_gone)
    metrics = run(data, tmp_path / "run", "partial", cache=False).metrics
    assert (metrics["scanned"], metrics["used"], metrics["quarantined"]) == (8, 6, 2)
    assert (metrics["train"]["n"], metrics["val"]["n"]) == (5, 1)
    quarantine = (tmp_path / "run/quarantine.csv").read_text()
    assert len(gone) == 2 and all(f"{path},No such file or directory" in quarantine for path in gone)


def test_a_colossal_image_is_quarantined_unread(data: Path, tmp_path: Path) -> None:
    Image.new("1", (3000, 3000)).save(data / "cat/huge.png")
    metrics = run(data, tmp_path / "run", max_pixels=1_000_000).metrics
    assert (metrics["used"], metrics["quarantined"]) == (8, 1)
    assert "cat/huge.png" in (tmp_path / "run/quarantine.csv").read_text()
