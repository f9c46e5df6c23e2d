"""`toolkit plan`: what a run would do with a folder, and why; trains nothing."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from toolkit.options import Options

if TYPE_CHECKING:
    from toolkit.plan import TransferPlan


def plan_transfer(
    data: str,
    *,
    strategy: str = "auto",
    backbone: str = "efficientnet_lite0",
    head: str | None = None,
    image_size: int | None = None,
    epochs: int | None = None,
    cut: int | None = None,
    taps: list[int] | None = None,
    lr: float | None = None,
    weight_decay: float | None = None,
    augment: str | None = None,
    views: int | None = None,
    batch_size: int | None = None,
    val: float = 0.2,
    max_pixels: int = 50_000_000,
    seed: int = 0,
) -> TransferPlan:
    """Return the plan that `finetune` would follow for a folder, from its files' headers; trains nothing.

    Files that only prove broken when they are decoded still count here. Raises ToolkitError.

    Args:
        data: the photos: DIR/CLASS/…, DIR/train/CLASS/… with val, or a CSV of path,label[,split]
        strategy: what trains: head, partial (last stages), full, scratch (random weights); auto decides by the data
        backbone: name of the pretrained network; `toolkit backbones` lists them
        image_size: side of the square input in pixels; the weights' own by default
        epochs: passes over the training images; by the number of images by default
        cut: first stage that trains (strategy partial); by default about half of the weights, two stages at least
        taps: stages whose pooled outputs the head sees, such as 5,6,7; chosen among the last four by default
        head: ridge, logistic, knn, or auto, which holds them against each other
        lr: learning rate of the head; the top stage has 1/10, the others 1/100 of it
        weight_decay: of weights; biases and norms are never decayed
        augment: standard (crop, flip, colour), light (crop, flip), crop, none, trivial, rand (-Augment); by image sizes
        views: distinct augmented views of an image; a new one each epoch by default
        batch_size: images a step; 32 by default
        val: share of each class that validates, where the folders do not say
        max_pixels: larger images are quarantined unread
        seed: of the split
    """
    options = Options(**{key: value for key, value in locals().items() if key != "data"})
    from toolkit.data.scan import scan
    from toolkit.progress import say
    from toolkit.tasks.job import open_backbone, plan_ahead

    manifest = scan(data, max_pixels=max_pixels)
    say(str(manifest))
    return plan_ahead(manifest, options, open_backbone(options, pretrained=False))


def command_of(plan: TransferPlan, values: Mapping[str, Any]) -> str:
    """Return the command that carries out a plan which `plan_transfer(**values)` gave."""
    words = ["toolkit", "finetune", str(values["data"]), "--out", "RUN"]
    words += ["--strategy", plan.strategy, "--backbone", plan.backbone]
    keys: dict[str, Any] = {"image_size": plan.image_size}
    if "taps" in plan.overridden:
        keys["taps"] = ",".join(map(str, plan.taps))
    if "head" in plan.overridden:
        keys["head"] = plan.head
    if plan.strategy == "partial":
        keys["cut"] = plan.cut
    if plan.epochs is not None and plan.recipe is not None:
        keys |= {"epochs": plan.epochs, "lr": plan.recipe.lr, "weight_decay": plan.recipe.weight_decay}
    if plan.recipe is not None or plan.views > 1:
        keys["augment"] = plan.augmentation
    for key in ("views", "batch_size", "val", "max_pixels", "seed"):
        if values.get(key, getattr(Options, key)) != getattr(Options, key):
            keys[key] = values[key]
    for key, value in keys.items():
        words += [f"--{key}", str(value)]
    return shlex.join(words)
