"""What a check finds when a network is to learn: what finetune trains, or a baseline."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.backbones.taps import tap_widths
from toolkit.baselines.options import BaselineOptions
from toolkit.checks.activations import activations, gradient_flow
from toolkit.checks.finding import FAIL, Finding
from toolkit.checks.learner import Learner, first_of
from toolkit.checks.learning import IMAGES, overfit
from toolkit.checks.model import first_loss, gradients, last_batch, regularized_loss
from toolkit.data.manifest import TRAIN, Manifest
from toolkit.errors import DataError
from toolkit.heads.linear import LinearHead, unit_rms
from toolkit.plan import FreezeSpec, Recipe
from toolkit.planning.probes import stratified
from toolkit.planning.recipes import RECIPES, freezing
from toolkit.tasks.baseline_inputs import open_source, read_examples
from toolkit.tasks.baseline_run import untrained
from toolkit.tasks.job import Job
from toolkit.tasks.measure import clean_pixels
from toolkit.training.groups import parameter_groups
from toolkit.training.network import TransferNetwork

TAIL = 2  # stages, where the strategy is left open
REACHED_BY = 4  # images, whose gradients are looked at


def transfer_findings(manifest: Manifest, job: Job, lr: float | None) -> list[Finding]:
    """Return whether the network that finetune trains can learn from the images of a split Manifest."""
    rows = _few(manifest, job.options.seed)
    pixels = clean_pixels(manifest, rows, job)
    labels = torch.from_numpy(manifest.labels[rows])
    if len(pixels) != len(rows):
        return [Finding("overfit", FAIL, "images have vanished in the meantime", "check again")]
    spec, recipe = _training(job)
    if lr is not None:
        recipe = replace(recipe, lr=lr)
    network = _network(job, spec, recipe, len(manifest.classes))
    pixels, labels = pixels.to(job.device), labels.to(job.device)
    frozen = tuple(f"stages.{number}." for number in range(spec.cut))
    learner = Learner(
        network,
        len(manifest.classes),
        lr=recipe.lr,
        frozen=frozen,
        groups=lambda copied: parameter_groups(copied, recipe),
    )
    with torch.no_grad():
        inputs: Any = network.prefix()(pixels) if spec.cut else pixels
    some = first_of(inputs, REACHED_BY)
    return [
        first_loss(learner, inputs, labels),
        regularized_loss(learner, some, labels[:REACHED_BY]),
        gradients(learner, pixels[:REACHED_BY], labels[:REACHED_BY]),
        _last_batch(learner, some, labels),
        overfit(learner, lambda step: (inputs, labels)),
    ]


def baseline_findings(
    data: str | os.PathLike[str], manifest: Manifest, job: Job, model: str, lr: float | None
) -> list[Finding]:
    """Return whether a baseline on pixels can learn from the images, and whether its units work."""
    keys = ("image_size", "seed", "device", "workers", "cache", "cache_dir")
    common = {key: getattr(job.options, key) for key in keys}
    options = BaselineOptions(model=model, lr=lr, val=job.options.val, max_pixels=job.options.max_pixels, **common)
    try:
        examples = read_examples(open_source(data, options), options, job.store)
    except DataError as error:
        return [Finding("overfit", FAIL, f"{model} cannot be trained: {error}", "mend the data first")]
    train = examples.manifest.rows(TRAIN)
    rows = train[stratified(examples.manifest.labels[train], IMAGES, options.seed)]
    inputs, labels = examples.inputs.take(rows), torch.from_numpy(examples.manifest.labels[rows])
    many = examples.inputs.take(train[stratified(examples.manifest.labels[train], options.value("batch_size"), 0)])
    network = nn.Sequential(nn.Flatten(), untrained(examples, options).float())
    learner = Learner(network, len(manifest.classes), loss=options.value("loss"), lr=options.value("lr"))
    return [
        first_loss(learner, inputs, labels),
        regularized_loss(learner, inputs, labels),
        gradients(learner, inputs, labels),
        _last_batch(learner, inputs, labels),
        overfit(learner, lambda step: (inputs, labels)),
        activations(network, many),
        gradient_flow(learner, inputs, labels),
    ]


def _last_batch(learner: Learner, inputs: Any, labels: Tensor) -> Finding:
    """As training does it: norms that learn from batches use their running statistics for one image."""
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in learner.network.modules()):
        return last_batch(learner, inputs, labels)
    return last_batch(replace(learner, network=_Settled(learner.network)), inputs, labels)


class _Settled(nn.Module):
    """A network whose norms stay with their running statistics, as they do for a batch of one image."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def train(self, mode: bool = True) -> _Settled:
        """Set the mode of everything but the norms."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def forward(self, inputs: Any) -> Tensor:
        """Return the network's scores."""
        scores: Tensor = self.network(inputs)
        return scores


def _training(job: Job) -> tuple[FreezeSpec, Recipe]:
    """Return what trains and how, by the strategy; where that is open, a tail of two stages as `partial` trains it."""
    options, sizes = job.options, job.backbone.stage_sizes()
    if options.strategy in ("auto", "partial"):
        cut = len(sizes) - TAIL if options.strategy == "auto" and len(sizes) > TAIL else options.cut
        return freezing("partial", sizes, cut), RECIPES["partial"]
    return freezing(options.strategy, sizes, None), RECIPES.get(options.strategy, RECIPES["partial"])


def _network(job: Job, spec: FreezeSpec, recipe: Recipe, n_classes: int) -> TransferNetwork:
    widths = tap_widths(job.backbone, job.taps)
    head = LinearHead(widths, n_classes, unit_rms(widths))
    network = TransferNetwork(job.backbone, head, spec, taps=job.taps, batchnorm=recipe.batchnorm)
    return network.to(job.device)


def _few(manifest: Manifest, seed: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    train = manifest.rows(TRAIN)
    return train[stratified(manifest.labels[train], IMAGES, seed)]
