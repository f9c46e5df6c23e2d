"""Options: names and ranges are checked at once, and everything survives the YAML file of a run."""

from __future__ import annotations

import ast
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from toolkit import options as module
from toolkit.data.views import AUGMENTATIONS
from toolkit.errors import SettingError
from toolkit.hardware import PRECISIONS
from toolkit.options import NAMES, USED_BY, Options
from toolkit.plan import STRATEGIES

BELOW_AND_ABOVE: dict[str, tuple[list[Any], list[Any]]] = {
    "cut": ([-1], []),
    "image_size": ([15, 0, -32], [4097]),
    "epochs": ([0, -1], [100_001]),
    "lr": ([0, -1e-3], [100.1]),
    "layer_decay": ([0, -0.5], [1.01]),
    "weight_decay": ([-1e-9], [10.5]),
    "views": ([0], [100_001]),
    "folds": ([1], [101]),
    "batch_size": ([0], [65_537]),
    "accumulate": ([0], [65_537]),
    "clip": ([0, -1.0], []),
    "warmup": ([-0.1], [1.1]),
    "label_smoothing": ([-0.1], [1.0]),
    "mixup": ([-0.1], [101]),
    "cutmix": ([-0.1], [101]),
    "drop_path": ([-0.1], [1.0]),
    "ema": ([-0.1], [1.0]),
    "unfreeze": ([-1], [100_001]),
    "patience": ([0], []),
    "mixing": ([0, -0.5], [1.01]),
    "budget": ([-0.1], [100_001]),
    "val": ([0, 0.0, -0.2], [1, 1.0, 20]),
    "max_pixels": ([0], []),
    "seed": ([-1], [2**32]),
    "workers": ([-1], [1_025]),
}
WHOLE = {
    "cut",
    "image_size",
    "epochs",
    "views",
    "folds",
    "batch_size",
    "accumulate",
    "patience",
    "unfreeze",
    "max_pixels",
    "seed",
    "workers",
}
STRATEGY_OF = {"cut": "partial", "folds": "head", "budget": "auto"}


def strategy_for(key: str) -> str:
    return STRATEGY_OF.get(key, "full")


def test_every_number_has_a_range() -> None:
    assert set(BELOW_AND_ABOVE) == set(module.RANGES)
    numbers = {key for key, hint in Options.__annotations__.items() if "int" in hint or "float" in hint}
    assert numbers - {"taps"} == set(module.RANGES)


@pytest.mark.parametrize("key", BELOW_AND_ABOVE)
def test_values_out_of_range_are_refused_with_key_and_value(key: str) -> None:
    strange = [True, "3", [1], math.nan, math.inf]
    if key in WHOLE:
        strange.append(1.5)
    for value in (*BELOW_AND_ABOVE[key][0], *BELOW_AND_ABOVE[key][1], *strange):
        with pytest.raises(SettingError) as caught:
            Options(strategy=strategy_for(key), **{key: value})
        text = str(caught.value)
        assert text.startswith(f"{key}: ") and text.endswith(f"expected, got {value!r}") and "\n" not in text


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("cut", [0, 7]),
        ("image_size", [16, 4096]),
        ("epochs", [1, 100_000]),
        ("lr", [1e-9, 1, 100]),
        ("weight_decay", [0, 10.0]),
        ("clip", [1e-6, 1e6]),
        ("label_smoothing", [0, 0.99]),
        ("val", [1e-6, 0.999]),
        ("seed", [0, 2**32 - 1]),
        ("workers", [0, 1024]),
    ],
)
def test_the_ends_of_a_range_are_in_it(key: str, values: list[Any]) -> None:
    for value in values:
        assert getattr(Options(strategy=strategy_for(key), **{key: value}), key) == value


