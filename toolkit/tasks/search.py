"""`toolkit search`: which settings are best, found on the training images alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from toolkit.baselines.options import BaselineOptions
from toolkit.errors import SettingError, unknown_name
from toolkit.options import Options

if TYPE_CHECKING:
    from toolkit.tasks.search_run import SearchReport

OUT = "runs/search"
SAMPLERS = ("coarse_to_fine", "random", "grid", "tpe")
STRATEGIES = ("head", "partial", "full")
MODELS = ("mlp", "linear", "softmax", "svm")
MOST_TRIALS, MOST_FOLDS = 100_000, 100
FOLDS_OF_HEADS, FOLDS = 5, 3


def search(
    data: str | None = None,
    *,
    out: str = OUT,
    model: str | None = None,
    strategy: str | None = None,
    trials: int = 30,
    sampler: str = "coarse_to_fine",
    seed: int = 0,
    folds: int | None = None,
    epochs: int | None = None,
    backbone: str | None = None,
    weights: str | None = None,
    image_size: int | None = None,
    val: float | None = None,
    cut: int | None = None,
    taps: list[int] | None = None,
    head: str | None = None,
    lr: float | None = None,
    layer_decay: float | None = None,
    weight_decay: float | None = None,
    decay_towards: str | None = None,
    optimizer: str | None = None,
    augment: str | None = None,
    views: int | None = None,
    batch_size: int | None = None,
    accumulate: int | None = None,
    clip: float | None = None,
    warmup: float | None = None,
    label_smoothing: float | None = None,
    mixup: float | None = None,
    cutmix: float | None = None,
    drop_path: float | None = None,
    batchnorm: str | bool | None = None,
    ema: float | None = None,
    unfreeze: int | None = None,
    class_weights: str | None = None,
    on: str | None = None,
    hidden: list[int] | None = None,
    activation: str | None = None,
    init: str | None = None,
    dropout: float | None = None,
    loss: str | None = None,
    schedule: str | None = None,
    l1: float | None = None,
    l2: float | None = None,
    layers: str | None = None,
    max_pixels: int | None = None,
    device: str | None = None,
    precision: str | None = None,
    workers: int | None = None,
    cache: bool = True,
    cache_dir: str | None = None,
) -> SearchReport:
    """Search the settings of `finetune` or `baseline` for a folder of labelled photos, by cross-validation.

    Trials see the training images alone: validation and test images are left for the run with the settings found.
    Trial 0 has the default settings. What is given here is not searched. The same command goes on with a search that
    was interrupted, or up to a larger number of trials, and may be given in several processes, which share the work.
    Needs the extra `search` (Optuna). Raises ToolkitError, one line, for whatever a person can mend.

    Args:
        data: the photos: DIR/CLASS/…, DIR/train/CLASS/…, a CSV of path,label[,split]; IDX files for a model
        out: the folder of the search: study.jsonl, trials.csv, best.yaml, search.json, search.png
        model: a baseline to search for: mlp, linear, softmax, svm; without it, a strategy of finetune
        strategy: head (default; its kind and stages), partial or full (how they train)
        trials: how many there shall be in all, the default settings among them
        sampler: coarse_to_fine (default; short trials everywhere, then long ones around the best), random, grid, tpe
        seed: of the split, the folds, the trials and the trainings; one seed, one result
        folds: into how many the training images are dealt; 5 for heads, 3 for what trains by steps, by default
        epochs: of a trial at full length; as the model or the strategy has it by default
        backbone: a pretrained network's name (see `toolkit backbones`)
        weights: a checkpoint file instead of the backbone's own weights
        image_size: side of the square input in pixels
        val: share of each class that validates, and takes no part; as finetune or baseline has it by default
        cut: first stage that trains (partial)
        taps: stages whose pooled outputs a head, or a model on features, sees
        head: ridge, logistic, knn, or auto: chosen in every trial
        lr: learning rate; one that is given is not searched, as all keys below
        layer_decay: each stage learns at this factor of the rate of the part above it (partial, full)
        weight_decay: of weights (partial, full)
        decay_towards: zero or start (partial, full)
        optimizer: adamw or sgd; of a model: adam, sgd, momentum, nesterov, adagrad, rmsprop
        augment: kind of augmentation: standard, light, crop, none, trivial, rand (partial, full)
        views: distinct views of an image (partial, full)
        batch_size: images a step
        accumulate: batches whose gradients are added before a step (partial, full)
        clip: largest norm of the gradient (partial, full)
        warmup: share of the steps in which the rate rises (partial, full)
        label_smoothing: share of the target spread over all classes (partial, full)
        mixup: α of the blends of two images (partial, full)
        cutmix: α of the pasted rectangles (partial, full)
        drop_path: how often the last block is skipped in training (partial, full)
        batchnorm: fixed, frozen or moving (partial, full); of an mlp: true or false
        ema: decay of a moving average of the weights (partial, full)
        unfreeze: epochs until the next stage below begins to learn (partial, full)
        class_weights: none, or balanced (head, partial, full)
        on: what a model sees: pixels (default), hog or features
        hidden: sizes of the hidden layers (mlp)
        activation: of the hidden layers (mlp)
        init: of the first weights (models)
        dropout: share of the hidden units that is dropped (mlp)
        loss: cross_entropy or hinge (mlp, linear)
        schedule: of the learning rate (models)
        l1: λ of λ Σ |w| (models); it is not searched
        l2: λ of λ Σ w² (models)
        layers: torch or reference (models)
        max_pixels: larger images are quarantined unread
        device: auto, cpu, cuda, cuda:1, mps
        precision: as finetune or baseline has it
        workers: how many processes (on a CPU: threads) decode
        cache: false keeps nothing on disk
        cache_dir: where features are kept; the platform's cache folder by default
    """
    keys = dict(locals())
    own = ("data", "out", "trials", "sampler", "folds", "model", "strategy")
    given = {key: value for key, value in keys.items() if key not in own and value is not None}
    if sampler not in SAMPLERS:
        raise unknown_name("sampler", sampler, SAMPLERS)
    for key, value, low, high in (("trials", trials, 1, MOST_TRIALS), ("folds", folds, 2, MOST_FOLDS)):
        if not (value is None and key == "folds") and not (type(value) is int and low <= value <= high):
            raise SettingError(f"{key}: {low} to {high} expected, got {value!r}")
    options = _options(model, strategy, given)
    if data is None:
        raise SettingError("which photos? Give a folder: toolkit search DIR --out RUN")
    _need_optuna()
    from toolkit.tasks.search_run import start_search

    by_default = FOLDS_OF_HEADS if model is None and (strategy or "head") == "head" else FOLDS
    return start_search(data, out, options, given, trials=trials, sampler=sampler, n_folds=folds or by_default)


def _options(model: str | None, strategy: str | None, given: dict[str, Any]) -> Options | BaselineOptions:
    """Return the options that every trial has, of `baseline` if a model is named, else of `finetune`."""
    if model is not None:
        if strategy is not None:
            raise SettingError("strategy is of finetune and model of baseline: give one of them")
        if model not in MODELS:
            raise unknown_name("model to search for", model, MODELS)
        if "batchnorm" in given:
            given["batchnorm"] = _as_bool(given["batchnorm"])
        _refuse_foreign(given, BaselineOptions, f"the model {model!r}", "finetune")
        return BaselineOptions(model=model, **given)
    if (strategy or "head") not in STRATEGIES:
        raise unknown_name("strategy to search for", str(strategy), STRATEGIES)
    _refuse_foreign(given, Options, "finetune", "a model: add --model mlp, linear, softmax or svm")
    if strategy in (None, "head"):
        for key in ("views", "augment"):
            if key in given:
                raise SettingError(f"{key}: a search of heads sees the clean view alone; remove it")
    return Options(strategy=strategy or "head", **given)


def _refuse_foreign(given: Mapping[str, Any], kind: type, named: str, other: str) -> None:
    """Raise SettingError for a key that is of the other kind of model."""
    known = {field.name for field in fields(kind)}
    for key in given:
        if key not in known:
            raise SettingError(f"{key} is no key of {named}; remove it (it is one of {other})")


def _as_bool(value: str | bool) -> bool:
    known = {"true": True, "false": False}
    if str(value).lower() not in known:
        raise SettingError(f"batchnorm: true or false expected of an mlp, got {value!r}")
    return known[str(value).lower()]


def _need_optuna() -> None:
    """Raise SettingError, with what to install, where the package is missing."""
    from importlib.util import find_spec

    if find_spec("optuna") is None:
        raise SettingError("search needs Optuna, which is not installed: pip install 'transfer-toolkit[search]'")
