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
# Rows and columns of the gradient above, which becomes the kernel. Measured on one core with AVX-512, batches of 8, 32
# and 64, kernels of 5 × 5 and 7 × 7: 1.4 to 10 times as fast from 4 × 4 to 14 × 14, at 2 × 2 and 28 × 28 no faster.
SMALLEST_MAP, LARGEST_MAP = 3, 14


@contextmanager
def quick_depthwise(modules: Iterable[nn.Module]) -> Iterator[int]:
    """Compute, for a while, the kernel gradients of the depthwise convolutions below `modules` in this way; yield how
    many they are.

    It concerns kernels of 5 × 5 or more with stride 1 that are padded with zeros, and of their batches those that are
    float32 on a CPU with maps of 3 × 3 to 14 × 14; all others, and all forwards, are computed as ever. The result is
    that of torch but for the order of the sum. Parameters, buffers and their names stay.
    """
    changed = [module for root in modules for module in root.modules() if _concerned(module)]
    try:
        for convolution in changed:
            rows, columns = (int(margin) for margin in convolution.padding)
            convolution._conv_forward = _quick((rows, columns))  # type: ignore[assignment, method-assign]
        yield len(changed)
    finally:
        for convolution in changed:
            del convolution._conv_forward


def _concerned(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    if not isinstance(module, nn.Conv2d) or type(module)._conv_forward is not nn.Conv2d._conv_forward:
        return False  # somebody's own
    return (
        "_conv_forward" not in vars(module)
        and module.groups == module.in_channels == module.out_channels
        and min(module.kernel_size) >= SMALLEST_KERNEL
        and module.stride == module.dilation == (1, 1)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


def _quick(padding: tuple[int, int]) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows, columns = (
            size + 2 * margin - kernel + 1
            for size, margin, kernel in zip(input.shape[-2:], padding, weight.shape[-2:], strict=True)
        )
        fits = min(rows, columns) >= SMALLEST_MAP and max(rows, columns) <= LARGEST_MAP
        plain = input.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled(input.device.type)
        if fits and plain and input.device.type == "cpu" and input.ndim == 4 and len(input):
            made: Tensor = _Depthwise.apply(input, weight, bias, padding)
            return made
        return F.conv2d(input, weight, bias, 1, padding, 1, len(weight))

    return forward


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution of stride 1 whose kernel gradient is `kernel_gradient`'s."""

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
    n, channels = input.shape[:2]
    sums = F.conv2d(_side_by_side(input)[None], _side_by_side(above)[:, None], None, 1, padding, 1, n * channels)
    return sums.view(n, channels, *sums.shape[-2:]).sum(dim=0)[:, None]


def _side_by_side(maps: Tensor) -> Tensor:
    """Return (N · C, H, W), the channels last in memory, where a convolution wants them."""
    height, width = maps.shape[-2:]
    return maps.permute(2, 3, 0, 1).reshape(height, width, -1).permute(2, 0, 1)
