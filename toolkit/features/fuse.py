"""Convolutions that do the activation after them as well: one pass over memory instead of two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from toolkit.features.agree import agrees

VERSION = 2  # of what is fused; another one may give other last bits


class Activation(NamedTuple):
    """An activation by the name, the numbers and the variant that oneDNN knows it by."""

    name: str
    numbers: tuple[float, ...] = ()
    variant: str = ""


_ACTIVATIONS: dict[type[nn.Module], Callable[[Any], Activation]] = {
    nn.ReLU: lambda module: Activation("relu"),
    nn.ReLU6: lambda module: Activation("hardtanh", (0.0, 6.0)),
    nn.Hardtanh: lambda module: Activation("hardtanh", (module.min_val, module.max_val)),
    nn.LeakyReLU: lambda module: Activation("leaky_relu", (module.negative_slope,)),
    nn.SiLU: lambda module: Activation("swish"),
    nn.Hardswish: lambda module: Activation("hardswish"),
    nn.GELU: lambda module: Activation("gelu", (), module.approximate),
}
Followers = list[tuple[str, str]]  # names of convolutions, and of the activations that follow them
_OPERATORS = ("_convolution_pointwise", "_reorder_convolution_weight")


class FusedConvolution(nn.Module):
    """A convolution of (N, C, H, W) on the CPU with its activation, in one pass over memory; it gives no gradients.

    Its kernels are laid out as oneDNN wants them for the first input that it meets; with later ones of other sizes it
    gives the same numbers, maybe in more time.
    """

    def __init__(self, convolution: nn.Conv2d, activation: Activation) -> None:
        super().__init__()
        self.convolution = convolution
        self.activation = activation
        self._kernels: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return activation(convolution(x))."""
        own, kernels = self.convolution, self._kernels
        how = (own.padding, own.stride, own.dilation, own.groups)
        if kernels is None:
            kernels = torch.ops.mkldnn._reorder_convolution_weight(own.weight.detach(), *how, x.shape)
            self._kernels = kernels
        made: Tensor = torch.ops.mkldnn._convolution_pointwise(x, kernels, own.bias, *how, *self.activation)
        return made

    def forget_kernels(self) -> None:
        """Lay the kernels out anew at the next call: for another size, or in another number format."""
        self._kernels = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kernels": None}  # oneDNN's layouts can be neither copied nor saved


def fuse(stages: nn.ModuleList, activations: Sequence[Tensor], seen: Sequence[Followers | None] | None = None) -> None:
    """Let the convolutions of stages, copies in eval mode, do the activations that follow them.

    activations: float32 on the CPU, what went into each stage and came out of the last, of one image. seen: what
    `followers` has found of each stage, where it was asked. On a CPU most of
    what compiling would win is won like this, without a compiler and in a tenth of a second: EfficientNet-Lite0 at 224
    px in float32 takes 268 ms of one core for 16 images, 231 ms like this and 220 ms compiled (torch 2.15, AVX-512; 16
    s of compiling). As in `frozen_copies`, what follows what is seen by running the sample and following the tensors;
    forwards stay what they are, and a stage that then gives other numbers, beyond rounding, gets its own modules back.
    Modules with hooks, or a forward of their own, stay.
    """
    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
        known = [None] * len(stages) if seen is None else seen
        for stage, given, expected, pairs in zip(stages, activations, activations[1:], known, strict=False):
            _fuse(stage, given, expected, followers(stage, given)[1] if pairs is None else pairs)


def can_fuse(dtype: torch.dtype) -> bool:
    """Return whether this torch has oneDNN's convolutions for a number format, on this CPU."""
    if not torch._C._has_mkldnn or not all(hasattr(torch.ops.mkldnn, name) for name in _OPERATORS):
        return False
    supports = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    return dtype == torch.float32 or (dtype in supports and bool(getattr(torch.ops.mkldnn, supports[dtype])()))


def _fuse(stage: nn.Module, given: Tensor, expected: Tensor, pairs: Followers) -> None:
    before: dict[str, nn.Module] = {}
    for convolution_name, activation_name in pairs:
        convolution, activation = stage.get_submodule(convolution_name), stage.get_submodule(activation_name)
        before |= {convolution_name: convolution, activation_name: activation}
        assert isinstance(convolution, nn.Conv2d)
        fused = FusedConvolution(convolution, _ACTIVATIONS[type(activation)](activation)).eval()
        _put(stage, convolution_name, fused)
        _put(stage, activation_name, nn.Identity().eval())
    if before and not agrees(stage, given, expected):
        for name, module in before.items():
            _put(stage, name, module)
    for module in stage.modules():
        if isinstance(module, FusedConvolution):
            module.forget_kernels()  # they were laid out for one image


def followers(stage: nn.Module, given: Tensor) -> tuple[Any, Followers]:
    """Return what a stage makes of an activation, and the names of convolutions and of the activations that are all
    that is seen to become of their outputs."""
    made: dict[int, tuple[str, Tensor, int]] = {}  # the tensor is kept, so that its id is not given out again
    runs: Counter[str] = Counter()
    pairs: list[tuple[str, str]] = []
    hooks = []

    def after_convolution(name: str, output: Tensor) -> None:
        runs[name] += 1
        made[id(output)] = (name, output, output._version)

    def before_activation(name: str, inputs: tuple[Tensor, ...]) -> None:
        runs[name] += 1
        if inputs and id(inputs[0]) in made:
            convolution, _, version = made[id(inputs[0])]
            if version == inputs[0]._version:  # nothing was done to it in place
                pairs.append((convolution, name))

    for name, module in stage.named_modules():
        if name and type(module) is nn.Conv2d and _is_plain(module):
            hooks.append(module.register_forward_hook(lambda m, x, y, name=name: after_convolution(name, y)))
        elif name and type(module) in _ACTIVATIONS and _is_bare(module):
            hooks.append(module.register_forward_pre_hook(lambda m, x, name=name: before_activation(name, x)))
    try:
        found = stage(given.clone())  # a stage may work in place
    finally:
        for hook in hooks:
            hook.remove()
    feeds = Counter(convolution for convolution, _ in pairs)
    return found, [pair for pair in pairs if runs[pair[0]] == runs[pair[1]] == feeds[pair[0]] == 1]


def _is_plain(convolution: nn.Conv2d) -> bool:
    """Return whether it does what oneDNN does, with weights that are its own."""
    has_weights = "weight" in dict(convolution.named_parameters(recurse=False))
    pads_zeros = convolution.padding_mode == "zeros" and not isinstance(convolution.padding, str)
    return _is_bare(convolution) and has_weights and pads_zeros and not hasattr(convolution, "parametrizations")


def _is_bare(module: nn.Module) -> bool:
    """Return whether nobody has put anything on it: hooks, or another forward."""
    return not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _put(stage: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(stage.get_submodule(parent), last, module)
