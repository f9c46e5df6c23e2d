"""How much work a network is: multiplications by stage, counted and not timed, so that they are the same everywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from toolkit.backbones.backbone import Backbone


def stage_operations(backbone: Backbone) -> tuple[int, ...]:
    """Return the multiply-adds that each stage does for one image of the backbone's own size.

    Those of convolutions, linear layers, matrix products and attention, wherever a module calls them; norms and
    activations are left out. One forward of one black image; modes are left as they were. (torch's FlopCounterMode
    counts alike, and imports a compiler first.)
    """
    backbone.stage_shapes()  # refuses, in words, an image that a stage cannot take; makes what is lazy
    modes = [(module, module.training) for stage in backbone.stages for module in stage.modules()]
    tensors = [tensor for stage in backbone.stages for tensor in stage.parameters()]
    like = tensors[0] if tensors else torch.empty(0)
    side = backbone.preprocessing.crop_px
    activation = torch.zeros(1, 3, side, side, device=like.device, dtype=like.dtype)
    counts = []
    try:
        with torch.no_grad():
            for stage in backbone.stages:
                stage.eval()
                with _Counting() as counting:
                    activation = stage(activation)
                counts.append(counting.total)
    finally:
        for module, training in modes:
            module.training = training
    return tuple(counts)


class _Counting(TorchFunctionMode):
    """Adds up the multiply-adds of torch's functions while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_function__(
        self, func: Any, types: Iterable[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        output = func(*args, **named)
        rule = _RULES.get(getattr(func, "__name__", ""))
        if rule is not None:
            self.total += rule([*args, *named.values()], output)
        return output


def _convolution(values: Sequence[Any], output: Tensor) -> int:
    return int(output.numel() * values[1][0].numel())


def _transposed(values: Sequence[Any], output: Tensor) -> int:
    return int(values[0].numel() * values[1][0].numel())


def _linear(values: Sequence[Any], output: Tensor) -> int:
    return int(output.numel() * values[1].shape[-1])


def _product(values: Sequence[Any], output: Tensor) -> int:
    return int(output.numel() * values[0].shape[-1])


def _sum_and_product(values: Sequence[Any], output: Tensor) -> int:
    return int(output.numel() * values[1].shape[-1])


def _scaled_products(values: Sequence[Any], output: Tensor) -> int:
    query, key = values[:2]
    return int(2 * query.numel() * key.shape[-2])


def _attention(values: Sequence[Any], output: tuple[Tensor, ...]) -> int:
    """Of N images with L tokens of D numbers: four projections, and two products of L × L."""
    tokens = values[0]
    width, length = tokens.shape[-1], tokens.numel() // tokens.shape[-1]  # one image: all tokens are its own
    return int(4 * length * width**2 + 2 * length**2 * width)


_RULES: dict[str, Callable[[Sequence[Any], Any], int]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed),
    "linear": _linear,
    **dict.fromkeys(("matmul", "__matmul__", "mm", "bmm"), _product),
    **dict.fromkeys(("addmm", "baddbmm"), _sum_and_product),
    "scaled_dot_product_attention": _scaled_products,
    **dict.fromkeys(("multi_head_attention_forward", "_native_multi_head_attention"), _attention),
}
