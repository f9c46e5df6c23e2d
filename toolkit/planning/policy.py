"""How much of a pretrained network to retrain: short pure functions of counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

from toolkit.errors import SettingError
from toolkit.options import Options
from toolkit.plan import FreezeSpec, Recipe, TransferPlan, partial_cut
from toolkit.planning.facts import Facts

# notes: Training (Transfer Learning) speaks of small and medium sets without numbers. These are ours: up to about
# 2,000 images, fine-tuning the last stages of EfficientNet-Lite0 gave no more than a linear head on its last three
# stages did in a hundredth of the time; 20,000 is where BiT's rule (Kolesnikov et al. 2020, section 3.3) stops
# calling a data set small.
MEDIUM_FROM_IMAGES = 2_000
LARGE_FROM_IMAGES = 20_000
MEDIUM_FROM_IMAGES_PER_CLASS = 20  # our choice: with fewer, a tail of a million weights learns the images by heart


# Measured on photographs of flowers by scripts/bench/recipes, whose results are beside it; AdamW, 128 px. `full`, 500 +
# 200 in two splits: one rate of 3e-4 won 2.7 points over the head, the notes' rates of 1e-2 0.7 and of 3e-2 1.3 (they
# starve the early stages), layer-wise decay of 0.75 from 1e-3 2.5, moving norms 1.0; 24 epochs were no better than 12.
# `partial`, 490 + 210 in two splits: the notes' rates from 1e-2 won 1.4 points and 0.042 nats with the three stages
# that have 79 % of the weights, nothing and 0.025 with the two that have 30 %, in a quarter of the time. Mixup, label
# smoothing, L2-SP and an average of the weights were tried by hand, at 224 px on one split, and added nothing. On 7,000
# images of Fashion-MNIST at 64 px moving norms were no better than fixed ones (`full`, 3 epochs: 0.895 and 0.898).
# One rate of 1e-3 instead of 3e-4: flowers, three splits of 490 + 210, 0.862 and 0.856 (NLL 0.401 and 0.396), falling
# to 0.61 on the way instead of 0.73; Fashion-MNIST, 700 images at 96 px, 0.864 and 0.855, 7,000 at 64 px, 0.900 and
# 0.896. Images unlike ImageNet's bear more; the rate that comes by itself is the safer one.
RECIPES = {
    "partial": Recipe(lr=1e-2, weight_decay=0.01),
    "full": Recipe(lr=3e-4, weight_decay=0.01),
    "scratch": Recipe(lr=1e-3, weight_decay=0.05, label_smoothing=0.1, batchnorm="moving"),
}
LAYER_DECAY = {"full": 1.0}  # the others have the notes' rates
STEPS_WANTED = {"partial": 250, "full": 250, "scratch": 2_000}
EPOCHS_AT_LEAST = 5
EPOCHS_AT_MOST = {"partial": 30, "full": 30, "scratch": 100}  # from noise even a few images take many passes
USUAL_EPOCHS, USUAL_STEPS = 10, 10_000  # so many epochs at least, if that makes no more steps than these
# The rate of a pretrained stage above which training fell far below its start before it recovered, if it did: with
# AdamW at 1e-3 from 0.85 to 0.66 (scripts/bench/recipes, `full`). SGD: 30 times as much, as its steps are smaller.
STEADY_RATE = {"adamw": 1e-3, "sgd": 3e-2}
STORED_VIEWS = 8  # of an image, one an epoch in turn


def choose_strategy(facts: Facts) -> tuple[str, str]:
    """Return a strategy and the reason for it, from the number of training images and of images a class."""
    n, typical = facts.n_train, facts.median_per_class
    if n < MEDIUM_FROM_IMAGES:
        return (
            "head",
            f"{n} training images are few (below {MEDIUM_FROM_IMAGES}): the pretrained features stay as they are",
        )
    if typical < MEDIUM_FROM_IMAGES_PER_CLASS:
        return "head", (
            f"{typical:g} training images in the median class are few (below {MEDIUM_FROM_IMAGES_PER_CLASS}): "
            "the pretrained features stay"
        )
    if n < LARGE_FROM_IMAGES:
        return "partial", f"{n} training images are a medium set (below {LARGE_FROM_IMAGES}): the last stages adapt"
    return "full", f"{n} training images are many ({LARGE_FROM_IMAGES} or more): every stage adapts"


def epochs_for(strategy: str, n_train: int, batch_size: int) -> int:
    """Return the epochs that give about the wanted number of steps: 10 of them or more, 5 of large sets; few images
    are seen up to 30 times, or 100 times from scratch."""
    steps_an_epoch = max(1, -(-n_train // batch_size))
    low = max(EPOCHS_AT_LEAST, min(USUAL_EPOCHS, USUAL_STEPS // steps_an_epoch))
    return min(EPOCHS_AT_MOST[strategy], max(low, -(-STEPS_WANTED[strategy] // steps_an_epoch)))


def freezing(
    strategy: str, stage_sizes: Sequence[int], cut: int | None, layer_decay: float | None = None
) -> FreezeSpec:
    """Return what trains, and how fast; SettingError for a cut that `partial` cannot have."""
    n_stages = len(stage_sizes)
    if strategy == "head":
        return FreezeSpec.at_cut(n_stages, n_stages)
    if strategy == "scratch":
        return FreezeSpec.from_scratch(n_stages)
    if strategy == "full":
        cut = 0
    elif cut is None:
        cut = partial_cut(stage_sizes)
    elif not 1 <= cut < n_stages:
        raise SettingError(
            f"cut: 1 to {n_stages - 1} expected for the {n_stages} stages of this backbone, got {cut} "
            "(for 0 use the strategy 'full', to freeze everything use 'head')"
        )
    if strategy == "partial" and not sum(stage_sizes[cut:]):
        raise SettingError(
            f"cut: no stage from {cut} on has weights to train; take a smaller one, or the strategy 'head' or 'full'"
        )
    decay = LAYER_DECAY.get(strategy) if layer_decay is None else layer_decay
    return FreezeSpec.at_cut(n_stages, cut) if decay is None else FreezeSpec.decaying(n_stages, cut, decay)


def recipe_for(strategy: str, options: Options) -> Recipe | None:
    """Return a strategy's Recipe with what the user set in it; None for `head`, which needs no steps."""
    recipe = RECIPES.get(strategy)
    if recipe is None:
        return None
    return replace(recipe, **{name: getattr(options, name) for name in _RECIPE_KEYS if options.given(name)})


