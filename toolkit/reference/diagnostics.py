"""Diagnostics: what happens inside a net while it trains, and whether its gradients are right."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

SATURATED = (
    0.97  # of |tanh|: the slope 1 − tanh² is then below 0.06; of a sigmoid |2σ − 1|, which is tanh of half the sum
)
# Which modules can saturate, and which can die, by the names that torch and this package share.
RANGES = {"Tanh": (-1.0, 1.0), "Sigmoid": (0.0, 1.0), "Hardtanh": (-1.0, 1.0)}
DYING = ("ReLU", "ReLU6")


@dataclass(frozen=True)
class LayerStatistics:
    """What one layer gave in one forward pass, and what came back.

    name: the module's, with `#2` and so on where it ran more than once. mean, std: of all outputs. saturated: the share
    of outputs of a tanh or sigmoid where its slope is nearly 0. dead: the share of a ReLU's units (columns of (N, D),
    channels of (N, C, …)) that were 0 for every input of the batch. grad_mean, grad_std: of the loss's gradient at the
    outputs, None until a backward pass. None stands for what a layer does not have.
    """

    name: str
    mean: float
    std: float
    saturated: float | None = None
    dead: float | None = None
    grad_mean: float | None = None
    grad_std: float | None = None


class Watch:
    """Collects LayerStatistics of a net's layers while the `with` block lasts; the net's results stay the same.

    model: any nn.Module. layers: the names of those to watch, by default all modules without children. Layers whose
    result is not one floating-point tensor are left out. A new forward pass of the model starts afresh.
    Raises ValueError for names that are no modules of the net.
    Source: notes: Activation Function (saturation, dead units); Weight Initialization.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> with Watch(net) as watch:
    ...     net(torch.ones(4, 2)).sum().backward()
    >>> [layer.name for layer in watch.statistics()]
    ['0', '1']
    """

    def __init__(self, model: nn.Module, layers: list[str] | None = None) -> None:
        modules = dict(model.named_modules())
        if layers is None:
            layers = [name for name, module in modules.items() if not list(module.children())]
        unknown = [name for name in layers if name not in modules]
        if unknown:
            raise ValueError(f"expected names of the net's modules, got {', '.join(unknown)}")
        self.model = model
        self.modules = {name: modules[name] for name in layers}
        self._found: dict[str, LayerStatistics] = {}
        self._gradients: dict[str, tuple[float, float]] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Watch:
        self._handles.append(self.model.register_forward_pre_hook(self._begin))
        for name, module in self.modules.items():
            self._handles.append(module.register_forward_hook(self._hook(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def statistics(self) -> list[LayerStatistics]:
        """Return the statistics of the last forward pass, in the order in which the layers ran."""
        none = (None, None)
        return [
            LayerStatistics(one.name, one.mean, one.std, one.saturated, one.dead, *self._gradients.get(one.name, none))
            for one in self._found.values()
        ]

    def _begin(self, module: nn.Module, inputs: object) -> None:
        self._found.clear()
        self._gradients.clear()

    def _hook(self, name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if not isinstance(output, Tensor) or not output.is_floating_point() or not output.numel():
                return
            runs = sum(one.split("#")[0] == name for one in self._found)
            label = name if not runs else f"{name}#{runs + 1}"
            self._found[label] = activation_statistics(label, type(module).__name__, output)
            if output.requires_grad:
                keep = self._gradients.__setitem__
                output.register_hook(lambda gradient: keep(label, _mean_std(gradient)))  # type: ignore[no-untyped-call]

        return hook


def activation_statistics(name: str, kind: str, output: Tensor) -> LayerStatistics:
    """Return the statistics of one layer's output (N, …); kind: the name of its class, such as "Tanh" or "ReLU".

    >>> activation_statistics("h", "ReLU", torch.tensor([[0.0, 1.0], [0.0, 3.0]])).dead
    0.5
    """
    output = output.detach()
    saturated = dead = None
    if kind in RANGES:
        low, high = RANGES[kind]
        saturated = float(((output - (low + high) / 2).abs() * 2 / (high - low) > SATURATED).double().mean())
    if kind in DYING:
        axes = [axis for axis in range(output.ndim) if axis != 1] if output.ndim > 1 else [0]
        dead = float((output == 0).double().amin(axes).mean())
    return LayerStatistics(name, *_mean_std(output), saturated, dead)


def update_to_weight_ratio(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    """Return ‖after − before‖ / ‖before‖ by name; about 1e-3 a step is healthy, and inf where all weights were 0.

    before, after: state dicts, or weights by name, around one step (copies: a state dict alone shares its tensors with
    the net). Integer buffers are left out. Raises ValueError if names differ.
    Source: Stanford CS231n, Neural Networks part 3 (ratio of updates); notes: Babysitting the Learning Process.

    >>> update_to_weight_ratio({"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([3.0, 4.5])})
    {'w': 0.1}
    """
    if before.keys() != after.keys():
        raise ValueError(f"expected the same names, got {sorted(before)} and {sorted(after)}")
    ratios = {}
    for name, weight in before.items():
        if weight.is_floating_point():
            change, size = float((after[name] - weight).norm()), float(weight.norm())
            ratios[name] = change / size if size else (math.inf if change else 0.0)
    return ratios


@torch.no_grad()
def numerical_gradient(function: Callable[[Tensor], Tensor], x: Tensor, step: float = 1e-5) -> Tensor:
    """Return (f(x + h eᵢ) − f(x − h eᵢ)) / 2h for every element of x, float64 of the shape of x.

    function: from a tensor like x to a scalar; it runs twice for every element. x is left as it is. In float32 a
    difference this small is mostly rounding, so another dtype than float64, and step ≤ 0, raise ValueError.
    Source: notes: Optimization (gradient); the error falls with h².

    >>> numerical_gradient(lambda x: (x**3).sum(), torch.tensor([1.0, 2.0], dtype=torch.float64)).round(decimals=4)
    tensor([ 3., 12.], dtype=torch.float64)
    """
    if x.dtype != torch.float64:
        raise ValueError(f"expected float64, got {x.dtype}")
    if not step > 0:
        raise ValueError(f"expected step > 0, got {step}")
    point = x.detach().clone(memory_format=torch.contiguous_format)
    flat, gradient = point.view(-1), torch.zeros(x.numel(), dtype=torch.float64)
    for i in range(x.numel()):
        middle = float(flat[i])
        flat[i] = middle + step
        above = float(function(point))
        flat[i] = middle - step
        gradient[i] = (above - float(function(point))) / (2 * step)
        flat[i] = middle
    return gradient.reshape(x.shape)


def gradient_check(function: Callable[[Tensor], Tensor], x: Tensor, step: float = 1e-5) -> float:
    """Return the largest relative error of autograd's gradient of f at x: max |a − n| / max(|a|, |n|, 1e-3).

    n is the numerical gradient. Below 1e-6 the gradient is right; above 1e-2 it is wrong, or f has a kink at x.
    Gradients below 1e-3 are judged by their absolute error. Raises ValueError as `numerical_gradient` does.

    >>> gradient_check(lambda x: (x**3).sum(), torch.tensor([1.0, 2.0], dtype=torch.float64)) < 1e-8
    True
    """
    numerical = numerical_gradient(function, x, step)
    point = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        (analytic,) = torch.autograd.grad(function(point), point)
    scale = torch.maximum(torch.maximum(analytic.abs(), numerical.abs()), torch.tensor(1e-3))
    return float(((analytic - numerical).abs() / scale).amax())


def _mean_std(values: Tensor) -> tuple[float, float]:
    """Return the mean and the standard deviation (divided by the count) of all elements."""
    values = values.detach().double()
    return float(values.mean()), float(values.var(correction=0).sqrt())