@pytest.mark.parametrize(
    ("key", "wrong", "near"),
    [
        ("strategy", "partail", "partial"),
        ("optimizer", "adam", "adamw"),
        ("augment", "standart", "standard"),
        ("class_weights", "balance", "balanced"),
        ("precision", "bf16", "bf16-mixed"),
        ("backbone", "resnet81", "resnet18"),
        ("backbone", "efficientnet_lite_0", "efficientnet_lite0"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(key: str, wrong: str, near: str) -> None:
    with pytest.raises(SettingError, match=f"unknown {key} '{wrong}'; did you mean one of: .*{near}"):
        Options(**{"strategy": "full", key: wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize("key", NAMES)
def test_a_name_of_another_type_is_refused(key: str) -> None:
    for value in (3, ["head"]):
        with pytest.raises(SettingError, match=f"unknown {key}"):
            Options(**{key: value})  # type: ignore[arg-type]


def test_a_key_whose_default_is_a_value_cannot_be_none() -> None:
    for key in ("strategy", "class_weights", "precision"):
        with pytest.raises(SettingError, match=f"unknown {key} 'None'"):
            Options(**{key: None})  # type: ignore[arg-type]
    for key in ("val", "max_pixels", "seed"):
        with pytest.raises(SettingError, match=f"^{key}: .* expected, got None$"):
            Options(**{key: None})  # type: ignore[arg-type]


def test_the_names_are_those_of_the_rooms_that_use_them() -> None:
    assert set(NAMES["augment"]) == set(AUGMENTATIONS)
    assert set(NAMES["precision"]) == {"auto", *PRECISIONS}
    assert set(NAMES["strategy"]) == {"auto", *STRATEGIES}


@pytest.mark.parametrize("taps", [[], [-1], [1, 1], [1.0], ["1"], "6,7", 7, [True], {6}])
def test_taps_that_are_none_are_refused(taps: Any) -> None:
    with pytest.raises(SettingError, match=r"taps: distinct stage numbers expected"):
        Options(taps=taps)


def test_weights_are_a_file() -> None:
    with pytest.raises(SettingError, match="weights: a path expected, got 3"):
        Options(weights=3)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="cache_dir: a path expected, got 3"):
        Options(cache_dir=3)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="cache: true or false expected, got 'no'"):
        Options(cache="no")  # type: ignore[arg-type]


@pytest.mark.parametrize("key", USED_BY)
def test_a_key_that_the_strategy_does_not_use_is_refused(key: str) -> None:
    values: dict[str, Any] = {"optimizer": "sgd", "augment": "crop", "weights": "w.pth", "clip": 1.0, "head": "ridge"}
    values |= {"decay_towards": "start", "batchnorm": "moving"}
    value = values.get(key, 2 if key in WHOLE else 0.5)
    for strategy in STRATEGIES:
        if strategy in USED_BY[key]:
            Options(strategy=strategy, **{key: value})
        else:
            with pytest.raises(SettingError, match=f"^{key} is not used by the strategy '{strategy}'; remove"):
                Options(strategy=strategy, **{key: value})


def test_options_survive_their_yaml() -> None:
    options = Options(strategy="partial", taps=(5, 7), lr=1e-5, val=0.3, weights="w.pth", workers=0, seed=3)
    values = options.to_dict()
    assert values["weights"] == str(Path("w.pth").absolute())
    again = Options(**yaml.safe_load(yaml.safe_dump(values)))
    assert again.to_dict() == values
    assert list(values) == list(Options.__annotations__)


def test_a_file_given_as_path_and_a_backbone_of_ones_own_become_plain_values(tmp_path: Path) -> None:
    values = Options(backbone=nn.Sequential(nn.Flatten()), weights=tmp_path / "w").to_dict()  # type: ignore[arg-type]
    assert (values["backbone"], values["weights"]) == ("custom", str(tmp_path / "w"))


def test_options_import_no_torch() -> None:
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    roots = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
    }
    assert roots <= {
        "__future__",
        "collections",
        "dataclasses",
        "math",
        "numbers",
        "os",
        "pathlib",
        "typing",
        "toolkit",
    }


def test_lists_and_strings_of_numpy_and_a_device_become_python_s() -> None:
    given: Any = {"taps": list(np.arange(5, 8)), "strategy": np.str_("head"), "device": torch.device("cpu")}
    options = Options(**given)
    assert options.taps == [5, 6, 7] and {type(tap) for tap in options.taps} == {int}
    assert type(options.strategy) is str and options.device == "cpu"


def test_numbers_of_numpy_become_python_s() -> None:
    options = Options(strategy="partial", lr=np.float64(1e-3), seed=np.int64(3), epochs=np.int32(2))  # type: ignore[arg-type]
    assert options == Options(strategy="partial", lr=1e-3, seed=3, epochs=2)
    assert [type(value) for value in (options.lr, options.seed, options.epochs)] == [float, int, int]
