"""How each strategy trains by itself: what it freezes, its rates, its length and its views; short pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

from toolkit.errors import SettingError
from toolkit.options import Options
from toolkit.plan import FreezeSpec, Recipe, partial_cut
from toolkit.planning.facts import Facts

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
    return replace(recipe, **{name: getattr(options, name) for name in RECIPE_KEYS if options.sets(name)})


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


RECIPE_KEYS = tuple(field.name for field in fields(Recipe) if field.name in {own.name for own in fields(Options)})
