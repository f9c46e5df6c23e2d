"""BaselineOptions: names are those of the code, ranges hold, and no key is ignored."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from toolkit.baselines import module, neighbours, net
from toolkit.baselines.options import DEFAULTS, NAMES, RANGES, TRAINED, USED_BY, BaselineOptions
from toolkit.errors import SettingError
from toolkit.reference.activations import ACTIVATIONS
from toolkit.reference.initializers import INITIALIZERS

BAD: dict[str, list[Any]] = {
    "dropout": [-0.1, 1.0, math.nan, "half", True],
    "lr": [0, -1.0, math.nan, math.inf, 101],
    "l1": [-1e-9, math.nan, 11],
    "l2": [-1e-9, math.inf, 11],
    "epochs": [0, 1.5, True],
    "batch_size": [0, 2_000_000],
    "patience": [0],
    "k": [0, -1, 2.5],
    "image_size": [3, 5000],
    "val": [-0.1, 1.0, 1, math.nan],
    "max_pixels": [0],
    "seed": [-1, 2**32],
    "workers": [-1],
}


def model_for(key: str) -> str:
    return USED_BY.get(key, ("mlp",))[0]


def test_names_are_those_of_the_code() -> None:
    assert set(NAMES["activation"]) == {*ACTIVATIONS, "maxout"} == {*net.TORCH_ACTIVATIONS, "maxout"}
    assert set(NAMES["init"]) == set(INITIALIZERS)
    assert NAMES["loss"] == module.LOSSES and NAMES["optimizer"] == module.OPTIMIZERS
    assert NAMES["schedule"] == module.SCHEDULES and NAMES["layers"] == net.LAYERS
    assert NAMES["metric"] == neighbours.METRICS and NAMES["search"] == neighbours.SEARCHES
    assert set(RANGES) == set(BAD)


@pytest.mark.parametrize("key", BAD)
def test_values_out_of_range_are_refused_with_key_and_value(key: str) -> None:
    for value in BAD[key]:
        with pytest.raises(SettingError) as caught:
            BaselineOptions(model=model_for(key), **{key: value})
        text = str(caught.value)
        assert text.startswith(f"{key}: ") and text.endswith(f"expected, got {value!r}") and "\n" not in text


@pytest.mark.parametrize("key", NAMES)
def test_unknown_names_are_refused_with_the_nearest(key: str) -> None:
    near = NAMES[key][0]
    with pytest.raises(SettingError, match=f"unknown {key} '{near}x'; did you mean one of: .*{near}"):
        BaselineOptions(**{"model": model_for(key), key: f"{near}x"})


@pytest.mark.parametrize("hidden", [[], [0], [-4], [1.5], [True], "256", [[3]]])
def test_hidden_sizes_are_whole_numbers_above_0(hidden: Any) -> None:
    with pytest.raises(SettingError, match="hidden: sizes such as 256,128,100 expected, got"):
        BaselineOptions(hidden=hidden)


VALUES: dict[str, Any] = {
    "hidden": [8],
    "activation": "tanh",
    "batchnorm": True,
    "dropout": 0.1,
    "loss": "hinge",
    "init": "xavier",
    "optimizer": "sgd",
    "lr": 0.1,
    "schedule": "step",
    "l1": 0.1,
    "l2": 0.1,
    "epochs": 2,
    "batch_size": 8,
    "patience": 2,
    "layers": "reference",
    "precision": "64-true",
    "k": 3,
    "metric": "l2",
    "search": "approximate",
    "track": True,
}


@pytest.mark.parametrize("key", USED_BY)
def test_a_key_that_a_model_does_not_use_is_refused_not_ignored(key: str) -> None:
    for model in NAMES["model"]:
        if model in USED_BY[key]:
            assert getattr(BaselineOptions(model=model, **{key: VALUES[key]}), key) == VALUES[key]
        else:
            with pytest.raises(SettingError, match=f"^{key} is not used by the model '{model}'"):
                BaselineOptions(model=model, **{key: VALUES[key]})


@pytest.mark.parametrize(("key", "value"), [("backbone", "resnet18"), ("weights", "w.pt"), ("taps", [1, 2])])
def test_what_belongs_to_features_is_refused_elsewhere(key: str, value: Any) -> None:
    assert getattr(BaselineOptions(on="features", **{key: value}), key) == value
    for on in ("pixels", "hog"):
        with pytest.raises(SettingError, match=f"^{key} is used on stored features alone"):
            BaselineOptions(on=on, **{key: value})


def test_other_refusals() -> None:
    for settings, text in (
        ({"activation": "maxout", "batchnorm": True}, "batchnorm is not used by maxout"),
        ({"cache": False, "cache_dir": "c"}, "cache_dir is not used where cache is false"),
        ({"cache": "no"}, "cache: true or false expected"),
        ({"on": "features", "backbone": "resnet19"}, "unknown backbone 'resnet19'"),
        ({"on": "features", "taps": [1, 1]}, "taps: "),
        ({"cache_dir": 3}, "cache_dir: a path expected"),
    ):
        with pytest.raises(SettingError, match=text):
            BaselineOptions(**settings)


def test_defaults_depend_on_the_model() -> None:
    assert BaselineOptions().value("hidden") == (256, 128, 100) and BaselineOptions().value("loss") == "cross_entropy"
    assert BaselineOptions(model="svm").value("loss") == "hinge"
    assert BaselineOptions(model="softmax").value("hidden") == ()
    assert BaselineOptions(model="softmax").value("init") == "zeros"
    assert BaselineOptions(activation="tanh").value("init") == "xavier"
    assert [BaselineOptions(model=name).value("k") for name in ("knn", "nn")] == [5, 1]
    assert BaselineOptions(lr=0.5).value("lr") == 0.5 and BaselineOptions().value("lr") == DEFAULTS["lr"]
    assert {"mlp", "linear", "softmax", "svm"} == set(TRAINED)


def test_options_survive_the_yaml_file_of_a_run() -> None:
    options = BaselineOptions(hidden=(3, 4), lr=np.float64(0.5), epochs=np.int64(3), weights=None)
    values = options.to_dict()
    assert set(values) == {field.name for field in fields(BaselineOptions)}
    assert type(values["lr"]) is float and type(values["epochs"]) is int and values["hidden"] == [3, 4]
    assert BaselineOptions(**values).to_dict() == values
