"""Options: the common keys of a run, checked once; a keyword, a flag and a YAML key are the same thing."""

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
from toolkit.plan import STRATEGIES

# Spelled out here, where their own rooms would import torch; a test holds the two together.
NAMES: dict[str, tuple[str, ...]] = {
    "strategy": ("auto", *STRATEGIES),
    "optimizer": ("adamw", "sgd"),
    "augment": ("none", "crop", "standard"),
    "class_weights": ("none", "balanced"),
    "precision": ("auto", "32-true", "bf16-mixed", "16-mixed"),
    "head": ("auto", "ridge", "logistic", "knn"),
}

CUSTOM = "custom"  # what stands in a YAML file for a backbone of the user's own

# Keys that only some strategies use; given with another strategy they are refused, not ignored.
TRAINED = ("partial", "full", "scratch")
USED_BY: dict[str, tuple[str, ...]] = {
    "cut": ("partial",),
    "weights": ("head", "partial", "full"),
    "head": ("head", "partial", "full"),
    "folds": ("head",),
    **dict.fromkeys(
        (
            "epochs",
            "lr",
            "weight_decay",
            "optimizer",
            "batch_size",
            "accumulate",
            "clip",
            "label_smoothing",
            "patience",
        ),
        TRAINED,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """The keys that `finetune` and `plan` share; `finetune`'s docstring says what each one does.

    None stands for "as the strategy and the backbone have it". Raises SettingError, one line, for a value that is
    unknown or out of range.
    """

    backbone: Any = "efficientnet_lite0"
    weights: str | None = None
    strategy: str = "auto"
    cut: int | None = None
    taps: Sequence[int] | None = None
    head: str | None = None
    folds: int | None = None
    image_size: int | None = None
    epochs: int | None = None
    lr: float | None = None
    weight_decay: float | None = None
    optimizer: str | None = None
    augment: str | None = None
    views: int | None = None
    batch_size: int | None = None
    accumulate: int | None = None
    clip: float | None = None
    label_smoothing: float | None = None
    patience: int | None = None
    class_weights: str = "none"
    val: float = 0.2
    max_pixels: int = 50_000_000
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
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
            if value not in known and not (value is None and getattr(Options, key) is None):
                raise unknown_name(key, str(value), known)
        self._check_backbone()
        for key, (kind, test, wanted) in _RANGES.items():
            value = getattr(self, key)
            if value is None and getattr(Options, key) is None:
                continue
            number = isinstance(value, kind) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or not test(value):
                raise SettingError(f"{key}: {wanted} expected, got {value!r}")
        if self.strategy != "auto":
            self.refuse_unused(self.strategy)

    def _check_backbone(self) -> None:
        name, taps = self.backbone, self.taps
        if isinstance(name, str) and name not in names.plain_names() and not name.startswith(names.TIMM_PREFIX):
            raise unknown_name("backbone", name, names.plain_names())
        for key in ("weights", "cache_dir"):
            if getattr(self, key) is not None and not isinstance(getattr(self, key), (str, os.PathLike)):
                raise SettingError(f"{key}: a path expected, got {getattr(self, key)!r}")
        if self.cache is False and self.cache_dir is not None:
            raise SettingError("cache_dir is not used where cache is false; remove it")
        if not isinstance(self.cache, bool):
            raise SettingError(f"cache: true or false expected, got {self.cache!r}")
        if taps is not None:
            whole = isinstance(taps, (list, tuple)) and all(type(tap) is int and tap >= 0 for tap in taps)
            if not whole or not taps or len(set(taps)) < len(taps):
                raise SettingError(f"taps: distinct stage numbers expected, such as 5,6,7, got {taps!r}")

    def given(self, key: str) -> bool:
        """Return whether the user set a key that is None by default."""
        return getattr(self, key) is not None

    def refuse_unused(self, strategy: str, chosen_by: str = "") -> None:
        """Raise SettingError if a key is set that the strategy does not use."""
        for key, strategies in USED_BY.items():
            if self.given(key) and strategy not in strategies:
                raise SettingError(
                    f"{key} is not used by the strategy {strategy!r}{chosen_by}; remove it, or set strategy to "
                    + " or ".join(repr(name) for name in strategies)
                )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a YAML file; files by their absolute paths."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if not isinstance(self.backbone, str):
            values["backbone"] = CUSTOM
        for key in ("weights", "cache_dir"):
            if values[key] is not None:
                values[key] = str(Path(values[key]).expanduser().absolute())
        if self.taps is not None:
            values["taps"] = list(self.taps)
        return values


_Test = Callable[[Any], bool]
_RANGES: dict[str, tuple[type | tuple[type, ...], _Test, str]] = {
    "cut": (int, lambda x: x >= 0, "a stage number of at least 0"),
    "image_size": (int, lambda x: 16 <= x <= 4096, "16 to 4096 pixels"),
    "epochs": (int, lambda x: 1 <= x <= 100_000, "1 to 100000"),
    "lr": ((int, float), lambda x: 0 < x <= 100, "a number above 0, at most 100,"),
    "weight_decay": ((int, float), lambda x: 0 <= x <= 10, "a number from 0 to 10"),
    "folds": (int, lambda x: 2 <= x <= 100, "2 to 100"),
    "views": (int, lambda x: 1 <= x <= 100_000, "1 to 100000"),
    "batch_size": (int, lambda x: 1 <= x <= 65_536, "1 to 65536"),
    "accumulate": (int, lambda x: 1 <= x <= 65_536, "1 to 65536"),
    "clip": ((int, float), lambda x: x > 0, "a gradient norm above 0"),
    "label_smoothing": ((int, float), lambda x: 0 <= x < 1, "a number from 0 to below 1"),
    "patience": (int, lambda x: x >= 1, "at least 1 epoch"),
    "val": ((int, float), lambda x: 0 < x < 1, "a fraction between 0 and 1"),
    "max_pixels": (int, lambda x: x >= 1, "at least 1 pixel"),
    "seed": (int, lambda x: 0 <= x < 2**32, "0 to 2**32 − 1"),
    "workers": (int, lambda x: 0 <= x <= 1024, "0 to 1024 processes"),
}
