"""BatchNorm with fixed statistics, computed inside the convolution before it while a tail trains."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from toolkit.features.agree import agrees
from toolkit.features.fold import norms_after_convolutions, rest_of

CHANGE = 0.3  # standard deviation of what every parameter and statistic is changed by, for the comparison


@contextmanager
def folded_norms(stages: nn.ModuleList, first: int, sample: Tensor) -> Iterator[int]:
    """Fold, for a while, the norms of `stages[first:]` into the convolutions that feed them; yield how many.

    A norm in eval mode multiplies each channel by s = γ/σ and adds β − μs, and so does a convolution with the kernel
    W·s and the bias β − μs (and its own bias times s). Both are made anew from the parameters at every forward, and
    gradients reach W, γ and β through them: over a kernel and not over an activation, which takes 15 to 20 % off a
    step. But for rounding in float32 nothing changes. A norm in training mode is computed as ever.

    Which convolution feeds which norm is seen by running `sample`, float (1, 3, H, W), normalised, through copies of
    the stages as they train: dropout acts, norms do not move. A stage is left as it is if its folded copy then gives
    other numbers, with every parameter and statistic changed at random, since they are going to change. The look
    leaves modes, values and the random state as they are, and depends on none of them but the statistics' shapes.
    Parameters, buffers and their names stay; so does the `forward` of every module at the end. Meanwhile the stages
    are not to be copied or pickled.
    """
    changed: list[nn.Module] = []
    try:
        for stage, pairs in zip(stages[first:], _pairs(stages, first, sample), strict=True):
            for convolution, norm in pairs:
                changed += _fold(stage, convolution, norm)
        yield len(changed) // 2
    finally:
        for module in changed:
            del module.forward


def _pairs(stages: nn.ModuleList, first: int, sample: Tensor) -> list[list[tuple[str, str]]]:
    """Return for each stage from `first` on the names in it of convolutions and norms that can be folded."""
    devices = [sample.device] if sample.is_cuda else []
    found: list[list[tuple[str, str]]] = []
    with torch.random.fork_rng(devices), torch.no_grad():
        twins = copy.deepcopy(stages).train()
        for module in twins.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        by_stage, activations = norms_after_convolutions(twins, sample)
        for number in range(first, len(twins)):
            twin, input = twins[number], activations[number]
            pairs = [pair for pair in by_stage[number] if not _is_changed(twin, pair)]
            _change(twin)
            torch.manual_seed(number)
            plain = twin(input.clone())
            for convolution, norm in pairs:
                _fold(twin, convolution, norm)
            torch.manual_seed(number)
            found.append(pairs if agrees(twin, input, plain) else [])
    return found


def _is_changed(stage: nn.Module, pair: tuple[str, str]) -> bool:
    """Return whether somebody has put in another `forward` already."""
    return any("forward" in vars(stage.get_submodule(name)) for name in pair)


def _change(stage: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for tensor in (*stage.parameters(), *stage.buffers()):
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32).to(tensor) * CHANGE
            positive = bool((tensor >= 0).all()) and bool((tensor > 0).any())
            tensor.copy_(tensor * noise.exp() if positive else tensor + noise * (tensor.std(correction=0) + 0.1))


def _fold(stage: nn.Module, convolution: str, norm: str) -> list[nn.Module]:
    """Fold one norm of a stage, and return the two modules whose forward was changed."""
    one, other = stage.get_submodule(convolution), stage.get_submodule(norm)
    assert isinstance(one, nn.Conv2d) and isinstance(other, nn.BatchNorm2d)
    one.forward = _convolving(one, other)  # type: ignore[method-assign, assignment]
    other.forward = _after(other)  # type: ignore[method-assign, assignment]
    return [one, other]


def _convolving(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> Callable[[Tensor], Tensor]:
    plain = type(convolution).forward
    lent = _Lent(convolution)

    def forward(input: Tensor) -> Tensor:
        if norm.training:
            return plain(convolution, input)
        assert norm.running_mean is not None and norm.running_var is not None
        scale = (norm.running_var + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight
        shift = -norm.running_mean if convolution.bias is None else convolution.bias - norm.running_mean
        bias = shift * scale
        if norm.bias is not None:
            bias = bias + norm.bias
        return lent(input, convolution.weight * scale.view(-1, 1, 1, 1), bias)

    return forward


class _Lent:
    """A convolution's own forward, padding and all, with another kernel and bias."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        self.convolution = convolution

    def __call__(self, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        own = self.convolution
        kept = dict(own._parameters)
        own._parameters["weight"], own._parameters["bias"] = weight, bias  # type: ignore[assignment]
        try:
            made: Tensor = type(own).forward(own, input)
        finally:
            own._parameters.update(kept)
        return made


def _after(norm: nn.BatchNorm2d) -> Callable[[Tensor], Tensor]:
    plain, rest = type(norm).forward, rest_of(norm)

    def forward(input: Tensor) -> Tensor:
        made: Tensor = plain(norm, input) if norm.training else rest(input)
        return made

    return forward
