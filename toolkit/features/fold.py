"""BatchNorm and padding folded into the convolutions beside them: the same function in fewer passes over memory."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from toolkit.features.agree import is_close
from toolkit.features.fuse import Followers, followers


class _Pair(NamedTuple):
    """Names of a BatchNorm and of the convolution that feeds it."""

    norm: str
    convolution: str


class _Found(NamedTuple):
    """What may be folded in one stage: its pairs, and for every convolution that pads its input itself the (height,
    width) of that input."""

    pairs: list[_Pair]
    padders: dict[str, tuple[int, int]]


class Folded(NamedTuple):
    """Copies of stages, and the sample's activations before, between and after them, as the plain stages make them.

    followers: of each copy, where it was looked at already, which activation follows which convolution.
    """

    stages: nn.ModuleList
    activations: list[Tensor]
    followers: list[Followers | None]


def frozen_copies(stages: Sequence[nn.Module], sample: Tensor) -> Folded:
    """Return copies of stages in eval mode for images of the sample's height and width, in fewer operations.

    Every BatchNorm that directly follows a convolution is folded into it: W' = W · γ/σ, b' = (b − μ) · γ/σ + β. A
    convolution that pads its input to "same" size in a step of its own, as TensorFlow's do, one row more below than
    above, gets that row as zeros of its kernel: copying the input costs several times what multiplying it does
    (EfficientNet-Lite0's first depthwise one at 224 px, float32: 64 ms, then 17 ms).

    Which ones do is seen by running `sample`, float (N, 3, H, W), and following the tensors, so that no architecture
    has to be known. Every stage stands for itself: what goes from one to the next stays what it was, and a stage that
    then gives other numbers, beyond rounding, is left as it is. No gradients; the originals are not touched. The
    copies are on the CPU, where all this is done, so that the outcome does not depend on the device that the
    originals are on.
    """
    copies = plain_copies(stages).cpu()
    seen: list[Followers | None] = [None] * len(copies)
    # It may be called in a step of mixed precision, or in inference mode, in which no change leaves a trace.
    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
        found, activations = _follow(copies, sample.cpu().clone())
        for of_stage in found:
            for pair in of_stage.pairs:
                _fold(copies, pair)
            for name, size in of_stage.padders.items():
                _pad_the_kernel(copies, name, size)
        for number, of_stage in enumerate(found):
            if of_stage.pairs or of_stage.padders:
                try:
                    made, seen[number] = followers(copies[number], activations[number])
                except Exception:  # whatever a module does that misses its norm
                    made = None
                if not is_close(made, activations[number + 1]):
                    copies[number], seen[number] = plain_copies(stages[number : number + 1]).cpu()[0], None
    return Folded(copies, activations, seen)


def plain_copies(stages: Sequence[nn.Module]) -> nn.ModuleList:
    """Return copies of stages in eval mode that take no gradients."""
    copies: nn.ModuleList = copy.deepcopy(nn.ModuleList(stages)).eval().requires_grad_(False)
    return copies


def norms_after_convolutions(stages: nn.ModuleList, sample: Tensor) -> tuple[list[list[tuple[str, str]]], list[Tensor]]:
    """Return, for each stage, the names in it of convolutions and of the norms that they feed, and all activations.

    sample: float (1, 3, H, W), normalised, on the device of the stages, which are run in the modes that they have.
    activations: what goes into each stage and comes out of the last. An output may go elsewhere too: see `_follow`.
    """
    found, activations = _follow(stages, sample)
    names: list[list[tuple[str, str]]] = []
    for of_stage in found:
        split = [(pair.convolution.partition("."), pair.norm.partition(".")) for pair in of_stage.pairs]
        names.append([(one[2], other[2]) for one, other in split if one[0] == other[0]])
    return names, activations


def _follow(stages: nn.ModuleList, sample: Tensor) -> tuple[list[_Found], list[Tensor]]:
    """Return what may be folded in each stage, and the activations before, between and after the stages.

    A convolution whose output goes elsewhere too would hand on other numbers; the comparison in `frozen_copies`
    finds that out.
    """
    made: dict[int, tuple[str, Tensor, int]] = {}  # the tensor is kept, so that its id is not given out again
    runs: Counter[str] = Counter()
    pairs: list[_Pair] = []
    padders: dict[str, tuple[int, int]] = {}
    hooks = []

    def after_convolution(name: str, module: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        runs[name] += 1
        made[id(output)] = (name, output, _version(output))
        if inputs and _pads_by_itself(module, inputs[0], output):
            padders[name] = (inputs[0].shape[2], inputs[0].shape[3])

    def before_norm(name: str, inputs: tuple[Tensor, ...]) -> None:
        runs[name] += 1
        if inputs and id(inputs[0]) in made:
            convolution, _, version = made[id(inputs[0])]
            if version == _version(inputs[0]):  # nothing was done to it in place
                pairs.append(_Pair(name, convolution))

    for name, module in stages.named_modules():
        if isinstance(module, nn.Conv2d) and _has_plain_weights(module):
            hooks.append(module.register_forward_hook(lambda m, x, y, name=name: after_convolution(name, m, x, y)))
        elif isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            hooks.append(module.register_forward_pre_hook(lambda m, inputs, name=name: before_norm(name, inputs)))
    by_stage, activations = [], [sample.clone()]
    try:
        for stage in stages:
            activations.append(stage(activations[-1].clone()))  # a stage may work in place
            by_stage.append(_Found(list(pairs), dict(padders)))
            pairs.clear()
            padders.clear()
            made.clear()
    finally:
        for hook in hooks:
            hook.remove()
    feeds = Counter(pair.convolution for of_stage in by_stage for pair in of_stage.pairs)  # of two norms: neither's
    return [
        _Found(
            [pair for pair in pairs if runs[pair.norm] == runs[pair.convolution] == feeds[pair.convolution] == 1],
            {name: size for name, size in padders.items() if runs[name] == 1},
        )
        for pairs, padders in by_stage
    ], activations


def _pads_by_itself(convolution: nn.Conv2d, given: Tensor, made: Tensor) -> bool:
    """Return whether one that is said not to pad has padded all the same: it made ⌈n / stride⌉ rows of n."""
    if convolution.padding != (0, 0) or convolution.padding_mode != "zeros" or given.dim() != 4:
        return False
    whole = [math.ceil(n / step) for n, step in zip(given.shape[2:], convolution.stride, strict=True)]
    return list(made.shape[2:]) == whole and any(_missing(convolution, given.shape[2:]))


def _missing(convolution: nn.Conv2d, size: Sequence[int]) -> list[int]:
    """Return how many rows and columns "same" padding adds to an input of `size`, (height, width)."""
    shape = zip(size, convolution.stride, convolution.kernel_size, convolution.dilation, strict=True)
    return [max(0, (math.ceil(n / step) - 1) * step + (k - 1) * apart + 1 - n) for n, step, k, apart in shape]


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
    setattr(stages.get_submodule(parent), name, rest_of(norm))


def _pad_the_kernel(stages: nn.ModuleList, name: str, size: tuple[int, int]) -> None:
    """Put an ordinary convolution in the place of one that pads its input of `size` to "same" size by itself."""
    old = stages.get_submodule(name)
    assert isinstance(old, nn.Conv2d)
    missing = _missing(old, size)
    odd = [n % 2 for n in missing]
    if any(extra and apart > 1 for extra, apart in zip(odd, old.dilation, strict=True)):
        return
    new = nn.Conv2d(
        old.in_channels,
        old.out_channels,
        (old.kernel_size[0] + odd[0], old.kernel_size[1] + odd[1]),
        (old.stride[0], old.stride[1]),
        (missing[0] - missing[0] // 2, missing[1] - missing[1] // 2),
        (old.dilation[0], old.dilation[1]),
        old.groups,
        bias=False,
        device="meta",
    ).eval()
    weight = nn.functional.pad(old.weight, (odd[1], 0, odd[0], 0))
    new.weight, new.bias = nn.Parameter(weight, requires_grad=False), old.bias
    parent, _, last = name.rpartition(".")
    setattr(stages.get_submodule(parent), last, new)


def rest_of(norm: nn.Module) -> nn.Module:
    """Return what is left of a norm: nothing, or what timm's norms do after it (dropout and activation)."""
    after = [getattr(norm, name) for name in ("drop", "act") if isinstance(getattr(norm, name, None), nn.Module)]
    return nn.Sequential(*after).eval() if after else nn.Identity().eval()


def _has_plain_weights(module: nn.Module) -> bool:
    """Return whether the weight is a parameter of its own, not made from others at every call."""
    return "weight" in dict(module.named_parameters(recurse=False)) and not hasattr(module, "parametrizations")


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
