"""Kernel gradients of depthwise convolutions: torch's own sums, where they are meant to be, and no traces."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from tests.training.tiny import assert_equal
from toolkit.backbones.catalog import build_backbone
from toolkit.training import depthwise
from toolkit.training.depthwise import kernel_gradient, quick_depthwise


def convolution(channels: int = 6, kernel: int | tuple[int, int] = 5, **settings: object) -> nn.Conv2d:
    torch.manual_seed(0)
    given = {"padding": 2, "groups": channels, **settings}
    return nn.Conv2d(channels, channels, kernel, **given)


def maps(side: tuple[int, int], n: int = 3, channels: int = 6, dtype: torch.dtype = torch.float32) -> Tensor:
    values = torch.randn(n, channels, *side, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return values.contiguous(memory_format=torch.channels_last).requires_grad_()


def gradients(layer: nn.Conv2d, input: Tensor) -> list[Tensor]:
    made = layer(input)
    above = torch.randn(made.shape, generator=torch.Generator().manual_seed(2), dtype=made.dtype)
    wanted = [input, *layer.parameters()]
    return [made.detach(), *torch.autograd.grad(made, [one for one in wanted if one.requires_grad], above)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("side", "kernel", "padding"),
    [((7, 7), 5, 2), ((3, 9), 7, 3), ((9, 8), (5, 7), (2, 3)), ((8, 8), 5, 0), ((6, 6), 6, (3, 2)), ((1, 1), 5, 2)],
)
def test_the_gradient_is_torchs(side, kernel, padding, dtype) -> None:
    layer = convolution(kernel=kernel, padding=padding, bias=False).to(dtype)
    input = maps(side, dtype=dtype)
    made = layer(input)
    above = torch.randn(made.shape, generator=torch.Generator().manual_seed(2), dtype=dtype)
    (wanted,) = torch.autograd.grad(made, layer.weight, above)
    found = kernel_gradient(input.detach(), above, layer.padding)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("side", [(3, 3), (7, 7), (14, 5)])
def test_a_layer_gives_the_same_numbers_and_gradients(side, bias) -> None:
    layer = convolution(bias=bias)
    input = maps(side)
    wanted = gradients(layer, input)
    with quick_depthwise([nn.Sequential(layer)]) as count, watched() as asked:
        found = gradients(layer, input)
    assert count == 1 and len(asked) == 1
    assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)


def watched():
    """Note the calls of kernel_gradient."""
    asked: list[torch.Size] = []

    def noting(input: Tensor, *rest: object) -> Tensor:
        asked.append(input.shape)
        return kernel_gradient(input, *rest)  # type: ignore[arg-type]

    class _Watch:
        def __enter__(self) -> list[torch.Size]:
            self.patch = patch.object(depthwise, "kernel_gradient", noting)
            self.patch.start()
            return asked

        def __exit__(self, *_: object) -> None:
            self.patch.stop()

    return _Watch()


@pytest.mark.parametrize(
    "layer",
    [
        convolution(kernel=3, padding=1),
        convolution(kernel=(5, 3), padding=(2, 1)),
        convolution(stride=2),
        convolution(dilation=2),
        convolution(groups=3),
        convolution(groups=1),
        convolution(padding="same"),
        convolution(padding_mode="circular"),
        nn.Conv2d(6, 12, 5, groups=6),
        nn.Linear(3, 3),
    ],
    ids=["small", "flat", "stride", "dilation", "groups", "dense", "same", "circular", "wider", "linear"],
)
def test_others_are_left_alone(layer) -> None:
    with quick_depthwise([layer]) as count:
        assert count == 0 and "_conv_forward" not in vars(layer)


@pytest.mark.parametrize(
    ("side", "n", "dtype"),
    [((2, 7), 3, torch.float32), ((15, 7), 3, torch.float32), ((7, 7), 0, torch.float32), ((7, 7), 3, torch.float64)],
    ids=["smaller", "larger", "empty", "double"],
)
def test_other_batches_are_computed_as_ever(side, n, dtype) -> None:
    layer = convolution().to(dtype)
    input = maps(side, n, dtype=dtype)
    wanted = gradients(layer, input)
    with quick_depthwise([layer]), watched() as asked:
        found = gradients(layer, input)
    assert not asked and all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("n", [1, 8, 9, 20])
def test_any_number_of_images(n) -> None:
    layer, input = convolution(bias=False), maps((4, 6), n)
    wanted = gradients(layer, input)
    with quick_depthwise([layer]), watched() as asked:
        found = gradients(layer, input)
    assert asked == [input.shape]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)


def test_without_onednn_torch_computes() -> None:
    layer = convolution()
    with torch.backends.mkldnn.flags(enabled=False), quick_depthwise([layer]), watched() as asked:
        layer(maps((7, 7))).sum().backward()
    assert not asked and layer.weight.grad is not None


def test_a_layer_under_two_roots_is_changed_once_and_an_error_passes() -> None:
    layer = convolution()
    with pytest.raises(KeyError, match="own"), quick_depthwise([nn.Sequential(layer), layer]) as count:
        assert count == 1
        raise KeyError("own")
    assert "_conv_forward" not in vars(layer)


def test_padding_is_that_of_the_moment_and_other_devices_are_asked_nothing() -> None:
    layer = convolution()
    with quick_depthwise([layer]):
        layer.padding = (0, 0)
        assert layer(maps((7, 7))).shape == (3, 6, 3, 3)
        assert layer.to("meta")(torch.empty(3, 6, 7, 7, device="meta")).shape == (3, 6, 3, 3)


def test_in_half_precision_torch_computes() -> None:
    layer = convolution()
    with quick_depthwise([layer]), watched() as asked, torch.autocast("cpu", torch.bfloat16):
        layer(maps((7, 7))).sum().backward()
    assert not asked and layer.weight.grad is not None


def test_what_needs_no_gradient_gets_none() -> None:
    layer = convolution()
    layer.weight.requires_grad_(False)
    with quick_depthwise([layer]), watched() as asked:
        found = gradients(layer, maps((7, 7)))
        assert not asked and len(found) == 3
        with torch.inference_mode():
            assert torch.equal(layer(maps((7, 7)).detach()), found[0])


def test_nothing_is_left_behind_even_after_an_error() -> None:
    layer = convolution()
    before = layer.state_dict()
    with pytest.raises(RuntimeError, match="stop"), quick_depthwise([layer]), quick_depthwise([layer]) as again:
        assert again == 0, "it is changed once"
        raise RuntimeError("stop")
    assert "_conv_forward" not in vars(layer)
    assert_equal(layer.state_dict(), before)


def test_the_default_backbone_has_the_layers_that_it_is_for() -> None:
    stages = build_backbone("efficientnet_lite0", pretrained=False).stages
    with quick_depthwise(stages[5:]) as tail:
        assert tail == 3
    with quick_depthwise(stages) as all_of_them:
        assert all_of_them == 7
