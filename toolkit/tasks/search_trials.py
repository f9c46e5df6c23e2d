"""What is searched, and by which trials: of a baseline, of instant heads, or of a fine-tuning."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from toolkit.backbones.backbone import Backbone
from toolkit.baselines.options import BaselineOptions
from toolkit.data.manifest import Manifest
from toolkit.data.scan import scan
from toolkit.data.split import assign_splits
from toolkit.features.store import FeatureStore
from toolkit.hardware import resolve_device, resolve_precision
from toolkit.options import Options
from toolkit.progress import say
from toolkit.tasks.baseline_inputs import open_source, read_examples
from toolkit.tasks.job import Job, Stopwatch, open_backbone, plan_ahead, some_left
from toolkit.tasks.search_baseline import BaselineTrials
from toolkit.tasks.search_folds import JUDGES_AGAIN, training_only
from toolkit.tasks.search_head import HeadTrials
from toolkit.tasks.search_tail import TailTrials
from toolkit.tasks.stores import open_store
from toolkit.training.drop_path import skippable
from toolkit.tuning.objective import Objective
from toolkit.tuning.space import Space
from toolkit.tuning.spaces import baseline_space, cuts_of, head_space, tail_space

MACHINE = ("device", "workers", "cache", "cache_dir")  # keys of best.yaml that are of this machine are left out


@dataclass(frozen=True, eq=False)
class Trials:
    """What a search works with.

    verb, what: who trains with the settings found, and what is searched for, in words. manifest: the training images.
    objective: judges trials; deal: makes it on folds of another seed. given: keys that best.yaml has besides the
    data and what was found. defaults: what stands for a key that a trial does not set. weights_digest: of the weights
    file that was given, "" where none was.
    """

    verb: str
    what: str
    manifest: Manifest
    space: Space
    deal: Callable[[int], Objective]
    objective: Objective
    given: dict[str, Any]
    defaults: Mapping[str, Any]
    seed: int
    weights_digest: str = ""

    def redealt(self, number: int) -> Objective:
        """Return the objective on other folds: deal `number`, from 1."""
        return self.deal(self.seed + number * JUDGES_AGAIN)


@contextmanager
def open_trials(
    data: str | os.PathLike[str], options: Options | BaselineOptions, given: Mapping[str, Any], n_folds: int
) -> Iterator[Trials]:
    """Yield the Trials on some data: decoded, and extracted, once."""
    with open_store(options.cache, options.cache_dir) as store:
        if isinstance(options, BaselineOptions):
            yield _of_baseline(data, options, given, n_folds, store)
        elif options.strategy == "head":
            yield _of_head(data, options, given, n_folds, store)
        else:
            yield _of_tail(data, options, given, n_folds, store)


def _of_baseline(
    data: str | os.PathLike[str],
    options: BaselineOptions,
    given: Mapping[str, Any],
    n_folds: int,
    store: FeatureStore,
) -> Trials:
    examples = read_examples(open_source(data, options), options, store)
    manifest = training_only(examples.manifest)
    space = baseline_space(options.model, _fixed(options, given), options.optimizer)
    say(f"search for {options.model} on {options.on}: {examples.inputs}")

    def deal(seed: int) -> Objective:
        return BaselineTrials.of(examples, options, n_folds, seed)

    ours = {"model": options.model, **_lasting(given, options)}
    defaults = {part: options.value(part) for part in ("lr", "l2", "hidden", "dropout", "activation", "init")}
    defaults["batchnorm"] = options.batchnorm
    what = f"{options.model} on {options.on}"
    digest = _digest(options, examples.backbone)
    return Trials("baseline", what, manifest, space, deal, deal(options.seed), ours, defaults, options.seed, digest)


def _of_head(
    data: str | os.PathLike[str], options: Options, given: Mapping[str, Any], n_folds: int, store: FeatureStore
) -> Trials:
    job, scanned = _job(data, options, store)
    probe = job.fetch(job.all_taps, scanned)
    manifest = assign_splits(some_left(scanned.without(probe.failures)), val=options.val, seed=options.seed)
    probe = replace(probe, rows=np.arange(len(manifest)), failures=())

    def deal(seed: int) -> Objective:
        return HeadTrials.of(job, manifest, probe, n_folds, seed)

    space = head_space(len(job.backbone), set(given))
    defaults = {"head": options.head or "auto", "taps": options.taps or "auto"}
    return _transfer(job, training_only(manifest), space, deal, given, defaults)


def _of_tail(
    data: str | os.PathLike[str], options: Options, given: Mapping[str, Any], n_folds: int, store: FeatureStore
) -> Trials:
    job, scanned = _job(data, options, store)
    sizes = job.backbone.stage_sizes()
    latest = 0 if options.strategy == "full" else max(cuts_of(sizes)) if options.cut is None else options.cut
    fixed = {*given, *(() if skippable(job.backbone.stages[latest:]) else ("drop_path",))}  # nothing to be skipped
    space = tail_space(options.strategy, sizes, options.optimizer, fixed)
    prepared: dict[tuple[Any, ...], Any] = {}

    def deal(seed: int) -> Objective:
        return TailTrials(job, scanned, n_folds, seed, prepared)

    own = TailTrials(job, scanned, n_folds, options.seed, prepared).prepared({})
    recipe = own.plan.recipe
    defaults = {part.name: getattr(recipe, part.name, None) for part in space}
    defaults |= {"cut": own.plan.cut, "augment": own.plan.augmentation}
    return _transfer(job, own.manifest, space, deal, given, defaults)


def _job(data: str | os.PathLike[str], options: Options, store: FeatureStore) -> tuple[Job, Manifest]:
    resolve_precision(options.precision, resolve_device(options.device))
    scanned = scan(data, max_pixels=options.max_pixels)
    backbone = open_backbone(options)
    plan_ahead(scanned, options, backbone)
    return Job(options, backbone, store, Stopwatch()), scanned


def _transfer(
    job: Job,
    manifest: Manifest,
    space: Space,
    deal: Callable[[int], Objective],
    given: Mapping[str, Any],
    defaults: Mapping[str, Any],
) -> Trials:
    options = job.options
    ours = {"strategy": options.strategy, **_lasting(given, options)}
    what = f"{options.strategy} on {job.backbone.name}"
    digest = _digest(options, job.backbone)
    return Trials("finetune", what, manifest, space, deal, deal(options.seed), ours, defaults, options.seed, digest)


def _digest(options: Options | BaselineOptions, backbone: Backbone | None) -> str:
    return "" if backbone is None or options.weights is None else backbone.weights_digest


def _fixed(options: BaselineOptions, given: Mapping[str, Any]) -> set[str]:
    """Return the keys that are not searched: those that were given, and one that does not go with a given one."""
    return {*given, *(("batchnorm",) if options.activation == "maxout" else ())}


def _lasting(given: Mapping[str, Any], options: Options | BaselineOptions) -> dict[str, Any]:
    """Return the given keys as a YAML file has them: plain values, files by their absolute paths."""
    plain = options.to_dict()
    return {key: plain.get(key, value) for key, value in given.items() if key not in MACHINE}
