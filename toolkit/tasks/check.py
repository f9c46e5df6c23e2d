"""`toolkit check`: whether data, preprocessing, network and learning are in order, before hours are spent on them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from toolkit.baselines.options import TRAINED
from toolkit.errors import SettingError, unknown_name
from toolkit.options import Options
from toolkit.settings import COMMON_RANGES
from toolkit.tasks.apart import check_cache_apart
from toolkit.tasks.head_start import head_start

if TYPE_CHECKING:
    from toolkit.checks.finding import CheckReport

TRANSFER = "transfer"
MODELS = (TRANSFER, *TRAINED)


def check(
    data: str,
    *,
    model: str = TRANSFER,
    fix_list: str | None = None,
    strategy: str = "auto",
    backbone: str = "efficientnet_lite0",
    image_size: int | None = None,
    lr: float | None = None,
    seed: int = 0,
    weights: str | None = None,
    val: float = 0.2,
    cut: int | None = None,
    max_pixels: int = 50_000_000,
    device: str = "auto",
    workers: int | None = None,
    cache: bool = True,
    cache_dir: str | None = None,
) -> CheckReport:
    """Check a data set and how a network would learn from it; every line passes, warns or fails, and says what to do.

    The frozen features of all images are computed and stored, and `finetune` finds them. Nothing is trained that stays,
    no file is changed. Raises ToolkitError, one line, for what is no data set at all.

    Args:
        data: the photos: DIR/CLASS/…, DIR/train/CLASS/… with val, or a CSV of path,label[,split]
        model: whose learning is tried: transfer (what finetune trains), or a baseline: mlp, linear, softmax, svm
        fix_list: a CSV to write, of files to look at: path,split,label,finding,detail, the most suspicious first
        strategy: what trains: head, partial (last stages), full, scratch; auto tries a tail of two stages
        backbone: the pretrained network that looks at the images (see `toolkit backbones`)
        image_size: side of the square input in pixels; the weights' own by default
        lr: learning rate that twenty images are learned by heart with; the one that training has by default
        seed: of the split and of whatever is drawn
        weights: a checkpoint file (safetensors or state dict) instead of the backbone's own weights
        val: share of each class that validates, where the folders do not say
        cut: first stage that trains (strategy partial)
        max_pixels: larger images are quarantined unread
        device: auto, cpu, cuda, cuda:1, mps
        workers: how many processes (on a CPU: threads) decode; by the number of images and cores by default
        cache: false keeps nothing on disk
        cache_dir: where features are kept; the platform's cache folder by default
    """
    if model not in MODELS:
        raise unknown_name("model", model, MODELS)
    if model != TRANSFER:
        for key, given in (("strategy", strategy != "auto"), ("cut", cut is not None)):
            if given:
                raise SettingError(f"{key} is not used by the model {model!r}; remove it, or set model to 'transfer'")
    elif cut is not None and strategy != "partial":
        raise SettingError("cut is not used unless strategy is 'partial'")
    if lr is not None:
        types, holds, wanted = COMMON_RANGES["lr"]
        if isinstance(lr, bool) or not isinstance(lr, types) or not math.isfinite(lr) or not holds(lr):
            raise SettingError(f"lr: {wanted} expected, got {lr!r}")
    options = Options(
        strategy=strategy,
        backbone=backbone,
        image_size=image_size,
        seed=seed,
        weights=weights,
        val=val,
        cut=cut,
        max_pixels=max_pixels,
        device=device,
        workers=workers,
        cache=cache,
        cache_dir=cache_dir,
    )
    check_cache_apart(data, cache_dir)
    with head_start(data, options):
        from toolkit.tasks.check_run import checked

        return checked(data, options, model=model, lr=lr, fix_list=fix_list)
