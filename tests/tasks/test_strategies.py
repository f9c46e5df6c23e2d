"""The strategies: what they leave untouched, where they start, and that what was scored is what is shipped."""

from __future__ import annotations

import csv
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.tasks.conftest import Runs
from tests.tasks.small import run
from toolkit.backbones.catalog import build_backbone
from toolkit.tasks.predict import predict
from toolkit.tasks.run import Run

STRATEGIES = ("head", "partial", "full", "scratch")


def stage_tensors(model: Path, stage: int) -> dict[str, torch.Tensor]:
    prefix = f"stages.{stage}."
    tensors = load_file(model / "model.safetensors")
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


@pytest.mark.parametrize(("strategy", "cut"), [("head", 8), ("partial", 5), ("full", 0)])
def test_the_saved_prefix_is_the_backbones_to_the_bit(runs: Runs, strategy: str, cut: int) -> None:
    backbone = build_backbone("efficientnet_lite0")
    for index, stage in enumerate(backbone.stages):
        saved, original = stage_tensors(runs(strategy).model_path, index), stage.state_dict()
        assert saved.keys() == original.keys()
        equal = all(torch.equal(saved[key], original[key]) for key in original)
        assert equal == (index < cut), f"stage {index}"


def test_scratch_starts_from_random_weights(runs: Runs) -> None:
    pretrained = build_backbone("efficientnet_lite0").stages[0].state_dict()
    random = build_backbone("efficientnet_lite0", pretrained=False, seed=0).stages[0].state_dict()
    key = next(key for key, value in random.items() if value.ndim == 4)
    saved = stage_tensors(runs("scratch").model_path, 0)[key]
    cosine = torch.nn.functional.cosine_similarity
    assert float(cosine(saved.flatten(), random[key].flatten(), dim=0)) > 0.95
    assert float(cosine(saved.flatten(), pretrained[key].flatten(), dim=0)) < 0.5


@pytest.mark.parametrize(
    ("strategy", "multipliers"),
    [
        ("head", [0.0] * 8 + [1.0]),
        ("partial", [0.0] * 5 + [0.01, 0.01, 0.1, 1.0]),
        ("full", [1.0] * 9),
        ("scratch", [1.0] * 9),
    ],
)
def test_the_plan_has_the_rates_of_its_strategy(runs: Runs, strategy: str, multipliers: list[float]) -> None:
    assert list(runs(strategy).plan.multipliers) == multipliers


def test_a_decay_from_part_to_part_takes_the_place_of_the_notes_rates(photos: Path, tmp_path: Path) -> None:
    for strategy, frozen in (("partial", 5), ("full", 0)):
        plan = run(photos, tmp_path / strategy, strategy, layer_decay=0.5).plan
        assert plan.multipliers == tuple(0.5 ** (8 - stage) if stage >= frozen else 0.0 for stage in range(9))
        assert "layer_decay" in plan.overridden


def test_auto_chooses_head_for_few_photographs(photos: Path, tmp_path: Path, runs: Runs) -> None:
    result = run(photos, tmp_path / "run", "auto")
    assert result.plan.strategy == "head"
    assert result.plan.reasons[0].startswith("24 training images that are ")
    assert result.plan.similarity is not None and 0 < result.plan.similarity < 1
    assert [way["strategy"] for way in result.plan.ways] == ["head"] and result.plan.runner_up is None
    assert any("fewer than 100" in reason for reason in result.plan.reasons)
    assert result.plan.predicted is not None and result.plan.predicted["bytes"] == 0
    low, high = result.plan.predicted["accuracy"]
    assert 0 <= low < high <= 1


