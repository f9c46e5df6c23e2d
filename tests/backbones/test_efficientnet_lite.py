"""EfficientNet-Lite against timm's: the same names, the same bits, gradients included, and random weights alike."""

from __future__ import annotations

import subprocess
import sys

import pytest
import timm
import torch

from toolkit.backbones.efficientnet_lite import SCALES, EfficientNetLite
from toolkit.backbones.embedded_source import PACKAGES


@pytest.mark.parametrize("name", sorted(SCALES))
def test_it_is_timms_to_the_bit(name: str) -> None:
    torch.manual_seed(0)
    theirs, ours = timm.create_model(f"tf_{name}"), EfficientNetLite(SCALES[name])
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert sum(p.numel() for p in ours.parameters()) == PACKAGES[name].n_parameters
    ours.load_state_dict(theirs.state_dict())
    for size in ((96, 96), (97, 65)):  # odd sizes are padded otherwise
        images = torch.randn(2, 3, *size)
        with torch.no_grad():
            assert torch.equal(ours.eval()(images), theirs.eval()(images))
    images = torch.randn(3, 3, 64, 64)
    for network in (ours.train(), theirs.train()):
        network(images).square().mean().backward()
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    assert all(torch.equal(one.grad, two.grad) for one, two in pairs)


def test_random_weights_are_spread_as_timms_are() -> None:
    torch.manual_seed(0)
    theirs, ours = timm.create_model("tf_efficientnet_lite0"), EfficientNetLite(SCALES["efficientnet_lite0"])
    for (name, one), two in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if one.ndim > 1:
            assert float(one.detach().std()) == pytest.approx(float(two.detach().std()), rel=0.2), name
        else:
            assert torch.equal(one, two), name


def test_the_default_backbone_needs_neither_timm_nor_torchvision() -> None:
    code = (
        "import sys; from toolkit import build_backbone; build_backbone('efficientnet_lite0');"
        "print([name for name in ('timm', 'torchvision', 'torch._dynamo') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_trace_pads_other_sizes_as_they_need() -> None:
    torch.manual_seed(0)
    network = EfficientNetLite(SCALES["efficientnet_lite0"]).eval()
    with torch.no_grad():
        traced = torch.jit.trace(network, torch.randn(1, 3, 64, 64))
        images = torch.randn(2, 3, 97, 80)
        torch.testing.assert_close(traced(images), network(images))
