"""From evidence to a TransferPlan: the decision, the recipe of what was chosen, and what a person set instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from toolkit.errors import SettingError
from toolkit.options import AUTO_RATE, Options
from toolkit.plan import FreezeSpec, Recipe, TransferPlan
from toolkit.planning.decision import Decision, decide, ways_of
from toolkit.planning.evidence import ALL_STAGES_BELOW, Evidence
from toolkit.planning.recipes import (
    RECIPE_KEYS,
    augmentation_for,
    epochs_for,
    freezing,
    high_rate,
    recipe_for,
)

AUTOMATIC = ("head", "partial", "full")  # what auto may choose, the cheapest first
BUDGET_MINUTES = 5.0
STORED_VIEWS = 8  # of an image, one an epoch in turn


def open_strategies(
    evidence: Evidence, options: Options, stage_sizes: Sequence[int], taps: Sequence[int]
) -> tuple[str, ...]:
    """Return the strategies that go with everything that is set: the one that is, or those that auto may choose from.

    Raises the SettingError of the first one where there is none.
    """
    names = AUTOMATIC if options.strategy == "auto" else (options.strategy,)
    found, errors = [], []
    for name in names:
        try:
            _check(name, evidence, options, stage_sizes, taps)
        except SettingError as error:
            errors.append(error)
        else:
            found.append(name)
    if not found:
        raise errors[0]
    return tuple(found)


def make_plan(
    evidence: Evidence,
    options: Options,
    *,
    backbone: str,
    stage_sizes: Sequence[int],
    taps: tuple[int, ...],
    image_size_px: int,
) -> TransferPlan:
    """Return the plan for a data set; what the user set wins, and is named in `overridden`.

    evidence: without probes, before anything is measured or where it cannot be, the cheapest strategy stands for what
    auto would choose.
    stage_sizes: the backbone's parameters by stage. taps: those that may compete.
    """
    facts, head = evidence.facts, evidence.head
    strategies = open_strategies(evidence, options, stage_sizes, taps)
    decision = None
    strategy, cut, reasons = strategies[0], options.cut, []
    if options.strategy != "auto":
        reasons.append(f"{facts.n_train} training images; the strategy was set by you")
    elif head is not None:
        decision = _decision(evidence, options, stage_sizes, strategies)
        strategy = decision.way.strategy
        cut = decision.way.cut or None if strategy == "partial" else None
        reasons += decision.reasons
        taps, told = _competing(evidence, options, taps)
        reasons += told
        if "head" not in strategies:
            reasons.append("a key that is set is for what trains by steps: a head alone was not weighed")
    else:
        reasons.append(f"{facts.n_train} training images; no stage was probed: {strategy} is the least work")
    spec = freezing(strategy, stage_sizes, cut, options.layer_decay)
    recipe = recipe_for(strategy, options)
    epochs = None
    if recipe is not None:
        epochs = _epochs(strategy, recipe, options, facts.n_train)
        steps = epochs * -(-facts.n_train // recipe.batch_size)
        reasons.append(
            f"{epochs} epochs of {facts.n_train} images in batches of {recipe.batch_size} are {steps} batches"
        )
    if recipe is not None and strategy != "scratch":
        reasons.append(
            "it starts from a head trained on the frozen features, never from noise (LP-FT, Kumar et al. 2022)"
        )
        reasons += high_rate(recipe, spec)
    if recipe is not None and options.lr == AUTO_RATE:
        reasons.append("a range test finds the rate before it trains")
    augmentation, told = augmentation_for(facts, image_size_px)
    views = options.views or _usual_views(options, epochs, spec)
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
        similarity=None if evidence.similarity is None else round(evidence.similarity.value, 4),
        probes=tuple(probe.to_dict() for probe in evidence.probes),
        ways=() if decision is None else tuple(asdict(way) for way in decision.ways),
        runner_up=None if decision is None or decision.runner_up is None else decision.runner_up.name(len(stage_sizes)),
        overridden=tuple(key for key in _OVERRIDABLE if options.sets(key))
        + (() if options.strategy == "auto" else ("strategy",)),
    )


def _epochs(strategy: str, recipe: Recipe, options: Options, n_train: int) -> int:
    """Return the epochs that are set, or that come by themselves; SettingError where no stage would begin to learn."""
    epochs = options.epochs or epochs_for(strategy, n_train, recipe.batch_size)
    if recipe.unfreeze >= epochs:
        raise SettingError(
            f"unfreeze: a stage that begins to learn after {recipe.unfreeze} epochs does not in {epochs}; take a "
            "smaller number, or more --epochs"
        )
    return epochs


def _decision(evidence: Evidence, options: Options, stage_sizes: Sequence[int], strategies: Sequence[str]) -> Decision:
    n = evidence.facts.n_train
    images = {}
    for name in strategies:
        recipe = recipe_for(name, options)
        images[name] = 0 if recipe is None else n * (options.epochs or epochs_for(name, n, recipe.batch_size))
    budget = BUDGET_MINUTES if options.budget is None else options.budget
    return decide(evidence, ways_of(evidence, stage_sizes, images, strategies, options.cut), budget * 60)


def _competing(evidence: Evidence, options: Options, taps: tuple[int, ...]) -> tuple[tuple[int, ...], list[str]]:
    """Return the taps that may compete for the head: all stages where images are unlike those of the training."""
    similarity = evidence.similarity
    if options.taps is not None or similarity is None or similarity.value >= ALL_STAGES_BELOW:
        return taps, []
    reason = f"below a similarity of {ALL_STAGES_BELOW:g} the head may see any stage: early ones know simple shapes"
    return tuple(sorted({tap for probe in evidence.probes for tap in probe.taps})), [reason]


def _usual_views(options: Options, epochs: int | None, spec: FreezeSpec) -> int:
    """Return how many views of an image there are by themselves: one where all would be the same."""
    if epochs is None or options.augment == "none":
        return 1
    return min(epochs, STORED_VIEWS) if spec.cut else epochs


def _check(
    strategy: str, evidence: Evidence, options: Options, stage_sizes: Sequence[int], taps: Sequence[int]
) -> None:
    """Raise SettingError where a strategy does not go with what is set."""
    n_stages = len(stage_sizes)
    options.refuse_unused(strategy, " or what else auto may choose" if options.strategy == "auto" else "")
    cut = freezing(strategy, stage_sizes, options.cut, options.layer_decay).cut
    if cut < n_stages != taps[-1] + 1:
        raise SettingError(
            f"taps: stages up to {n_stages - 1} train with the strategy {strategy!r}, and the head must see the last "
            f"one; add {n_stages - 1} to the taps, got {list(taps)}"
        )
    if options.patience is not None and evidence.facts.n_val == 0:
        raise SettingError("patience: there are no validation images to watch; remove it, or add some")
    if strategy == "head" and options.given("augment") and (options.views or 1) == 1:
        raise SettingError(
            "augment: the strategy 'head' sees the clean view alone; set views to 2 or more, or remove it"
        )
    if options.augment == "none" and (options.views or 1) > 1:
        raise SettingError("augment: without augmentation all views of an image are the same; set views to 1")
    if strategy != "head" and options.head == "knn":
        raise SettingError("head: knn cannot be trained further; take ridge or logistic, or the strategy 'head'")


_OVERRIDABLE = ("cut", "taps", "head", "image_size", "epochs", "layer_decay", "augment", "views", *RECIPE_KEYS)
