"""Words and YAML files → the keywords of a verb."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml

from tests.doors import parsed, signature
from toolkit.cli import VERBS, main
from toolkit.errors import SettingError


def test_flags_become_keywords() -> None:
    values = parsed(
        "finetune", "photos", "--out=a-b", "--image-size", "32", "--lr=1e-3", "--overwrite", "--val", "0.25"
    )
    expected = {"data": "photos", "out": "a-b", "image_size": 32, "lr": 1e-3, "overwrite": True, "val": 0.25}
    assert values == {**signature("finetune"), **expected}


@pytest.mark.parametrize("words", [["--taps", "6,7"], ["--taps=6,7"], ["--taps", "[6, 7]"], ["--taps=[6,7]"]])
def test_lists_of_numbers_take_commas(words: list[str]) -> None:
    assert parsed("finetune", "photos", *words)["taps"] == [6, 7]
    assert parsed("finetune", *words, "photos")["data"] == "photos"


def test_dashes_and_underscores_are_the_same() -> None:
    assert parsed("features", "p", "--image-size=32") == parsed("features", "p", "--image_size", "32")


def test_flags_may_stand_anywhere() -> None:
    for text in ("--device cpu m a b", "m a b --device cpu", "m --device=cpu a b"):
        values = parsed("predict", *text.split())
        assert (values["model"], values["paths"], values["device"]) == ("m", ["a", "b"], "cpu")


def test_a_yaml_key_is_a_flag_and_flags_win(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("data: here\ntaps: [6, 7]\nlr: 1e-3\nimage-size: 64\noverwrite: true\nval: 0.5\nepochs: null\n")
    values = parsed("finetune", "--config", str(file), "--val", "0.1", "--taps", "7")
    expected = {"data": "here", "taps": [7], "lr": 1e-3, "image_size": 64, "overwrite": True, "val": 0.1}
    assert values == {**signature("finetune"), **expected}
    assert parsed("finetune", "there", f"--config={file}")["data"] == "there"
    file.write_text("model: m\npaths: [a, b]\n")
    assert parsed("predict", "--config", str(file))["paths"] == ["a", "b"]
    assert parsed("predict", "n", "c", "--config", str(file)) == {**signature("predict"), "model": "n", "paths": ["c"]}
    file.write_text("")
    assert parsed("plan", "p", "--config", str(file)) == {**signature("plan"), "data": "p", "json": False}


@pytest.mark.parametrize("verb", [verb for verb in VERBS if signature(verb)])
def test_all_defaults_of_a_verb_are_a_valid_yaml_file(verb: str, tmp_path: Path) -> None:
    positional = {key: ["x"] if key == "paths" else "x" for key in VERBS[verb].positionals}
    values = {**signature(verb), **positional}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    found = parsed(verb, "--config", str(tmp_path / "c.yaml"))
    found.pop("json", None)
    assert found == values


@pytest.mark.parametrize("number", ["nan", "NaN", "inf", ".nan"])
def test_what_is_no_number_is_refused_by_its_range(
    number: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for given in (["--lr", number], [f"--lr={number}"], ["--config", str(tmp_path / "c.yaml")]):
        (tmp_path / "c.yaml").write_text(f"lr: {number}\n")
        assert main(["finetune", str(tmp_path), *given]) == 1
        said = capsys.readouterr().err
        assert said == f"error: lr: a number above 0, at most 100, or auto expected, got {number.lower().strip('.')}\n"
    for word in ("no", "x"):
        assert main(["finetune", str(tmp_path), "--lr", word]) == 1
        assert f"error: lr: a number above 0, at most 100, or auto expected, got {word!r}" in capsys.readouterr().err
    for key, value, kind in (("clip", "no", "float"), ("clip", "x", "float"), ("epochs", number, "int")):
        assert main(["finetune", str(tmp_path), f"--{key}", value]) == 2
        assert f"error: {key}: {kind} expected, got {value!r} (toolkit" in capsys.readouterr().err


def test_a_flag_is_written_out(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("strategy: scratch\n")
    assert main(["finetune", "photos", "--conf", str(file), "--out", "run"]) == 2
    assert "--conf" in capsys.readouterr().err
    assert main(["finetune", "photos", "--config", str(file), f"--config={file}"]) == 2
    assert "--config is given twice" in capsys.readouterr().err


def test_a_switch_takes_a_value_too(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("overwrite: true\n")
    for words, expected in (
        (["--overwrite"], True),
        (["--overwrite=false"], False),
        (["--overwrite", "true"], True),
        (["--overwrite", "--seed", "1"], True),
        (["--overwrite", "False"], False),
        (["--config", str(file), "--overwrite", "false"], False),
        (["--config", str(file)], True),
    ):
        assert parsed("finetune", "photos", *words)["overwrite"] is expected
    assert parsed("predict", "--mirror", "model", "a.jpg")["paths"] == ["a.jpg"]


def test_a_config_of_a_run_can_be_planned(tmp_path: Path) -> None:
    for file in sorted(Path("configs").glob("*.yaml")):
        assert "pictures" not in parsed("plan", "photos", "--config", str(file))
    file = tmp_path / "config.yaml"
    file.write_text("data: photos\nout: run\npictures: false\nstrategy: head\nepoch: 3\n")
    with pytest.raises(SettingError, match="unknown key 'epoch'"):
        parsed("plan", "--config", str(file))
    file.write_text("data: photos\nout: run\npictures: false\nstrategy: head\n")
    assert parsed("plan", "--config", str(file))["strategy"] == "head"


def test_the_printed_command_has_switches_that_parse() -> None:
    from toolkit.tasks.plan import command_of

    command = shlex.split(command_of({"data": "photos", "track": True, "strategy": "partial"}))
    assert parsed("finetune", *command[2:])["track"] is True


def test_on_is_a_key_like_any_other(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("data: photos\nmodel: linear\non: hog\n")
    assert parsed("baseline", "--config", str(file))["on"] == "hog"


def test_after_two_dashes_words_are_file_names_as_they_stand(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "no-model", "--", "--a-b.png"]) == 1
    assert "--a-b.png does not exist" in capsys.readouterr().err