def history(result: Run) -> list[dict[str, str]]:
    with open(result.path / "history.csv", encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("strategy", ["partial", "full"])
def test_fine_tuning_starts_from_the_trained_head(runs: Runs, strategy: str) -> None:
    rows = history(runs(strategy))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert rows[0]["step"] == "0" and rows[0]["train_loss"] == ""
    assert float(rows[0]["val_loss"]) == pytest.approx(runs("head").metrics["val"]["nll"], rel=1e-3)
    assert float(rows[0]["val_loss"]) < math.log(3) / 2  # noise would give ln 3 or more
    assert float(rows[1]["train_loss"]) < math.log(3) / 2


def test_scratch_starts_from_ln_c(runs: Runs) -> None:
    rows = history(runs("scratch"))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[0]["train_loss"]) > math.log(3) / 2


def test_the_rates_are_printed(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(photos, tmp_path / "run", "partial", epochs=1, lr=0.002, cut=5)
    lines = [line.split() for line in capsys.readouterr().err.splitlines()]
    rates = {" ".join(line[:2]): line for line in lines if line and line[0] == "stage"}
    assert set(rates) == {"stage 5", "stage 6", "stage 7"}
    assert "×0.01" in rates["stage 6"] and "2e-05" in rates["stage 6"]
    assert "×0.1" in rates["stage 7"] and "0.0002" in rates["stage 7"]
    assert any(line[:1] == ["head"] and "×1" in line and "0.002" in line for line in lines)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_was_scored_is_what_is_shipped(
    runs: Runs, photos: Path, strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = runs(strategy)
    with open(result.path / "predictions.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    shutil.copytree(result.model_path, tmp_path / "elsewhere/shipped")
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/data").symlink_to(photos)
    for model, root in ((str(result.path), str(photos)), ("shipped", "data")):
        records = list(predict(model, [f"{root}/{row['path']}" for row in rows], device="cpu", workers=0))
        assert [record["label"] for record in records] == [row["prediction"] for row in rows]
        for record, row in zip(records, rows, strict=True):
            assert record["probability"] == pytest.approx(float(row["probability"]), abs=1e-4)


@pytest.mark.parametrize("option", [{"taps": [7]}, {"class_weights": "balanced"}, {"precision": "bf16-mixed"}])
def test_options_of_the_head(photos: Path, tmp_path: Path, option: dict[str, object]) -> None:
    result = run(photos, tmp_path / "run", "head", **option)
    assert result.metrics["val"]["n"] == 6
    assert list(result.plan.taps) == option.get("taps", [7, 6, 5, 4][: len(result.plan.taps)][::-1])


def test_options_of_a_trained_tail(photos: Path, tmp_path: Path) -> None:
    options = {"optimizer": "sgd", "augment": "crop", "views": 1, "accumulate": 2, "clip": 0.5, "patience": 1}
    more = {"label_smoothing": 0.1, "weight_decay": 0.0, "class_weights": "balanced", "taps": [7]}
    result = run(photos, tmp_path / "run", "partial", **options, **more)
    assert (result.plan.augmentation, result.plan.views, result.plan.recipe.weight_decay) == ("crop", 1, 0.0)
    assert result.metrics["val"]["accuracy"] > 0.6


def test_a_class_with_one_photograph_goes_to_train_and_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.photos import make_photos

    data = make_photos(tmp_path / "data", {"cat": 6, "dog": 6, "yak": 1})
    result = run(data, tmp_path / "run")
    assert "note: class 'yak' has a single image" in capsys.readouterr().err
    assert result.metrics["val"]["n"] == 2 and result.metrics["train"]["n"] == 11


def test_a_backbone_of_ones_own_does_the_main_job(photos: Path, tmp_path: Path) -> None:
    import toolkit
    from toolkit.errors import ArtifactError

    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 8, 3, 2), torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Conv2d(8, 16, 3, 2))]
    result = toolkit.finetune(str(photos), out=str(tmp_path / "run"), backbone=layers, workers=0, device="cpu")  # type: ignore[arg-type]
    assert result.metrics["backbone"] == "custom" and result.metrics["val"]["n"] == 6
    with pytest.raises(ArtifactError, match=r"load it with load_model\(path, stages="):
        toolkit.load_model(result.path)
    model = toolkit.load_model(result.path, stages=toolkit.as_backbone(layers).stages)
    assert model.classes == ("cat", "dog", "owl")
