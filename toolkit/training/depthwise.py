"""The gradient of a depthwise kernel on small maps, computed as a convolution of its own while a tail trains on a CPU.

oneDNN has no depthwise implementation of the weight gradient of kernels larger than 3 × 3: a general one runs, which
takes four to ten times as long as the forward pass. The sum itself is a correlation of each input map with the map of
the gradient above it, so a forward depthwise convolution computes it, with images × channels for channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST_KERNEL = 5
SMALLEST_MAP, LARGEST_MAP = 3, 14  # rows and columns of the gradient above, which becomes the kernel
IMAGES_AT_A_TIME = 8  # so that their maps stay in the processor's cache


@contextmanager
def quick_depthwise(modules: Iterable[nn.Module]) -> Iterator[int]:
    """Compute, for a while, the kernel gradients of the depthwise convolutions below `modules` in this way; yield how
    many they are.

    It concerns kernels of 5 × 5 or more with stride 1 that are padded with zeros, and of their batches those that are
    float32 on a CPU with maps of 3 × 3 to 14 × 14; all others, and all forwards, are computed as ever. The result is
    that of torch but for the order of the sum. Parameters, buffers and their names stay. Meanwhile the modules are not
    to be copied, pickled, or differentiated twice.
    """
    below = dict.fromkeys(module for root in modules for module in root.modules())
    changed = [module for module in below if _concerned(module)]
    try:
        for convolution in changed:
            convolution._conv_forward = _quick(convolution)  # type: ignore[assignment, method-assign]
        yield len(changed)
    finally:
        for convolution in changed:
            vars(convolution).pop("_conv_forward", None)


def _concerned(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    if not isinstance(module, nn.Conv2d) or type(module)._conv_forward is not nn.Conv2d._conv_forward:
        return False  # no convolution, or somebody's own
    return (
        "_conv_forward" not in vars(module)
        and module.groups == module.in_channels == module.out_channels
        and min(module.kernel_size) >= SMALLEST_KERNEL
        and module.stride == module.dilation == (1, 1)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


def _quick(convolution: nn.Conv2d) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        assert not isinstance(convolution.padding, str)
        padding = (int(convolution.padding[0]), int(convolution.padding[1]))
        if _gains(input, weight, padding):
            made: Tensor = _Depthwise.apply(input, weight, bias, padding)
            return made
        return F.conv2d(input, weight, bias, 1, padding, 1, len(weight))

    return forward


def _gains(input: Tensor, weight: Tensor, padding: tuple[int, int]) -> bool:
    if not (input.device.type == "cpu" and input.dtype == weight.dtype == torch.float32 and input.ndim == 4):
        return False
    if torch.is_autocast_enabled("cpu") or not _has_onednn():
        return False
    sides = [
        size + 2 * margin - kernel + 1
        for size, margin, kernel in zip(input.shape[-2:], padding, weight.shape[-2:], strict=True)
    ]
    return len(input) > 0 and min(sides) >= SMALLEST_MAP and max(sides) <= LARGEST_MAP


def _has_onednn() -> bool:
    """Return whether oneDNN convolves here; where it does not, many channels are convolved one by one."""
    mkldnn: Any = torch.backends.mkldnn
    return bool(mkldnn.is_available() and mkldnn.enabled)


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution of stride 1, (N, C, H, W) with (C, 1, kh, kw), whose kernel gradient is
    `kernel_gradient`'s."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.padding = padding
        return F.conv2d(input, weight, bias, 1, padding, 1, len(weight))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        input, weight = ctx.saved_tensors
        of_input = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            settings = ([1, 1], list(ctx.padding), [1, 1], False, [0, 0], len(weight))
            mask = [True, False, False]
            of_input = torch.ops.aten.convolution_backward(above, input, weight, None, *settings, mask)[0]
        if ctx.needs_input_grad[1]:
            of_weight = kernel_gradient(input, above, ctx.padding)
        if ctx.needs_input_grad[2]:
            of_bias = above.sum(dim=(0, 2, 3))
        return of_input, of_weight, of_bias, None


def kernel_gradient(input: Tensor, above: Tensor, padding: tuple[int, int]) -> Tensor:
    """Return the gradient (C, 1, kh, kw) of the kernel of a depthwise convolution of stride 1.

    input: (N, C, H, W). above: the gradient of the output, (N, C, H + 2·padding − kh + 1, …). At each place of the
    kernel it is the sum over images and positions of the padded input, moved by that place, times `above`.
    """
    found = torch.zeros(0)
    for some, over in zip(*(torch.split(maps, IMAGES_AT_A_TIME) for maps in (input, above)), strict=True):
        n, channels = some.shape[:2]
        sums = F.conv2d(_side_by_side(some)[None], _side_by_side(over)[:, None], None, 1, padding, 1, n * channels)
        part = sums.view(n, channels, *sums.shape[-2:]).sum(dim=0)[:, None]
        found = found + part if len(found) else part
    return found


def _side_by_side(maps: Tensor) -> Tensor:
    """Return (N · C, H, W), the channels last in memory, where a convolution wants them."""
    height, width = maps.shape[-2:]
    return maps.permute(2, 3, 0, 1).reshape(height, width, -1).permute(2, 0, 1)
