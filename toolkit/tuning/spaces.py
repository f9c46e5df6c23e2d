"""What is searched for each kind of model, and how the parameters become keys of `finetune` and `baseline`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from toolkit.backbones.taps import DEFAULT_TAPS
from toolkit.plan import partial_cut
from toolkit.tuning.space import Choice, Number, Space

# Ranges about three factors of ten to each side of what is usual, as notes: Hyperparameter Optimization has them.
LR = Number("lr", 1e-5, 1e-1, 1e-3)
L2 = Number("l2", 1e-7, 1e-1, 0.0)
MLP: Space = (
    LR,
    L2,
    Number("width", 32, 1024, 256, whole=True),
    Number("depth", 1, 3, 3, log=False, whole=True),
    Number("dropout", 0.0, 0.6, 0.0, log=False),
    Choice("activation", ("relu", "leaky_relu", "elu", "tanh"), "relu"),
    Choice("init", ("he", "xavier"), "he"),
    Choice("batchnorm", (False, True), False),
)
LINEAR: Space = (LR, L2)
LARGER_RATES = {"sgd": 30.0, "momentum": 10.0, "nesterov": 10.0}
NARROWEST = 8  # units of a layer: each has half of the one before it

HEADS = ("ridge", "logistic", "knn")

# A factor of 30 to each side of the recipe's own rate; see planning/recipes.py for what goes wrong beyond.
TAIL_RATES = {"partial": (3e-4, 3e-1, 1e-2), "full": (1e-5, 1e-2, 3e-4)}
TAIL: Space = (
    Number("weight_decay", 1e-4, 1.0, 0.01),
    Number("label_smoothing", 0.0, 0.2, 0.0, log=False),
    Number("mixup", 0.0, 0.5, 0.0, log=False),
    Number("drop_path", 0.0, 0.3, 0.0, log=False),
)
AUGMENTATIONS = ("light", "standard", "crop", "trivial")


def baseline_space(model: str, fixed: Collection[str], optimizer: str | None = None) -> Space:
    """Return what is searched for a baseline, without what the user fixed; optimizers of one rate want larger ones."""
    factor = LARGER_RATES.get(optimizer or "", 1.0)
    rate = replace(LR, low=LR.low * factor, high=LR.high * factor)
    space = (rate, *(MLP if model == "mlp" else LINEAR)[1:])
    gone = {*fixed, *(("width", "depth") if "hidden" in fixed else ())}
    return tuple(part for part in space if part.name not in gone)


def head_space(n_stages: int, fixed: Collection[str]) -> Space:
    """Return what is searched for a head: its kind, and which stages it sees: `count` of them, up to stage `last`.

    The strength (λ, C, k) is no part of it: each kind has its own chosen on its training images, of ridge regression by
    exact leave-one-image-out, for every trial anew.
    """
    space: list[Number | Choice] = []
    if "head" not in fixed:
        space.append(Choice("head", HEADS, "ridge"))
    if "taps" not in fixed and n_stages > 1:
        lowest = max(0, n_stages - DEFAULT_TAPS)
        space.append(Number("last", lowest, n_stages - 1, n_stages - 1, log=False, whole=True))
        count = min(DEFAULT_TAPS, n_stages)
        space.append(Number("count", 1, n_stages, count, log=False, whole=True))
    return tuple(space)


def tail_space(strategy: str, stage_sizes: Sequence[int], optimizer: str | None, fixed: Collection[str]) -> Space:
    """Return what is searched for `partial` or `full`: rate, decay, smoothing, mixup, drop path, and the cut or views.

    SGD's rates are 30 times as large as AdamW's. `full` cuts its views from stored images, so their kind is searched;
    the stored activations of `partial` would have to be computed anew for each, and there mixup alone, which works on
    them, says how strongly images are changed.
    """
    low, high, usual = (rate * (30 if optimizer == "sgd" else 1) for rate in TAIL_RATES[strategy])
    space: list[Number | Choice] = [Number("lr", low, high, usual), *TAIL]
    cuts = cuts_of(stage_sizes)
    if strategy == "partial" and len(cuts) > 1:
        space.append(Choice("cut", cuts, partial_cut(stage_sizes)))
    if strategy == "full":
        space.append(Choice("augment", AUGMENTATIONS, AUGMENTATIONS[0]))
    return tuple(part for part in space if part.name not in fixed)


def cuts_of(stage_sizes: Sequence[int]) -> tuple[int, ...]:
    """Return the cuts that `partial` may have: its own and those beside it, as far as they train weights."""
    own = partial_cut(stage_sizes)
    near = (cut for cut in (own - 1, own, own + 1) if 1 <= cut < len(stage_sizes))
    return tuple(cut for cut in near if sum(stage_sizes[cut:]) > 0)


def as_options(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that some parameters set: layers as `hidden`, stages as `taps`, the others as they are."""
    options = {key: value for key, value in params.items() if key not in ("width", "depth", "last", "count")}
    if "width" in params:
        options["hidden"] = [max(NARROWEST, params["width"] // 2**layer) for layer in range(params["depth"])]
    if "count" in params:
        last = params["last"]
        options["taps"] = list(range(max(0, last - params["count"] + 1), last + 1))
    return options