def high_rate(recipe: Recipe, spec: FreezeSpec) -> list[str]:
    """Return a warning where a pretrained stage learns faster than was seen to go well."""
    fastest, steady = recipe.lr * max(rule.multiplier for rule in spec.rules), STEADY_RATE[recipe.optimizer]
    if fastest <= steady * (1 + 1e-9):
        return []
    return [
        f"warning: pretrained stages learn at up to {fastest:g}, above {steady:g} training can lose what they know; "
        "it is watched, and begins again slower if it does"
    ]


def augmentation_for(facts: Facts, image_size_px: int) -> tuple[str, list[str]]:
    """Return what makes the views, and the reason where it is not the usual one.

    Images that are enlarged for the network have no more to show in a closer crop. (`full` on 7,000 images of
    Fashion-MNIST, 28 px, at 64 px for 3 epochs of batches of 64, one seed, by scripts/bench/recipes: 0.900 with light,
    0.899 with crop, 0.891 with standard. `partial` on 238 stamps, 135 px, at 224 px through the trial, three seeds, by
    scripts/bench/finetune: 0.835, 0.825 with standard, the head 0.825. Photographs of flowers that are not enlarged,
    `full` at 128 px, three splits: 0.867 with light, NLL 0.382, 0.856 with standard, NLL 0.396: within chance.)
    """
    side = facts.median_side_px
    if side is None or side >= image_size_px:
        return "standard", []
    return "light", [
        f"the images have {side:g} px (median) and the network sees {image_size_px}: no close crops in their views"
    ]


