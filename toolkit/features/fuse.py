"""Convolutions that do what follows them as well: an activation, or the sum with a shortcut and its activation."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from toolkit.features.fold import agrees

VERSION = 1  # of what is fused; another one may give other last bits


class Activation(NamedTuple):
    """An activation by the name, the numbers and the variant that oneDNN knows it by."""

    name: str = "none"
    numbers: tuple[float, ...] = ()
    variant: str = ""


NONE, RELU = Activation(), Activation("relu")
_MODULES: dict[type[nn.Module], Callable[[Any], Activation]] = {
    nn.ReLU: lambda module: RELU,
    nn.ReLU6: lambda module: Activation("hardtanh", (0.0, 6.0)),
    nn.Hardtanh: lambda module: Activation("hardtanh", (module.min_val, module.max_val)),
    nn.LeakyReLU: lambda module: Activation("leaky_relu", (module.negative_slope,)),
    nn.SiLU: lambda module: Activation("swish"),
    nn.Hardswish: lambda module: Activation("hardswish"),
    nn.GELU: lambda module: Activation("gelu", (), module.approximate),
}
_OPERATORS = ("_convolution_pointwise", "_reorder_convolution_weight")
_RELUS = {F.relu, torch.relu, torch.relu_, "relu", "relu_"}  # functions, and methods of a tensor by name
_SUMS_IN_PLACE = {operator.iadd, "add_"}
_SUMS = {operator.add, torch.add, "add", *_SUMS_IN_PLACE}


class FusedConvolution(nn.Module):
    """A convolution of (N, C, H, W) on the CPU with what follows it, in one pass over memory; it gives no gradients.

    Its kernels are laid out as oneDNN wants them for the first input that it meets; with later ones of other sizes it
    gives the same numbers, maybe in more time.
    """

    def __init__(self, convolution: nn.Conv2d, activation: Activation) -> None:
        super().__init__()
        self.convolution = convolution
        self.activation = activation
        self._kernels: Tensor | None = None

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Return activation(convolution(x)), or activation(convolution(x) + other)."""
        own, (name, numbers, variant) = self.convolution, self.activation
        how = (own.padding, own.stride, own.dilation, own.groups)
        if self._kernels is None:
            self._kernels = torch.ops.mkldnn._reorder_convolution_weight(own.weight.detach(), *how, x.shape)
        made: Tensor
        if other is None:
            does = (name, numbers, variant)
            made = torch.ops.mkldnn._convolution_pointwise(x, self._kernels, own.bias, *how, *does)
        else:
            sums = ("add", 1.0, *((None, [], None) if name == "none" else (name, numbers, variant)))
            made = torch.ops.mkldnn._convolution_pointwise(x, other, self._kernels, own.bias, *how, *sums)
        return made

    def forget_kernels(self) -> None:
        """Lay the kernels out anew at the next call: for another size, or in another number format."""
        self._kernels = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kernels": None}  # oneDNN's layouts can be neither copied nor saved


def fused_copies(stages: nn.ModuleList, activations: Sequence[Tensor]) -> nn.ModuleList:
    """Return stages in eval mode in which convolutions do what follows them; what is not fused is shared.

    activations: float32 on the CPU, what went into each stage and came out of the last, of a few images. Most of what
    compiling would win on a CPU is won like this without a compiler, in a tenth of a second: EfficientNet-Lite0 at 224
    px in float32 takes 262 ms of one core for 16 images, 226 ms like this and 220 ms compiled (torch 2.15, AVX-512; 16
    s of compiling). A stage that torch.fx cannot follow, or that then gives other numbers beyond rounding, stays what
    it was.
    """
    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
        return nn.ModuleList(_fused(stage, *activations[i : i + 2]) for i, stage in enumerate(stages))


