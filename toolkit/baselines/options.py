"""BaselineOptions: the keys of `toolkit baseline`, checked once; a key that a model does not use is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.errors import SettingError
from toolkit.settings import COMMON_RANGES, NUMBER, Range, check_backbone, check_settings, plain_values

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
        (
            "track",
            "init",
            "optimizer",
            "lr",
            "schedule",
            "l1",
            "l2",
            "epochs",
            "batch_size",
            "patience",
            "layers",
            "precision",
        ),
        TRAINED,
    ),
    "track": TRAINED,
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
    pictures: bool = True
    cache: bool = True
    cache_dir: str | None = None
    track: bool = False

    def __post_init__(self) -> None:
        check_settings(self, NAMES, RANGES)
        check_backbone(self.backbone)
        self._refuse_unused()

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
        return plain_values(self)


RANGES: dict[str, Range] = {
    **COMMON_RANGES,
    "dropout": Range(NUMBER, lambda x: 0 <= x < 1, "a share of units from 0 to below 1"),
    "l1": Range(NUMBER, lambda x: 0 <= x <= 10, "a number from 0 to 10"),
    "l2": Range(NUMBER, lambda x: 0 <= x <= 10, "a number from 0 to 10"),
    "batch_size": Range(int, lambda x: 1 <= x <= 1_000_000, "1 to 1000000"),
    "k": Range(int, lambda x: x >= 1, "at least 1 neighbour"),
    "image_size": Range(int, lambda x: 4 <= x <= 4096, "4 to 4096 pixels"),
    "val": Range(NUMBER, lambda x: 0 <= x < 1, "a fraction from 0 to below 1"),
}