def make_plan(
    facts: Facts,
    options: Options,
    *,
    backbone: str,
    stage_sizes: Sequence[int],
    taps: tuple[int, ...],
    image_size_px: int,
) -> TransferPlan:
    """Return the plan for a data set; what the user set wins, and is named in `overridden`.

    stage_sizes: the backbone's parameters by stage. taps: those that may compete.
    """
    n_stages = len(stage_sizes)
    if options.strategy == "auto":
        strategy, reason = choose_strategy(facts)
        options.refuse_unused(strategy, f", which auto chose ({reason.split(':')[0]})")
    else:
        strategy, reason = options.strategy, f"{facts.n_train} training images; the strategy was set by you"
    spec = freezing(strategy, stage_sizes, options.cut, options.layer_decay)
    if spec.cut < n_stages != taps[-1] + 1:
        raise SettingError(
            f"taps: stages up to {n_stages - 1} train with the strategy {strategy!r}, and the head must see the last "
            f"one; add {n_stages - 1} to the taps, got {list(taps)}"
        )
    if options.patience is not None and facts.n_val == 0:
        raise SettingError("patience: there are no validation images to watch; remove it, or add some")
    recipe = recipe_for(strategy, options)
    if strategy == "head" and options.given("augment") and (options.views or 1) == 1:
        raise SettingError(
            "augment: the strategy 'head' sees the clean view alone; set views to 2 or more, or remove it"
        )
    if strategy == "head" and options.augment == "none" and (options.views or 1) > 1:
        raise SettingError("augment: without augmentation all views of an image are the same; set views to 1")
    if strategy != "head" and options.head == "knn":
        raise SettingError("head: knn cannot be trained further; take ridge or logistic, or the strategy 'head'")
    reasons = [reason]
    epochs = None
    if recipe is not None:
        epochs = options.epochs or epochs_for(strategy, facts.n_train, recipe.batch_size)
        steps = epochs * -(-facts.n_train // recipe.batch_size)
        reasons.append(
            f"{epochs} epochs of {facts.n_train} images in batches of {recipe.batch_size} are {steps} batches"
        )
    if recipe is not None and strategy != "scratch":
        reasons.append(
            "it starts from a head trained on the frozen features, never from noise (LP-FT, Kumar et al. 2022)"
        )
        reasons += high_rate(recipe, spec)
    augmentation, told = augmentation_for(facts, image_size_px)
    views = options.views or (1 if epochs is None else min(epochs, STORED_VIEWS) if spec.cut else epochs)
    if views == 1 and recipe is None:
        augmentation = "none"
    elif options.augment is None and views > 1:
        reasons += told
    return TransferPlan(
        strategy=strategy,
        backbone=backbone,
        cut=spec.cut,
        taps=taps,
        head="linear" if strategy == "scratch" else options.head or "auto",
        recipe=recipe,
        multipliers=(*(rule.multiplier for rule in spec.rules), spec.head_multiplier),
        epochs=epochs,
        views=views,
        augmentation=options.augment or augmentation,
        image_size=image_size_px,
        facts=facts.to_dict(),
        reasons=tuple(reasons),
        overridden=tuple(key for key in _OVERRIDABLE if options.given(key))
        + (() if options.strategy == "auto" else ("strategy",)),
    )


_RECIPE_KEYS = tuple(field.name for field in fields(Recipe) if field.name in {own.name for own in fields(Options)})
_OVERRIDABLE = ("cut", "taps", "head", "image_size", "epochs", "layer_decay", "augment", "views", *_RECIPE_KEYS)
