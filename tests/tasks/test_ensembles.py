"""Several models as one, dropout at test time and changed images, as a person asks for them."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import toolkit
from tests.baselines.idx_files import write_idx
from tests.photos import make_photos
from tests.tasks.conftest import Runs
from toolkit.artifacts.model_folder import load_ensemble, load_model
from toolkit.cli import main
from toolkit.errors import DataError, SettingError
from toolkit.tasks.baseline import train_baseline
from toolkit.tasks.evaluate import Evaluation, evaluate
from toolkit.tasks.predict import predict

NET: dict[str, Any] = {"epochs": 3, "batch_size": 8, "hidden": [16, 8], "dropout": 0.5}
Models = Callable[..., Path]


def baseline(data: Path, out: Path, model: str = "mlp", **settings: Any) -> Path:
    options = {**(NET if model == "mlp" else {}), "workers": 0, "device": "cpu", **settings}
    return train_baseline(str(data), out=str(out), model=model, **options).path


@pytest.fixture(scope="module")
def models(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Return a function from the settings of a baseline to its run on `photos`, made once."""
    made: dict[str, Path] = {}

    def of(model: str = "mlp", **settings: Any) -> Path:
        key = repr((model, sorted(settings.items())))
        if key not in made:
            more = {"image_size": 16, **settings}
            made[key] = baseline(photos, tmp_path_factory.mktemp("baseline") / "run", model, **more)
        return made[key]

    return of


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("new") / "new", {"cat": 4, "dog": 3, "owl": 3}, seed=9)


