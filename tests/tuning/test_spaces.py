"""What is searched, and the keys that it becomes, are what `finetune` and `baseline` take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from toolkit.baselines.options import BaselineOptions
from toolkit.options import Options
from toolkit.planning.recipes import RECIPES
from toolkit.tuning.points import random_point
from toolkit.tuning.space import Number, Space, point_of, settings_at
from toolkit.tuning.spaces import as_options, baseline_space, cuts_of, head_space, tail_space

SIZES = (100, 200, 300, 400, 500, 600, 700, 50)


def some(space: Space) -> list[dict[str, Any]]:
    corners = [np.zeros(len(space)), np.ones(len(space))]
    points = [*corners, *(random_point(len(space), 0, number) for number in range(40))]
    return [as_options(settings_at(space, point)) for point in points]


def test_every_point_is_a_set_of_options() -> None:
    for model in ("mlp", "linear", "softmax", "svm"):
        for options in some(baseline_space(model, ())):
            BaselineOptions(model=model, **options)
    for options in some(head_space(8, ())):
        Options(strategy="head", **options)
        assert options["taps"] == list(range(options["taps"][0], options["taps"][-1] + 1)) and options["taps"][-1] < 8
    for strategy in ("partial", "full"):
        for optimizer in (None, "sgd"):
            for options in some(tail_space(strategy, SIZES, optimizer, ())):
                Options(strategy=strategy, **options)


def test_what_is_given_is_not_searched() -> None:
    assert [part.name for part in baseline_space("mlp", ("hidden", "init", "lr"))] == [
        "l2",
        "dropout",
        "activation",
        "batchnorm",
    ]
    assert [part.name for part in head_space(8, ("taps",))] == ["head"]
    assert [part.name for part in head_space(8, ("head",))] == ["last", "count"]
    assert head_space(8, ("head", "taps")) == ()
    assert "cut" not in {part.name for part in tail_space("partial", SIZES, None, ("cut",))}


def test_defaults_are_those_of_a_run() -> None:
    space = baseline_space("mlp", ())
    options = as_options(settings_at(space, point_of(space, {})))
    run = BaselineOptions()
    for key in ("lr", "dropout", "activation", "init"):
        assert options[key] == run.value(key), key
    assert options["hidden"][:2] == list(run.value("hidden"))[:2] and not options["batchnorm"]
    for strategy in ("partial", "full"):
        defaults = {part.name: part.default for part in tail_space(strategy, SIZES, None, ())}
        assert defaults["lr"] == RECIPES[strategy].lr and defaults["weight_decay"] == RECIPES[strategy].weight_decay


def test_sgd_has_larger_rates() -> None:
    plain, momentum = (baseline_space("softmax", (), name)[0] for name in ("adam", "nesterov"))
    assert isinstance(plain, Number) and isinstance(momentum, Number)
    assert momentum.low == pytest.approx(10 * plain.low) and momentum.high == pytest.approx(10 * plain.high)
    adam, sgd = (tail_space("full", SIZES, name, ())[0] for name in (None, "sgd"))
    assert isinstance(adam, Number) and isinstance(sgd, Number)
    assert sgd.low == pytest.approx(30 * adam.low) and sgd.high == pytest.approx(30 * adam.high)


def test_cuts_train_weights_and_are_cuts() -> None:
    assert cuts_of((10, 10, 10, 10)) == (1, 2, 3) and cuts_of((10, 10, 0)) == (1,) and cuts_of((10,)) == ()


def test_layers_halve() -> None:
    assert as_options({"width": 100, "depth": 3})["hidden"] == [100, 50, 25]
    assert as_options({"width": 16, "depth": 3})["hidden"] == [16, 8, 8]
    assert as_options({"last": 6, "count": 3})["taps"] == [4, 5, 6] and as_options({"last": 1, "count": 8})["taps"] == [
        0,
        1,
    ]
