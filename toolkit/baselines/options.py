"""BaselineOptions: the keys of `toolkit baseline`, checked once; a key that a model does not use is refused."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from toolkit.backbones import names
from toolkit.errors import SettingError, unknown_name

# Spelled out here, where their own files would import torch; a test holds them together.
NAMES: dict[str, tuple[str, ...]] = {
    "model": ("mlp", "linear", "softmax", "svm", "knn", "nn"),
    "on": ("pixels", "hog", "features"),
    "activation": ("relu", "leaky_relu", "elu", "tanh", "sigmoid", "identity", "maxout"),
    "init": ("he", "xavier", "small", "large", "zeros"),
    "loss": ("cross_entropy", "hinge"),
    "optimizer": ("adam", "sgd", "momentum", "nesterov", "adagrad", "rmsprop"),
    "schedule": ("constant", "step", "exponential", "inverse", "cosine"),
    "layers": ("torch", "reference"),
    "precision": ("32-true", "64-true"),
    "metric": ("l1", "l2", "cosine"),
    "search": ("exact", "approximate"),
}

NEIGHBOURS = ("knn", "nn")
TRAINED = ("mlp", "linear", "softmax", "svm")
USED_BY: dict[str, tuple[str, ...]] = {  # the models that use a key; all use the others
    **dict.fromkeys(("hidden", "activation", "batchnorm", "dropout"), ("mlp",)),
    "loss": ("mlp", "linear"),
    **dict.fromkeys(
        ("init", "optimizer", "lr", "schedule", "l1", "l2", "epochs", "batch_size", "patience", "layers", "precision"),
        TRAINED,
    ),
    "k": ("knn",),
    **dict.fromkeys(("metric", "search"), NEIGHBOURS),
}
ON_FEATURES = ("backbone", "weights", "taps")  # used on stored features alone

HIDDEN = (256, 128, 100)  # the net that Fashion-MNIST's own list of results has at 0.8833
DEFAULTS: dict[str, Any] = {
    "activation": "relu",
    "dropout": 0.0,
    "optimizer": "adam",
    "lr": 1e-3,
    "schedule": "constant",
    "l1": 0.0,
    "l2": 0.0,
    "epochs": 20,
    "batch_size": 256,
    "layers": "torch",
    "precision": "32-true",
    "k": 5,
    "metric": "l1",
    "search": "exact",
    "backbone": "efficientnet_lite0",
}


@dataclass(frozen=True, kw_only=True)
class BaselineOptions:
    """The keys of `train_baseline`, whose docstring says what each one does; None stands for the default of a model.

    Raises SettingError, one line, for a value that is unknown or out of range, or that the model does not use.
    """

    model: str = "mlp"
    on: str = "pixels"
    hidden: Sequence[int] | None = None
    activation: str | None = None
    init: str | None = None
    batchnorm: bool = False
    dropout: float | None = None
    loss: str | None = None
    optimizer: str | None = None
    lr: float | None = None
    schedule: str | None = None
    l1: float | None = None
    l2: float | None = None
    epochs: int | None = None
    batch_size: int | None = None
    patience: int | None = None
    layers: str | None = None
    precision: str | None = None
    k: int | None = None
    metric: str | None = None
    search: str | None = None
    image_size: int | None = None
    backbone: str | None = None
    weights: str | None = None
    taps: Sequence[int] | None = None
    val: float | None = None
    max_pixels: int = 50_000_000
    seed: int = 0
    device: str = "auto"
    workers: int | None = None
    cache: bool = True
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        for key, value in vars(self).items():  # numbers of NumPy and others become Python's
            if type(value) is bool:
                continue
            if isinstance(value, numbers.Integral):
                object.__setattr__(self, key, int(value))
            elif isinstance(value, numbers.Real):
                object.__setattr__(self, key, float(value))
        for key, known in NAMES.items():
            value = getattr(self, key)
            if value not in known and not (value is None and getattr(BaselineOptions, key) is None):
                raise unknown_name(key, str(value), known)
        for key, (kind, test, wanted) in _RANGES.items():
            value = getattr(self, key)
            if value is None and getattr(BaselineOptions, key) is None:
                continue
            number = isinstance(value, kind) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or not test(value):
                raise SettingError(f"{key}: {wanted} expected, got {value!r}")
        self._check_lists()
        self._check_others()
        self._refuse_unused()

    def _check_lists(self) -> None:
        for key, least, wanted in (("hidden", 1, "sizes such as 256,128,100"), ("taps", 0, "stages such as 5,6,7")):
            value = getattr(self, key)
            if value is None:
                continue
            whole = isinstance(value, (list, tuple)) and all(type(n) is int and n >= least for n in value)
            if not whole or not value or (key == "taps" and len(set(value)) < len(value)):
                raise SettingError(f"{key}: {wanted} expected, got {value!r}")

    def _check_others(self) -> None:
        for key in ("batchnorm", "cache"):
            if not isinstance(getattr(self, key), bool):
                raise SettingError(f"{key}: true or false expected, got {getattr(self, key)!r}")
        for key in ("weights", "cache_dir"):
            if getattr(self, key) is not None and not isinstance(getattr(self, key), (str, os.PathLike)):
                raise SettingError(f"{key}: a path expected, got {getattr(self, key)!r}")
        if self.cache is False and self.cache_dir is not None:
            raise SettingError("cache_dir is not used where cache is false; remove it")
        name = self.backbone
        if name is not None and name not in names.plain_names() and not str(name).startswith(names.TIMM_PREFIX):
            raise unknown_name("backbone", str(name), names.plain_names())

    def _refuse_unused(self) -> None:
        for key, models in USED_BY.items():
            if getattr(self, key) not in (None, False) and self.model not in models:
                raise SettingError(
                    f"{key} is not used by the model {self.model!r}; remove it, or set model to "
                    + " or ".join(repr(name) for name in models)
                )
        for key in ON_FEATURES:
            if getattr(self, key) is not None and self.on != "features":
                raise SettingError(f"{key} is used on stored features alone; remove it, or set on to 'features'")
        if self.activation == "maxout" and self.batchnorm:
            raise SettingError("batchnorm is not used by maxout, which has no place for it; remove one of the two")

    def value(self, key: str) -> Any:
        """Return the value of a key, or what it is by default for this model."""
        given = getattr(self, key)
        if given is not None:
            return given
        if key == "hidden":
            return HIDDEN if self.model == "mlp" else ()
        if key == "loss":
            return "hinge" if self.model == "svm" else "cross_entropy"
        if key == "init":  # tanh and sigmoid halve nothing; a linear classifier has no symmetry to break
            straight = self.value("activation") in ("tanh", "sigmoid", "identity")
            return ("xavier" if straight else "he") if self.model == "mlp" else "zeros"
        if key == "k" and self.model == "nn":
            return 1
        return DEFAULTS[key]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a YAML file; files by their absolute paths."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for key in ("weights", "cache_dir"):
            if values[key] is not None:
                values[key] = str(Path(values[key]).expanduser().absolute())
        return {key: list(value) if isinstance(value, (list, tuple)) else value for key, value in values.items()}


_Test = Callable[[Any], bool]
_RANGES: dict[str, tuple[type | tuple[type, ...], _Test, str]] = {
    "dropout": ((int, float), lambda x: 0 <= x < 1, "a share of units from 0 to below 1"),
    "lr": ((int, float), lambda x: 0 < x <= 100, "a number above 0, at most 100,"),
    "l1": ((int, float), lambda x: 0 <= x <= 10, "a number from 0 to 10"),
    "l2": ((int, float), lambda x: 0 <= x <= 10, "a number from 0 to 10"),
    "epochs": (int, lambda x: 1 <= x <= 100_000, "1 to 100000"),
    "batch_size": (int, lambda x: 1 <= x <= 1_000_000, "1 to 1000000"),
    "patience": (int, lambda x: x >= 1, "at least 1 epoch"),
    "k": (int, lambda x: x >= 1, "at least 1 neighbour"),
    "image_size": (int, lambda x: 4 <= x <= 4096, "4 to 4096 pixels"),
    "val": ((int, float), lambda x: 0 <= x < 1, "a fraction from 0 to below 1"),
    "max_pixels": (int, lambda x: x >= 1, "at least 1 pixel"),
    "seed": (int, lambda x: 0 <= x < 2**32, "0 to 2**32 − 1"),
    "workers": (int, lambda x: 0 <= x <= 1024, "0 to 1024 processes"),
}