def can_fuse(dtype: torch.dtype) -> bool:
    """Return whether this torch has oneDNN's convolutions for a number format, on this CPU."""
    if not torch._C._has_mkldnn or not all(hasattr(torch.ops.mkldnn, name) for name in _OPERATORS):
        return False
    supports = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    return dtype == torch.float32 or (dtype in supports and bool(getattr(torch.ops.mkldnn, supports[dtype])()))


def _fused(stage: nn.Module, given: Tensor, expected: Tensor) -> nn.Module:
    if not any(type(module) is nn.Conv2d for module in stage.modules()):
        return stage
    try:
        fused = _Fuser(stage).fused()
    except Exception:  # a forward that fx cannot follow may raise anything
        return stage
    if fused is None or not agrees(fused, given, expected):
        return stage
    for module in fused.modules():
        if isinstance(module, FusedConvolution):
            module.forget_kernels()
    return fused


class _Tracer(fx.Tracer):
    """Goes into modules that have others inside, and takes the others whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(True for _ in m.children()) or super().is_leaf_module(m, module_qualified_name)


class _Fuser:
    """Rewrites the graph of a stage's operations."""

    def __init__(self, stage: nn.Module) -> None:
        self.graph = _Tracer().trace(stage)
        self.modules: dict[str, Any] = {name: module for name, module in stage.named_modules() if name}
        self.tensors = dict(stage.named_parameters()) | dict(stage.named_buffers())
        self.count = 0

    def fused(self) -> nn.Module | None:
        """Return the stage with what could be fused; None if that is nothing."""
        for node in self.graph.nodes:
            if type(self._module(node)) is nn.Identity:
                node.replace_all_uses_with(node.args[0])
                self.graph.erase_node(node)
        for node in self.graph.nodes:
            if self._is_plain_convolution(node):
                self._fuse(node)
        return fx.GraphModule({**self.modules, **self.tensors}, self.graph).eval() if self.count else None

    def _fuse(self, convolution: fx.Node) -> None:
        other = self._added_to(convolution)
        chain = [convolution] if other is None else [convolution, *convolution.users]  # what becomes one
        follower = _only_user(chain[-1])
        activation = None if follower is None else self._activation(follower)
        if follower is not None and activation is not None:
            chain.append(follower)
        if len(chain) == 1:
            return
        name = f"fused_{self.count}"
        self.count += 1
        self.modules[name] = FusedConvolution(self._module(convolution), activation or NONE)
        # What is added may have been made after the convolution.
        with self.graph.inserting_after(chain[0 if other is None else 1]):
            inputs = (convolution.args[0],) if other is None else (convolution.args[0], other)
            chain[-1].replace_all_uses_with(self.graph.call_module(name, inputs))
        for node in reversed(chain):
            self.graph.erase_node(node)

    def _added_to(self, convolution: fx.Node) -> fx.Node | None:
        """Return what the output of a convolution is added to, if that is all that is done with it."""
        user = _only_user(convolution)
        if user is None or user.target not in _SUMS or len(user.args) != 2 or user.kwargs:
            return None
        left, right = user.args
        other = right if left is convolution else left
        changed = left if user.target in _SUMS_IN_PLACE else convolution
        return other if isinstance(other, fx.Node) and other is not convolution and changed is convolution else None

    def _activation(self, node: fx.Node) -> Activation | None:
        if node.target in _RELUS and node.op != "call_module":
            return RELU
        module = self._module(node)
        return _MODULES[type(module)](module) if type(module) in _MODULES else None

    def _is_plain_convolution(self, node: fx.Node) -> bool:
        module = self._module(node)
        return (
            type(module) is nn.Conv2d
            and not isinstance(module.padding, str)
            and module.padding_mode == "zeros"
            and not (module._forward_hooks or module._forward_pre_hooks or hasattr(module, "parametrizations"))
        )

    def _module(self, node: fx.Node) -> Any:
        """Return the module that a node calls with one tensor; None if it does anything else."""
        calls_one = node.op == "call_module" and len(node.args) == 1 and not node.kwargs
        return self.modules[str(node.target)] if calls_one else None


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None
