"""From evidence to a TransferPlan: the decision, the recipe of what was chosen, and what a person set instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

from toolkit.errors import SettingError
from toolkit.options import AUTO_RATE, Options
from toolkit.plan import FreezeSpec, Recipe, TransferPlan
from toolkit.planning.decision import Decision, Way, decide, ways_of
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

Able = Callable[[Recipe, int], None]  # raises SettingError where a network cannot train by a recipe from a cut on


def _able_to_all(recipe: Recipe, cut: int) -> None:
    """Stand for a network that nobody has looked at."""


def open_strategies(
    evidence: Evidence,
    options: Options,
    stage_sizes: Sequence[int],
    taps: Sequence[int],
    able: Able = _able_to_all,
) -> tuple[str, ...]:
    """Return the strategies that go with everything that is set: the one that is, or those that auto may choose from.

    Where there is none, raises the SettingError of the first one: of those that only the network is not able to, where
    there are such.
    """
    names = AUTOMATIC if options.strategy == "auto" else (options.strategy,)
    found, errors, unable = [], [], []
    for name in names:
        try:
            cut = _check(name, evidence, options, stage_sizes, taps)
        except SettingError as error:
            errors.append(error)
            continue
        refusal = _refusal(name, cut, options, able)
        if refusal is None:
            found.append(name)
        else:
            unable.append(refusal)
    if not found:
        raise [*unable, *errors][0]
    return tuple(found)


def _refusal(strategy: str, cut: int, options: Options, able: Able) -> SettingError | None:
    """Return why the network cannot train by a strategy from a cut on; None where it can."""
    recipe = recipe_for(strategy, options)
    try:
        if recipe is not None:
            able(recipe, cut)
    except SettingError as error:
        return error
    return None


def make_plan(
    evidence: Evidence,
    options: Options,
    *,
    backbone: str,
    stage_sizes: Sequence[int],
    taps: tuple[int, ...],
    image_size_px: int,
    able: Able = _able_to_all,
) -> TransferPlan:
    """Return the plan for a data set; what the user set wins, and is named in `overridden`.

    evidence: without probes, before anything is measured or where it cannot be, the cheapest strategy stands for what
    auto would choose.
    stage_sizes: the backbone's parameters by stage. taps: those that may compete. able: what the network can do.
    """
    facts, head = evidence.facts, evidence.head
    strategies = open_strategies(evidence, options, stage_sizes, taps, able)
    decision = None
    strategy, cut, reasons = strategies[0], options.cut, []
    if options.strategy != "auto":
        reasons.append(f"{facts.n_train} training images; the strategy was set by you")
    elif head is not None:
        decision = _decision(evidence, options, stage_sizes, strategies, able)
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
        reasons += _of_training(strategy, recipe, spec, epochs, facts.n_train)
        reasons += ["a range test finds the rate before it trains"] if options.lr == AUTO_RATE else []
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


def _of_training(strategy: str, recipe: Recipe, spec: FreezeSpec, epochs: int, n_train: int) -> list[str]:
    """Return what is to be said of a training: how long it is, what it begins with, and a rate that may be too high."""
    steps = epochs * -(-n_train // recipe.batch_size)
    told = [f"{epochs} epochs of {n_train} images in batches of {recipe.batch_size} are {steps} batches"]
    if strategy == "scratch":
        return told
    told.append("it starts from a head trained on the frozen features, never from noise (LP-FT, Kumar et al. 2022)")
    return [*told, *high_rate(recipe, spec)]


def _epochs(strategy: str, recipe: Recipe, options: Options, n_train: int) -> int:
    """Return the epochs that are set, or that come by themselves; SettingError where no stage would begin to learn."""
    epochs = options.epochs or epochs_for(strategy, n_train, recipe.batch_size)
    if recipe.unfreeze >= epochs:
        raise SettingError(
            f"unfreeze: a stage that begins to learn after {recipe.unfreeze} epochs does not in {epochs}; take a "
            "smaller number, or more --epochs"
        )
    return epochs


def _decision(
    evidence: Evidence, options: Options, stage_sizes: Sequence[int], strategies: Sequence[str], able: Able
) -> Decision:
    n = evidence.facts.n_train
    images = {}
    for name in strategies:
        recipe = recipe_for(name, options)
        images[name] = 0 if recipe is None else n * (options.epochs or epochs_for(name, n, recipe.batch_size))
    budget = BUDGET_MINUTES if options.budget is None else options.budget
    ways = ways_of(evidence, stage_sizes, images, strategies, options.cut)
    return decide(evidence, [way for way in ways if _is_open(way, options, able)], budget * 60)


def _is_open(way: Way, options: Options, able: Able) -> bool:
    """Return whether the network can go a way: the later of two cuts may have no block that can be skipped."""
    return _refusal(way.strategy, way.cut, options, able) is None


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


def _check(strategy: str, evidence: Evidence, options: Options, stage_sizes: Sequence[int], taps: Sequence[int]) -> int:
    """Return the first stage that would train; raise SettingError where a strategy does not go with what is set."""
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
    return cut


_OVERRIDABLE = ("cut", "taps", "head", "image_size", "epochs", "layer_decay", "augment", "views", *RECIPE_KEYS)
