"""Options: the common keys of a run, checked once; a keyword, a flag and a YAML key are the same thing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.errors import SettingError
from toolkit.plan import RECIPE_NAMES, STRATEGIES
from toolkit.settings import COMMON_RANGES, NUMBER, Range, check_backbone, check_settings, plain_values

# Spelled out here, where their own rooms would import torch; a test holds the two together.
NAMES: dict[str, tuple[str, ...]] = {
    "strategy": ("auto", *STRATEGIES),
    **RECIPE_NAMES,
    "augment": ("none", "crop", "light", "standard", "trivial", "rand"),
    "class_weights": ("none", "balanced"),
    "precision": ("auto", "32-true", "bf16-mixed", "16-mixed"),
    "head": ("auto", "ridge", "logistic", "knn"),
}

AUTO_BACKBONE = "auto"  # the pretrained networks of this machine are held against each other
AUTO_RATE = "auto"  # a range test finds it
CUSTOM = "custom"  # what stands in a YAML file for a backbone of the user's own

# Keys that only some strategies use; given with another strategy they are refused, not ignored.
TRAINED = ("partial", "full", "scratch")
USED_BY: dict[str, tuple[str, ...]] = {
    "cut": ("partial",),
    "weights": ("head", "partial", "full"),
    "head": ("head", "partial", "full"),
    "folds": ("head",),
    "mixing": ("partial", "full"),
    "layer_decay": ("partial", "full"),
    **dict.fromkeys(
        (
            "epochs",
            "lr",
            "weight_decay",
            "decay_towards",
            "optimizer",
            "batch_size",
            "accumulate",
            "clip",
            "warmup",
            "label_smoothing",
            "mixup",
            "cutmix",
            "drop_path",
            "batchnorm",
            "ema",
            "unfreeze",
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
    lr: float | str | None = None
    layer_decay: float | None = None
    weight_decay: float | None = None
    decay_towards: str | None = None
    optimizer: str | None = None
    augment: str | None = None
    views: int | None = None
    batch_size: int | None = None
    accumulate: int | None = None
    clip: float | None = None
    warmup: float | None = None
    label_smoothing: float | None = None
    mixup: float | None = None
    cutmix: float | None = None
    drop_path: float | None = None
    batchnorm: str | None = None
    ema: float | None = None
    unfreeze: int | None = None
    patience: int | None = None
    mixing: float | None = None
    budget: float | None = None
    class_weights: str = "none"
    val: float = 0.2
    max_pixels: int = 50_000_000
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    workers: int | None = None
    pictures: bool = True
    cache: bool = True
    cache_dir: str | None = None
    track: bool = False

    def __post_init__(self) -> None:
        check_settings(self, NAMES, RANGES, {"lr": AUTO_RATE})
        if isinstance(self.backbone, str) and self.backbone == AUTO_BACKBONE:
            for key, given in (("weights", self.weights is not None), ("strategy", self.strategy == "scratch")):
                if given:
                    raise SettingError(f"{key}: name the backbone that it is for; 'auto' compares pretrained ones")
        else:
            check_backbone(self.backbone)
        if self.strategy != "auto":
            self.refuse_unused(self.strategy)
            if self.budget is not None:
                raise SettingError(f"budget: only the strategy 'auto' chooses by it, got strategy {self.strategy!r}")

    def given(self, key: str) -> bool:
        """Return whether the user set a key that is None by default."""
        return getattr(self, key) is not None

    def sets(self, key: str) -> bool:
        """Return whether the user set a key to a value, and not to the word for one that is found."""
        return self.given(key) and (key, getattr(self, key)) != ("lr", AUTO_RATE)

    def refuse_unused(self, strategy: str, chosen_by: str = "") -> None:
        """Raise SettingError if a key is set that the strategy does not use."""
        if self.track and strategy == "head":
            raise SettingError(
                f"track is not used by the strategy 'head'{chosen_by}, which trains no epochs; remove it"
            )
        for key, strategies in USED_BY.items():
            if self.given(key) and strategy not in strategies:
                raise SettingError(
                    f"{key} is not used by the strategy {strategy!r}{chosen_by}; remove it, or set strategy to "
                    + " or ".join(repr(name) for name in strategies)
                )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a YAML file; files by their absolute paths."""
        values = plain_values(self)
        if not isinstance(self.backbone, str):
            values["backbone"] = CUSTOM
        return values


RANGES: dict[str, Range] = {
    **COMMON_RANGES,
    "lr": Range(NUMBER, lambda x: 0 < x <= 100, "a number above 0, at most 100, or auto"),
    "cut": Range(int, lambda x: x >= 0, "a stage number of at least 0"),
    "image_size": Range(int, lambda x: 16 <= x <= 4096, "16 to 4096 pixels"),
    "layer_decay": Range(NUMBER, lambda x: 0 < x <= 1, "a factor above 0, at most 1,"),
    "weight_decay": Range(NUMBER, lambda x: 0 <= x <= 10, "a number from 0 to 10"),
    "folds": Range(int, lambda x: 2 <= x <= 100, "2 to 100"),
    "views": Range(int, lambda x: 1 <= x <= 100_000, "1 to 100000"),
    "batch_size": Range(int, lambda x: 1 <= x <= 65_536, "1 to 65536"),
    "accumulate": Range(int, lambda x: 1 <= x <= 65_536, "1 to 65536"),
    "clip": Range(NUMBER, lambda x: x > 0, "a gradient norm above 0"),
    "label_smoothing": Range(NUMBER, lambda x: 0 <= x < 1, "a number from 0 to below 1"),
    "warmup": Range(NUMBER, lambda x: 0 <= x <= 1, "a share of the steps from 0 to 1"),
    "mixup": Range(NUMBER, lambda x: 0 <= x <= 100, "α from 0 to 100"),
    "cutmix": Range(NUMBER, lambda x: 0 <= x <= 100, "α from 0 to 100"),
    "drop_path": Range(NUMBER, lambda x: 0 <= x < 1, "a share from 0 to below 1"),
    "ema": Range(NUMBER, lambda x: 0 <= x < 1, "a share from 0 to below 1"),
    "unfreeze": Range(int, lambda x: 0 <= x <= 100_000, "a number of epochs from 0"),
    "budget": Range(NUMBER, lambda x: 0 <= x <= 100_000, "minutes from 0 to 100000"),
    "mixing": Range(NUMBER, lambda x: 0 < x <= 1, "a share above 0, at most 1"),
    "val": Range(NUMBER, lambda x: 0 < x < 1, "a fraction between 0 and 1"),
}
