"""`toolkit plan`: what a run would do with a folder, and why; trains nothing."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from inspect import signature
from typing import TYPE_CHECKING, Any

from toolkit.options import Options
from toolkit.tasks.apart import check_cache_apart
from toolkit.tasks.head_start import head_start

if TYPE_CHECKING:
    from toolkit.plan import TransferPlan


def plan_transfer(
    data: str,
    *,
    strategy: str = "auto",
    backbone: str = "efficientnet_lite0",
    image_size: int | None = None,
    epochs: int | None = None,
    seed: int = 0,
    weights: str | None = None,
    val: float = 0.2,
    cut: int | None = None,
    taps: list[int] | None = None,
    head: str | None = None,
    folds: int | None = None,
    lr: float | str | None = None,
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
    batchnorm: str | None = None,
    ema: float | None = None,
    unfreeze: int | None = None,
    patience: int | None = None,
    mixing: float | None = None,
    budget: float | None = None,
    class_weights: str = "none",
    max_pixels: int = 50_000_000,
    device: str = "auto",
    precision: str = "auto",
    workers: int | None = None,
    cache: bool = True,
    cache_dir: str | None = None,
    track: bool = False,
) -> TransferPlan:
    """Return the plan that `finetune` would follow for a folder, with the evidence for it; trains nothing.

    The frozen features of all images are computed and stored, and `finetune` finds them. Raises ToolkitError.

    Args:
        data: the photos: DIR/CLASS/…, DIR/train/CLASS/… with val, or a CSV of path,label[,split]
        strategy: what trains: head, partial (last stages), full, scratch (random weights); auto decides by the data
        backbone: a pretrained network's name (see `toolkit backbones`), or auto: the best of those on this machine
        image_size: side of the square input in pixels; the weights' own by default
        epochs: passes over the training images; by the number of images by default
        seed: of the split, the views and the order; one seed, one result
        weights: a checkpoint file (safetensors or state dict) instead of the backbone's own weights
        val: share of each class that validates, where the folders do not say
        cut: first stage that trains (strategy partial); by default about half of the weights, two stages at least
        taps: stages whose pooled outputs the head sees, such as 5,6,7; by default of the last four (auto: or of all)
        head: ridge, logistic, knn, or auto (default), which holds them against each other on the training images
        folds: score the head by repeated cross-validation with so many folds as well (strategy head)
        lr: rate of the head, or auto: by short trainings; partial gives the top stage 1/10, others 1/100, full the same
        layer_decay: instead of these, each stage learns at this factor of the rate of the part above it; 1: all alike
        weight_decay: of weights; biases and norms are never decayed
        decay_towards: zero (default), or start: the weights that training begins with (L2-SP)
        optimizer: adamw (default) or sgd (momentum 0.9, Nesterov)
        augment: standard (crop, flip, colour), light (crop, flip), crop, none, trivial, rand; default: by image sizes
        views: distinct views of an image, the clean one first; epochs go through them in turn
        batch_size: images a step; 32 by default
        accumulate: batches whose gradients are added before a step; 1 by default
        clip: largest norm of the gradient; 1 by default
        warmup: share of the steps in which the rate rises, before it falls along a cosine; 0.1 by default
        label_smoothing: share of the target spread over all classes
        mixup: α of Beta(α, α), the share of another image blended into each, at the first stage that trains; 0 for none
        cutmix: the same for a rectangle of another image; with mixup as well, each batch has one of them
        drop_path: how often the last block is skipped in training, earlier ones less; as the network has it by default
        batchnorm: of stages that train: fixed statistics (default), frozen (scale and shift too), or moving
        ema: decay of a moving average of the weights, which is what is kept; 0 (default) keeps the last weights
        unfreeze: epochs until the next stage below begins to learn, top first; 0 (default) for all at once
        patience: stop after so many epochs without a lower validation loss, and keep the best weights
        mixing: share of the fine-tuned weights kept, 1 for all; decided on held-out training images by default
        budget: minutes that training may take for auto to choose it, by the count of operations; 5 by default
        class_weights: none, or balanced (rare classes weigh more)
        max_pixels: larger images are quarantined unread
        device: auto, cpu, cuda, cuda:1, mps
        precision: auto (bf16 for what trains on CUDA and frozen stages that bear it), 32-true, bf16-mixed, 16-mixed
        workers: how many processes (on a CPU: threads) decode; by the number of images and cores by default
        cache: false keeps nothing on disk; the frozen stages then run in every epoch
        cache_dir: where features are kept; the platform's cache folder by default
        track: write losses, accuracies, rates and updates for TensorBoard to RUN/tensorboard; needs the extra `track`
    """
    options = Options(**{key: value for key, value in locals().items() if key != "data"})
    check_cache_apart(data, cache_dir)
    with head_start(data, options):
        from toolkit.tasks.planned import planned

        return planned(data, options)


def command_of(values: Mapping[str, Any]) -> str:
    """Return the command that carries out what `plan_transfer(**values)` planned: the same keys, for another verb."""
    words = ["toolkit", "finetune", str(values["data"]), "--out", "RUN"]
    for key, parameter in signature(plan_transfer).parameters.items():
        value = values.get(key, parameter.default)
        if key != "data" and value != parameter.default:
            told = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            words += [f"--{key}", told.lower() if isinstance(value, bool) else told]
    return shlex.join(words)
