"""BatchNorm folded into the convolution before it: the same function in fewer passes over memory."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

TOLERANCE = 1e-4  # relative; folding multiplies in another order


class _Pair(NamedTuple):
    """Names of a BatchNorm and of the convolution that feeds it."""

    norm: str
    convolution: str


def frozen_copies(stages: Sequence[nn.Module], sample: Tensor) -> nn.ModuleList:
    """Return copies of stages in eval mode, every BatchNorm that directly follows a convolution folded into it.

    Which ones do is seen by running `sample`, float (N, 3, H, W), and following the tensors, so that no architecture
    has to be known: W' = W · γ/σ, b' = (b − μ) · γ/σ + β. Every stage stands for itself: what goes from one to the
    next stays what it was, and a stage that then gives other numbers, beyond rounding, is left unfolded. No
    gradients; the originals are not touched. The copies are on the CPU, where all this is done, so that the outcome
    does not depend on the device that the originals are on.
    """
    plain = plain_copies(stages).cpu()
    with torch.no_grad(), torch.autocast("cpu", enabled=False):  # it may be called in a step of mixed precision
        pairs, activations = _pairs(plain, sample.cpu())
        if not any(pairs):
            return plain
        folded = plain_copies(stages).cpu()
        for pair in (pair for of_stage in pairs for pair in of_stage):
            _fold(folded, pair)
        for number, of_stage in enumerate(pairs):
            if of_stage and not _agrees(folded[number], activations[number], activations[number + 1]):
                folded[number] = plain[number]
    return folded


def plain_copies(stages: Sequence[nn.Module]) -> nn.ModuleList:
    """Return copies of stages in eval mode that take no gradients."""
    copies: nn.ModuleList = copy.deepcopy(nn.ModuleList(stages)).eval().requires_grad_(False)
    return copies


def _pairs(stages: nn.ModuleList, sample: Tensor) -> tuple[list[list[_Pair]], list[Tensor]]:
    """Return the pairs of each stage, and the activations before, between and after the stages.

    A convolution whose output goes elsewhere too would hand on other numbers; the comparison in `frozen_copies`
    finds that out.
    """
    made: dict[int, tuple[str, Tensor, int]] = {}  # the tensor is kept, so that its id is not given out again
    runs: Counter[str] = Counter()
    found: list[_Pair] = []
    hooks = []

    def after_convolution(name: str, output: Tensor) -> None:
        runs[name] += 1
        made[id(output)] = (name, output, _version(output))

    def before_norm(name: str, inputs: tuple[Tensor, ...]) -> None:
        runs[name] += 1
        if inputs and id(inputs[0]) in made:
            convolution, _, version = made[id(inputs[0])]
            if version == _version(inputs[0]):  # nothing was done to it in place
                found.append(_Pair(name, convolution))

    for name, module in stages.named_modules():
        if isinstance(module, nn.Conv2d) and _has_plain_weights(module):
            hooks.append(module.register_forward_hook(lambda m, inputs, out, name=name: after_convolution(name, out)))
        elif isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            hooks.append(module.register_forward_pre_hook(lambda m, inputs, name=name: before_norm(name, inputs)))
    by_stage, activations = [], [sample.clone()]
    try:
        for stage in stages:
            activations.append(stage(activations[-1].clone()))  # a stage may work in place
            by_stage.append(list(found))
            found.clear()
            made.clear()
    finally:
        for hook in hooks:
            hook.remove()
    feeds = Counter(pair.convolution for of_stage in by_stage for pair in of_stage)  # of two norms: neither's
    alone = [
        [pair for pair in of_stage if runs[pair.norm] == runs[pair.convolution] == feeds[pair.convolution] == 1]
        for of_stage in by_stage
    ]
    return alone, activations


def _agrees(stage: nn.Module, activation: Tensor, expected: Tensor) -> bool:
    try:
        found = stage(activation.clone())
    except Exception:  # whatever a module does that misses its norm
        return False
    return bool((found - expected).norm() <= TOLERANCE * expected.norm())  # not so for NaN


def _fold(stages: nn.ModuleList, pair: _Pair) -> None:
    convolution, norm = stages.get_submodule(pair.convolution), stages.get_submodule(pair.norm)
    assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None and norm.running_var is not None
    weight, dtype = convolution.weight, convolution.weight.dtype
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    bias = -norm.running_mean.double() if convolution.bias is None else convolution.bias - norm.running_mean.double()
    shift = torch.zeros_like(scale) if norm.bias is None else norm.bias
    convolution.weight = nn.Parameter((weight * scale.view(-1, 1, 1, 1)).to(dtype), requires_grad=False)
    convolution.bias = nn.Parameter((bias * scale + shift).to(dtype), requires_grad=False)
    parent, _, name = pair.norm.rpartition(".")
    setattr(stages.get_submodule(parent), name, _rest(norm))


def _rest(norm: nn.Module) -> nn.Module:
    """Return what is left of a norm: nothing, or what timm's norms do after it (dropout and activation)."""
    after = [getattr(norm, name) for name in ("drop", "act") if isinstance(getattr(norm, name, None), nn.Module)]
    return nn.Sequential(*after).eval() if after else nn.Identity().eval()


def _has_plain_weights(module: nn.Module) -> bool:
    """Return whether the weight is a parameter of its own, not made from others at every call."""
    return "weight" in dict(module.named_parameters(recurse=False)) and not hasattr(module, "parametrizations")


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
