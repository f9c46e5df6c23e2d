"""Whether it learns: a network that cannot learn twenty images by heart will not learn a thousand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.checks.finding import FAIL, PASS, WARN, Finding
from toolkit.checks.learner import Learner, tensors_of

Batches = Callable[[int], tuple[Any, Tensor]]

LEAST_LOSS = 0.01
IMAGES = 20
COMPARED_STEPS = 5  # whose images and labels are remembered
STILL = 1e-3  # of the weights' size: less movement in all steps is none
RISEN, BURST = 1.5, 50.0  # times the first loss: it has gone up in the end; it burst on the way
STILL_LEARNING = 0.3  # of the first loss
NOT_DONE = "it is not done yet"
SMALLER = "divide the learning rate by 10"
SAME_SCORES = 1e-5  # standard deviation of a class's scores over the images, relative to their size


def overfit(learner: Learner, batch: Batches, *, steps: int = 200) -> Finding:
    """Return whether it learns a few images by heart: a loss below 0.01 and every label right (notes: Babysitting).

    batch: step → (inputs, labels) of the same twenty images or fewer each time. It is trained by Adam at the learner's
    rate, in training mode, and stops as soon as it has passed. Where it fails, the finding says at what: labels that
    change or contradict each other, gradients that do not arrive, a rate that moves nothing or too much, inputs that
    are alike, scores that are probabilities already, dropout; else that the network is not able to.
    """
    with learner.tried() as network:
        tried = _train(learner, network, batch, steps)
        if tried.passed:
            seen = f"{tried.n} images learned by heart in {tried.steps} steps: loss {tried.losses[-1]:.4f}, all right"
            return Finding("overfit", PASS, seen)
        cause, advice = _cause(learner, network, tried)
    at = f"after {tried.steps} steps the loss on {tried.n} images is {tried.losses[-1]:.3g} (it began at "
    at += f"{tried.losses[0]:.3g}), {tried.accuracy:.0%} of them right" if tried.losses else "no step could be taken"
    return Finding("overfit", WARN if cause == NOT_DONE else FAIL, f"{cause}: {at}", advice)


@dataclass
class _Tried:
    """What a short training came to."""

    n: int = 0
    steps: int = 0
    losses: list[float] = field(default_factory=list)
    accuracy: float = 0.0
    passed: bool = False
    changed: bool = False  # an image had another label in a later step
    torn: bool = False  # equal images had two labels in one step
    reached: bool = False  # some parameter got a gradient other than zero
    moved: float = 0.0  # of the weights' size
    inputs: Any = None
    labels: Tensor | None = None
    said: dict[int, set[int]] = field(default_factory=dict)


def _train(learner: Learner, network: nn.Module, batch: Batches, steps: int) -> _Tried:
    tried = _Tried()
    trained = [p for p in network.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    optimizer = learner.optimizer(network)
    for step in range(steps):
        inputs, labels = batch(step)
        tried.n, tried.steps, tried.inputs, tried.labels = len(labels), step + 1, inputs, labels
        if step < COMPARED_STEPS:
            _compare_labels(tried, inputs, labels, first=step == 0)
        scores = network(inputs).float()
        loss = learner.data_loss(scores, labels)
        tried.losses.append(float(loss.detach()))
        tried.accuracy = float((scores.argmax(dim=1) == labels).float().mean())
        tried.passed = tried.losses[-1] < LEAST_LOSS and tried.accuracy == 1
        unsound = tried.changed or tried.torn or optimizer is None or not loss.requires_grad
        if tried.passed or not math.isfinite(tried.losses[-1]) or (unsound and step >= COMPARED_STEPS - 1):
            break
        if optimizer is None or not loss.requires_grad:
            continue
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        tried.reached = tried.reached or any(p.grad is not None and bool(p.grad.any()) for p in trained)
        optimizer.step()
    size = sum(float(old.square().sum()) for old in before)
    change = sum(float((p.detach() - old).square().sum()) for p, old in zip(trained, before, strict=True))
    tried.moved = math.sqrt(change / max(size, 1e-12)) if math.isfinite(change) else math.inf
    tried.passed = tried.passed and not (tried.changed or tried.torn or _has_burst(learner, tried))
    return tried


def _has_burst(learner: Learner, tried: _Tried) -> bool:
    """Return whether the loss went out of all proportion on the way: large steps may find a way back by chance."""
    return bool(tried.losses) and max(tried.losses) > BURST * max(tried.losses[0], learner.first_loss)


def _compare_labels(tried: _Tried, inputs: Any, labels: Tensor, *, first: bool) -> None:
    """Note whether the same image has had another label before, or has two at once."""
    now: dict[int, set[int]] = {}
    for image, label in zip(_fingerprints(inputs, len(labels)), labels.tolist(), strict=True):
        now.setdefault(image, set()).add(label)
    tried.torn = tried.torn or any(len(said) > 1 for said in now.values())
    if not first:
        tried.changed = tried.changed or any(image in tried.said and tried.said[image] != s for image, s in now.items())
    for image, said in now.items():
        tried.said.setdefault(image, said)


def _fingerprints(inputs: Any, n: int) -> list[int]:
    rows = torch.cat([tensor.detach().reshape(n, -1).double().cpu() for tensor in tensors_of(inputs)], dim=1)
    return [hash(row.numpy().tobytes()) for row in rows]


def _cause(learner: Learner, network: nn.Module, tried: _Tried) -> tuple[str, str]:
    """Return why it did not pass, and what to do."""
    if tried.changed:
        return "labels change from step to step for the same images", "shuffle images and labels together"
    if len(tried.said) == 1 and tried.n > 1:
        return "all images are alike, so the same image has two labels", "look at augmentation and normalisation"
    if tried.torn:
        return "the same image has two labels", "remove one of the copies"
    if not tried.reached:
        return "gradients do not arrive: no parameter moves", "look for detach(), no_grad() and requires_grad = False"
    last, start = tried.losses[-1], tried.losses[0]
    if _has_burst(learner, tried):
        return f"the rate {learner.lr:g} is too large: the loss burst to {max(tried.losses):.3g}", SMALLER
    if not math.isfinite(last) or last > RISEN * max(start, learner.first_loss):
        return f"the rate {learner.lr:g} is too large: the loss went up", SMALLER
    if tried.moved < STILL:
        return f"the rate {learner.lr:g} is too small: nothing moves", "multiply the learning rate by 10 or more"
    return _unable(learner, network, tried)


@torch.no_grad()
def _unable(learner: Learner, network: nn.Module, tried: _Tried) -> tuple[str, str]:
    """Return what else a network that moved may suffer from."""
    assert tried.labels is not None
    scores = network(tried.inputs).float()
    if bool((scores >= 0).all()) and torch.allclose(scores.sum(1), torch.ones(len(scores)).to(scores), atol=1e-3):
        return "the scores are probabilities already", "give the loss raw scores: it takes the softmax itself"
    network.eval()
    settled = network(tried.inputs).float()
    if float(learner.data_loss(settled, tried.labels)) < LEAST_LOSS:
        return "only without dropout does it know them", "turn dropout and augmentation off, or down, for this"
    spread = settled.std(dim=0, correction=0).max() / settled.abs().max().clamp_min(1e-12)
    if float(spread) < SAME_SCORES:
        return "the network gives all images the same scores", "does it use its input? Look at dead units and scales"
    if tried.losses[-1] > 0.5 * tried.losses[0] and any(loss > 2 * tried.losses[0] for loss in tried.losses):
        return f"the rate {learner.lr:g} is too large: the loss jumps", SMALLER
    if tried.accuracy == 1 and tried.losses[-1] < STILL_LEARNING * tried.losses[0]:
        return NOT_DONE, f"multiply the learning rate by 3; it is learning, but not in {tried.steps} steps"
    return "it cannot learn them by heart", "is it too small, or kept from learning by dropout, clipping or a penalty?"