@pytest.fixture(scope="module")
def idx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return IDX files with a test split."""
    labels = np.arange(60) % 3
    noise = np.random.default_rng(0).integers(0, 50, (60, 8, 8))
    images = (labels[:, None, None] * 60 + noise).astype(np.uint8)
    folder = tmp_path_factory.mktemp("idx") / "idx"
    write_idx(folder, "t10k", images[:12], labels[:12])
    return write_idx(folder, "train", images, labels)


def records(model: Path, *paths: Path, **more: Any) -> list[dict[str, Any]]:
    return list(predict(str(model), [str(path) for path in paths], device="cpu", workers=0, **more))


def score(model: Path, data: Path, **more: Any) -> Evaluation:
    return evaluate(str(model), str(data), device="cpu", workers=0, **more)


def chances(record: dict[str, Any]) -> dict[str, float]:
    return {item["label"]: item["probability"] for item in record["top"]}


def table(file: Path) -> list[dict[str, str]]:
    with open(file, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_transfer_model_and_baselines_together(runs: Runs, models: Models, new: Path) -> None:
    members = [runs("head").path, models(), models("nn", image_size=8)]
    alone = [records(member, new) for member in members]
    together = records(members[0], new, ensemble=[str(path) for path in members[1:]])
    for number, record in enumerate(together):
        assert list(record) == ["path", "label", "probability", "spread", "top"]
        said = [chances(own[number]) for own in alone]
        for label, probability in chances(record).items():
            assert probability == pytest.approx(sum(own[label] for own in said) / 3, abs=1e-6)
        expected = np.std([own[record["label"]] for own in said], ddof=1)
        assert record["spread"] == pytest.approx(expected, abs=1e-6)
    assert together == records(members[0], new, ensemble=[str(path) for path in members[1:]])


def test_an_empty_ensemble_is_none(runs: Runs, new: Path) -> None:
    assert records(runs("head").path, new, ensemble=[]) == records(runs("head").path, new)


@pytest.mark.parametrize("more", [{}, {"mc": 5}], ids=["models", "mc"])
def test_company_and_order_change_nothing(models: Models, new: Path, photos: Path, more: dict[str, Any]) -> None:
    files = [*sorted(new.rglob("*.jpg")), *sorted(photos.rglob("*.jpg"))]
    ensemble = {"ensemble": [str(models(seed=1, image_size=12))], **more}
    whole = records(models(), *files, **ensemble)
    assert records(models(), *files[::-1], **ensemble) == whole[::-1]
    for number in (0, 31, 32, 39):
        assert records(models(), files[number], **ensemble) == [whole[number]]
    assert min(record["spread"] for record in whole) > 0


def test_a_broken_file_among_several_models(runs: Runs, models: Models, new: Path, tmp_path: Path) -> None:
    good = (new / "cat/000.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(good[:700])
    (tmp_path / "b.jpg").write_bytes(good)
    broken, sound = records(runs("head").path, tmp_path, ensemble=[str(models())])
    assert list(broken) == ["path", "error"] and "spread" in sound


def test_neighbours_that_disagree_are_a_draw_for_the_first_of_the_classes(tmp_path: Path) -> None:
    """Every model names another class and is as sure: predict, evaluate and the table must say the same."""
    names = [f"c{number}" for number in range(6)]
    same = np.full((8, 8), 128, np.uint8)
    members = []
    for winner in (4, 2):  # the image that is asked for is among those of one class
        data = tmp_path / f"data{winner}"
        for number, name in enumerate(names):
            (data / name).mkdir(parents=True)
            value = same if number == winner else np.full((8, 8), number * 10, np.uint8)
            Image.fromarray(value).save(data / name / "0.png")
        members.append(baseline(data, tmp_path / f"run{winner}", "nn", val=0.0))
    asked = tmp_path / "asked"
    (asked / "c2").mkdir(parents=True)
    Image.fromarray(same).save(asked / "c2/0.png")
    ensemble = [str(members[1])]
    (record,) = records(members[0], asked, ensemble=ensemble)
    assert [item["label"] for item in record["top"]] == ["c2", "c4", "c0", "c1", "c3"]
    assert record["top"][0]["probability"] == record["top"][1]["probability"] > record["top"][2]["probability"]
    found = score(members[0], asked, ensemble=ensemble, out=str(tmp_path / "scores"), split="all")
    assert found.scores.accuracy == 1 and found.members == (0.0, 1.0)
    assert [row["prediction"] for row in table(tmp_path / "scores/predictions.csv")] == ["c2"]


def test_what_is_scored_is_what_predict_says(runs: Runs, models: Models, new: Path, tmp_path: Path) -> None:
    more = {"ensemble": [str(models()), str(models("nn"))]}
    found = score(runs("head").path, new, out=str(tmp_path / "scores"), **more)
    rows = {row["path"]: row for row in table(tmp_path / "scores/predictions.csv")}
    for record in records(runs("head").path, new, **more):
        row = rows[str(Path(record["path"]).relative_to(new))]
        assert row["prediction"] == record["label"]
        assert float(row["probability"]) == pytest.approx(record["probability"], abs=1e-6)
    alone = tuple(score(path, new).scores.accuracy for path in (runs("head").path, models(), models("nn")))
    assert found.members == alone and found.spread is not None
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert values["members"] == list(alone) and set(values["spread"]) == {"right", "wrong"}
    assert "each model alone: accuracy " in str(found)


def test_a_single_model_says_nothing_of_members_and_spread(runs: Runs, new: Path) -> None:
    found = score(runs("head").path, new)
    assert found.members == () and found.spread is None and found.robustness is None
    assert not {"members", "spread", "robustness"} & set(found.to_dict())


def test_only_images_that_no_model_has_trained_on_are_scored(
    runs: Runs, models: Models, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = [models(), models(seed=1), models(seed=1, val=0.5)]
    held_out = [{row["path"] for row in table(path / "predictions.csv")} for path in (runs("head").path, *others)]
    both = held_out[0] & held_out[3]
    assert 0 < len(both) < len(held_out[0])
    score(runs("head").path, photos, ensemble=[str(others[2])], out=str(tmp_path / "two"))
    assert {row["path"] for row in table(tmp_path / "two/predictions.csv")} == both
    assert f"2 of the models were trained on: {len(both)} are new to all of them" in capsys.readouterr().err
    score(runs("head").path, photos, ensemble=[str(others[0])], out=str(tmp_path / "same"))
    assert {row["path"] for row in table(tmp_path / "same/predictions.csv")} == held_out[0] == held_out[1]


def test_a_model_that_was_trained_elsewhere_does_not_narrow_the_choice(
    runs: Runs, photos: Path, new: Path, tmp_path: Path
) -> None:
    elsewhere = baseline(new, tmp_path / "run", image_size=16)
    found = score(runs("head").path, photos, ensemble=[str(elsewhere)])
    assert (found.split, found.scores.n) == ("val", 6)


def test_nothing_that_is_new_to_all(models: Models, photos: Path) -> None:
    validated: set[str] = set()
    members = []
    for seed in range(8):  # until no image is left that all have held out
        members.append(str(models(seed=seed)))
        own = {row["path"] for row in table(Path(members[-1]) / "predictions.csv")}
        validated = own if seed == 0 else validated & own
        if not validated:
            break
    with pytest.raises(DataError, match=rf"every image was trained on by one of the {len(members)} models") as caught:
        score(Path(members[0]), photos, ensemble=members[1:])
    assert "\n" not in str(caught.value)
    assert score(Path(members[0]), photos, ensemble=members[1:], split="all").scores.n == 30


def test_a_run_that_held_nothing_out(photos: Path, models: Models) -> None:
    with pytest.raises(DataError, match="the run was trained on every image"):
        score(models(val=0.0), photos)
    assert score(models(val=0.0), photos, split="train").scores.n == 30


def test_held_out_images_that_are_gone_are_not_replaced_by_trained_ones(tmp_path: Path) -> None:
    data = make_photos(tmp_path / "photos", {"cat": 6, "dog": 6})
    model = baseline(data, tmp_path / "run", image_size=16)
    for row in table(model / "predictions.csv"):
        (data / row["path"]).unlink()
    with pytest.raises(DataError, match="the run was trained on every image"):
        score(model, data)


def test_idx_files(idx: Path, tmp_path: Path) -> None:
    """Where a test split is there, nothing is held out: it is scored all the same."""
    first, second = (baseline(idx, tmp_path / f"run{seed}", seed=seed) for seed in (0, 1))
    alone = score(first, idx)
    assert (alone.split, alone.scores.n) == ("test", 12)
    assert alone.scores.accuracy == json.loads((first / "metrics.json").read_text())["test"]["accuracy"]
    found = score(first, idx, ensemble=[str(second)], mc=4, robustness=True)
    assert (found.split, found.scores.n, len(found.members)) == ("test", 12, 2)
    assert found.robustness is not None and found.robustness.outcomes[0].accuracy == found.scores.accuracy
    assert score(first, idx, split="train").scores.n == 60
    half = baseline(idx, tmp_path / "half", val=0.5)
    assert score(half, idx, ensemble=[str(first)]).split == "test"
    with pytest.raises(DataError, match="there are no labelled images in val"):
        score(half, idx, ensemble=[str(first)], split="val")


def test_other_classes_are_one_line(runs: Runs, new: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_photos(tmp_path / "data", {"cat": 5, "yak": 5})
    other = str(baseline(data, tmp_path / "yaks", image_size=16))
    model = str(runs("head").path)
    capsys.readouterr()
    for verb in ("predict", "evaluate"):
        assert main([verb, model, str(new), "--ensemble", other]) == 1
        wanted = f"error: ensemble: {other} knows other classes: it has 'yak', it lacks 'dog' and 1 more\n"
        assert capsys.readouterr() == ("", wanted)


def test_the_ensemble_of_a_script(runs: Runs, models: Models) -> None:
    ensemble = load_ensemble([runs("head").path, models() / "model"])
    assert ensemble.classes == load_model(models()).classes and len(ensemble.members) == 2
    with pytest.raises(SettingError, match="at least 2 passes expected, got 1"):
        load_ensemble([models()], passes=1)


@pytest.mark.parametrize("passes", ["1", "0", "-4"])
def test_too_few_passes(models: Models, new: Path, passes: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(models())
    capsys.readouterr()
    for verb in ("predict", "evaluate"):
        assert main([verb, model, str(new), "--mc", passes]) == 1
        assert capsys.readouterr() == ("", f"error: mc: at least 2 passes expected, got {passes}\n")


def test_passes_of_a_model_without_dropout(
    runs: Runs, models: Models, new: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for model in (runs("head").path, runs("full").path, models("nn"), models("softmax")):
        for verb in ("predict", "evaluate"):
            assert main([verb, str(model), str(new), "--mc", "4"]) == 1
            text = capsys.readouterr()
            last = text.err.splitlines()[-1]
            assert text.out == "" and last.startswith("error: mc: nothing that was trained in this model has dropout")
            assert "Traceback" not in text.err


def test_passes_say_how_sure_a_model_is(models: Models, new: Path) -> None:
    (plain, *_), (sampled, *_) = records(models(), new), records(models(), new, mc=50)
    assert "spread" not in plain and 0 < sampled["spread"] < 0.5
    found = score(models(), new, mc=50)
    assert found.members == () and found.spread is not None and "spread of the named class" in str(found)


def test_the_mirror_image_is_asked_about_as_well(runs: Runs, models: Models, new: Path) -> None:
    paths = [runs("head").path, models()]
    plain, both = load_ensemble(paths), load_ensemble(paths, mirrored=True)
    generator = torch.Generator().manual_seed(0)
    pixels = {
        one: torch.randint(0, 256, (5, 3, one.crop_px, one.crop_px), dtype=torch.uint8, generator=generator)
        for one in plain.decodings
    }
    there = plain.judge(pixels, torch.device("cpu"))
    turned = plain.judge({one: of.flip(-1) for one, of in pixels.items()}, torch.device("cpu"))
    found = both.judge(pixels, torch.device("cpu"))
    assert not torch.allclose(there.probabilities, turned.probabilities, atol=1e-3)
    torch.testing.assert_close(found.probabilities, (there.probabilities + turned.probabilities) / 2)
    assert found.votes.shape == (2, 5) and found.spread is not None
    (record, *_), (other, *_) = records(paths[1], new, mirror=True), records(paths[1], new)
    assert record["spread"] > 0 and "spread" not in other and record["probability"] != other["probability"]
    assert len(score(paths[0], new, ensemble=[str(paths[1])], mirror=True).members) == 2


def test_robustness_through_the_command_line(
    runs: Runs, models: Models, new: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "evaluate",
        str(runs("head").path),
        str(new),
        "--ensemble",
        str(models()),
        "--robustness",
        "--workers",
        "0",
    ]
    assert main([*words, "--out", str(tmp_path / "a"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    clean = found["robustness"]["changes"][0]
    assert clean["change"] == "unchanged" and clean["accuracy"] == found["accuracy"]
    assert len(found["robustness"]["changes"]) == 15
    assert main([*words, "--out", str(tmp_path / "b")]) == 0
    assert "worst class" in capsys.readouterr().out
    for name in ("robustness.csv", "robustness.png", "predictions.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with Image.open(tmp_path / "a/robustness.png") as image:
        image.load()
    assert main([*words, "--out", str(tmp_path / "c"), "--seed", "1"]) == 0
    assert (tmp_path / "c/robustness.png").read_bytes() != (tmp_path / "a/robustness.png").read_bytes()
    assert (tmp_path / "c/predictions.csv").read_bytes() == (tmp_path / "a/predictions.csv").read_bytes()


def test_tables_and_pictures_are_kept_out_of_the_photos(
    runs: Runs, new: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(new, tmp_path / "new"))
    before = sorted(data.rglob("*"))
    for out in (data, data / "cat", data / "scores"):
        assert main(["evaluate", str(runs("head").path), str(data), "--robustness", "--out", str(out)]) == 1
        assert "lies inside the folder of photos, which is only read" in capsys.readouterr().err
    assert sorted(data.rglob("*")) == before


def test_data_with_little_in_it(runs: Runs, tmp_path: Path) -> None:
    one = make_photos(tmp_path / "one", {"cat": 1})
    found = score(runs("head").path, one, robustness=True, ensemble=[str(runs("head").path)])
    assert found.scores.n == 1
    json.dumps(found.to_dict(), allow_nan=False)
    (one / "cat" / os.fsdecode(b"\xff.jpg")).write_bytes((one / "cat/000.jpg").read_bytes())
    (one / "cat/001.jpg").write_bytes((one / "cat/000.jpg").read_bytes()[:700])
    found = score(runs("head").path, one, robustness=True, split="all")
    assert (found.scores.n, found.quarantined) == (1, 2)


BAD: dict[str, tuple[list[str], int, str]] = {
    "no name": (["--ensemble"], 2, "expected at least one argument"),
    "nowhere": (["--ensemble", "nowhere"], 1, "nowhere does not exist; expected a run folder"),
    "twice": (["--ensemble", "A", "--ensemble", "B"], 2, "--ensemble is given twice; name all after one"),
    "twice with =": (["--ensemble=A", "--ensemble=B"], 2, "--ensemble is given twice; name all after one"),
    "mc in words": (["--mc", "many"], 2, "mc: int expected, got 'many'"),
    "workers": (["--workers", "-1"], 1, "workers: 0 to 1024 processes expected, got -1"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("verb", ["predict", "evaluate"])
def test_what_cannot_be_is_one_line(
    verb: str, case: str, runs: Runs, new: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, code, wanted = BAD[case]
    model = str(runs("head").path)
    capsys.readouterr()
    assert main([verb, model, str(new), *words]) == code
    text = capsys.readouterr()
    assert wanted in text.err and text.err.count("\n") == 1 and text.out == ""


NO_COUNTS: dict[str, list[Any]] = {
    "mc": ["3", 2.5, -1, 0, True, [3], float("nan")],
    "workers": ["2", 2.5, -1, True, [2]],
    "seed": ["0", 1.5, -1, True, None, 2**32],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in NO_COUNTS.items() for value in values])
def test_what_is_no_count_in_python_is_one_line(key: str, value: Any, tmp_path: Path) -> None:
    """Before anything is looked at: there is no such model."""
    wanted = {"mc": "at least 2 passes", "workers": "0 to 1024 processes", "seed": "0 to 2**32 − 1"}[key]
    given: dict[str, Any] = {key: value}
    line = re.escape(f"{key}: {wanted} expected, got {value!r}")
    if key != "seed":
        with pytest.raises(SettingError, match=f"^{line}$"):
            toolkit.predict("nowhere", ["nothing.jpg"], **given)
    else:
        with pytest.raises(SettingError, match=f"^{line}$"):
            toolkit.compare("nowhere", "elsewhere", **given)
        with pytest.raises(SettingError, match=f"^{line}$"):
            toolkit.notes("zigzag", out=str(tmp_path / "z.png"), **given)
    with pytest.raises(SettingError, match=f"^{line}$"):
        toolkit.evaluate("nowhere", "nothing", **given)


def test_counts_of_numpy_are_counts(models: Models, new: Path) -> None:
    count: Any = np.int64(3)
    (expected, *_), (found, *_) = records(models(), new, mc=3), records(models(), new, mc=count)
    assert found == expected
    assert score(models(), new, mc=count, seed=np.int64(1)).to_dict() == score(models(), new, mc=3, seed=1).to_dict()


@pytest.mark.parametrize("seed", ["-1", "4294967296"])
def test_a_seed_that_cannot_be(runs: Runs, new: Path, seed: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(runs("head").path)
    capsys.readouterr()
    assert main(["evaluate", model, str(new), "--robustness", "--seed", seed]) == 1
    assert capsys.readouterr() == ("", f"error: seed: 0 to 2**32 − 1 expected, got {seed}\n")


def test_flags_before_the_positionals(
    runs: Runs, models: Models, new: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, image = str(runs("head").path), str(models()), str(new / "cat/000.jpg")
    assert main(["predict", "--ensemble", second, first, image]) == 2  # it takes all the words
    assert "arguments are required" in capsys.readouterr().err
    found = []
    for words in (
        ["--ensemble", second, "--", first, image],
        ["--ensemble", second, "--workers", "0", first, image],
        [first, image, "--ensemble", second],
        [first, image, f"--ensemble={second}"],
    ):
        assert main(["predict", *words]) == 0
        found.append(capsys.readouterr().out)
    assert len(set(found)) == 1 and '"spread"' in found[0]


def test_from_yaml(runs: Runs, models: Models, new: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second, image = str(models()), str(new / "cat/000.jpg")
    words = ["predict", str(runs("head").path), image]
    assert main([*words, "--ensemble", second]) == 0
    expected = capsys.readouterr().out
    file = tmp_path / "a.yaml"
    for text in (f"ensemble: [{second}]", f"ensemble:\n- {second}\n"):
        file.write_text(text)
        assert main([*words, "--config", str(file)]) == 0
        assert capsys.readouterr().out == expected
    file.write_text("ensemble: [nowhere]")
    assert main([*words, "--config", str(file), "--ensemble", second]) == 0  # flags win
    assert capsys.readouterr().out == expected
    for text, wanted in (
        (f"ensemble: {second}", "ensemble: a list such as [a, b] expected, got "),
        ("ensemble: [1]", "ensemble: str expected, got '1'"),
        ("mc: 2.5", "mc: int expected, got '2.5'"),
        ("mc: true", "mc: int expected, got 'True'"),
    ):
        file.write_text(text)
        assert main([*words, "--config", str(file)]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"error: {file}: {wanted}") and error.count("\n") == 1
