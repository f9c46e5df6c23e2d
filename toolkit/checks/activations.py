"""Whether a net's units work: saturated and dead ones, activations that vanish, gradients that fade or burst."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from toolkit.checks.finding import FAIL, PASS, WARN, Finding
from toolkit.checks.learner import Learner
from toolkit.reference.diagnostics import LayerStatistics, Watch

MANY, NEARLY_ALL = 0.5, 0.9  # of the units of a layer
FADED, BURST = 1e-3, 1e3  # of the last hidden layer's spread against the first one's
FADED_GRADIENT, BURST_GRADIENT = 1e-3, 1e3  # of the first layer's gradient against the last one's


def activations(network: nn.Module, inputs: Any) -> Finding:
    """Return whether layers are saturated or dead, or their outputs vanish or grow with depth (notes: Activation
    Function, Weight Initialization).

    inputs: a batch of images or rows, as the network takes them. ReLU units that are 0 for all of them count as dead,
    tanh and sigmoid outputs where the slope is nearly 0 as saturated.
    """
    with Learner(network, 2).tried():
        with Watch(network) as watch:
            network(inputs)
        layers = watch.statistics()
    problems = [problem for layer in layers if (problem := _problem(layer)) is not None]
    if problems:
        share, told, advice = max(problems, key=lambda one: one[0])
        return Finding("activations", FAIL if share >= NEARLY_ALL else WARN, told, advice)
    hidden = [layer for layer in layers[:-1] if layer.dead is not None or layer.saturated is not None]
    if len(hidden) > 1:
        ratio = hidden[-1].std / max(hidden[0].std, 1e-30)
        told = f"the spread of the activations goes from {hidden[0].std:.2g} to {hidden[-1].std:.2g} over {len(hidden)}"
        if ratio < FADED or ratio > BURST:
            advice = "take first weights by He (ReLU) or Xavier (tanh), or batch normalisation"
            return Finding("activations", FAIL, f"{told} layers", advice)
        return Finding("activations", PASS, f"{told} layers; {_most(hidden)}")
    return Finding("activations", PASS, _most(hidden) if hidden else "no layer that could saturate or die")


def gradient_flow(learner: Learner, inputs: Any, labels: Tensor) -> Finding:
    """Return whether the loss's gradients keep their size on the way back: those at the first layer's outputs against
    those at the last hidden layer's."""
    with learner.tried() as network:
        with Watch(network) as watch:
            learner.data_loss(network(inputs).float(), labels).backward()  # type: ignore[no-untyped-call]
        spreads = [(one.name, one.grad_std) for one in watch.statistics() if one.grad_std is not None]
    spreads = [(name, spread) for name, spread in spreads[:-1] if spread is not None]
    if len(spreads) < 2:
        return Finding("gradient_flow", PASS, "one layer: gradients have no way to go")
    (first, at_first), (last, at_last) = spreads[0], spreads[-1]
    told = f"gradients have a spread of {at_last:.2g} at layer {last} and {at_first:.2g} at layer {first}"
    if not at_first:  # NaN is not zero, and no ratio that passes
        return Finding("gradient_flow", FAIL, f"{told}: the first layers learn nothing", "look at dead units")
    ratio = at_first / at_last if at_last else float("inf")
    if FADED_GRADIENT <= ratio <= BURST_GRADIENT:
        return Finding("gradient_flow", PASS, told)
    what = "they fade" if ratio < FADED_GRADIENT else "they burst"
    advice = "take first weights by He (ReLU) or Xavier (tanh), batch normalisation, or fewer layers"
    return Finding("gradient_flow", WARN, f"{what}: {told}", advice)


def _problem(layer: LayerStatistics) -> tuple[float, str, str] | None:
    if layer.dead is not None and layer.dead > MANY:
        told = f"{layer.dead:.0%} of the units of layer {layer.name} are dead: 0 for every image"
        return layer.dead, told, "lower the rate or the biases, or take leaky_relu"
    if layer.saturated is not None and layer.saturated > MANY:
        told = f"{layer.saturated:.0%} of the outputs of layer {layer.name} are saturated"
        return layer.saturated, told, "make the first weights smaller (Xavier), or centre the inputs"
    return None


def _most(layers: Sequence[LayerStatistics]) -> str:
    dead = max((layer.dead for layer in layers if layer.dead is not None), default=None)
    saturated = max((layer.saturated for layer in layers if layer.saturated is not None), default=None)
    told = [] if dead is None else [f"{dead:.0%} dead"]
    return ", ".join(told + ([] if saturated is None else [f"{saturated:.0%} saturated"])) + " in any layer at most"
