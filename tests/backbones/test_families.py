"""Stages followed by the kept Linear are the network itself, to the bit, in every family."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from toolkit.backbones import catalog, names
from toolkit.backbones.backbone import Backbone
from toolkit.backbones.catalog import build_backbone
from toolkit.backbones.parts import Network, Parts

# name, image size, stages, layout, feature width: the smallest member of each family
SMALLEST = [
    ("efficientnet_lite0", 64, 8, "NCHW", 1280),
    ("resnet18", 64, 5, "NCHW", 512),
    ("resnext50_32x4d", 64, 5, "NCHW", 2048),
    ("wide_resnet50_2", 64, 5, "NCHW", 2048),
    ("vgg11_bn", 64, 6, "NCHW", 4096),
    ("densenet121", 64, 5, "NCHW", 1024),
    ("mobilenet_v2", 64, 8, "NCHW", 1280),
    ("mobilenet_v3_small", 64, 6, "NCHW", 1024),
    ("mobilenet_v3_large", 64, 7, "NCHW", 1280),
    ("efficientnet_b0", 64, 8, "NCHW", 1280),
    ("efficientnet_v2_s", 64, 7, "NCHW", 1280),
    ("convnext_tiny", 64, 5, "NCHW", 768),
    ("regnet_x_400mf", 64, 5, "NCHW", 400),
    ("regnet_y_400mf", 64, 5, "NCHW", 440),
    ("vit_b_32", 64, 6, "NLC", 768),
    ("swin_t", 64, 5, "NHWC", 768),
    ("swin_v2_t", 64, 5, "NHWC", 768),
    ("timm/test_resnet", 64, 5, "NCHW", 96),
    ("timm/resnet18d", 64, 5, "NCHW", 512),
    ("timm/test_efficientnet", 64, 6, "NCHW", 256),
    ("timm/mobilenetv3_small_050", 64, 7, "NCHW", 1024),
    ("timm/test_convnext", 64, 5, "NCHW", 64),
    ("timm/convnext_atto_rms", 64, 5, "NCHW", 320),
    ("timm/test_vit", 160, 6, "NLC", 64),
    ("timm/test_vit2", 160, 6, "NLC", 64),
    ("timm/test_vit3", 160, 6, "NLC", 96),
    ("timm/test_vit4", 160, 6, "NLC", 96),
]

# channels, height and width after each stage at 64 px
SHAPES = {
    "resnet18": ((64, 16, 16), (64, 16, 16), (128, 8, 8), (256, 4, 4), (512,)),
    "densenet121": ((64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2), (1024,)),
    "vgg11_bn": ((64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 2, 2), (4096,)),
    "mobilenet_v3_small": ((16, 16, 16), (24, 8, 8), (40, 4, 4), (48, 4, 4), (96, 2, 2), (1024,)),
    "mobilenet_v2": (
        (16, 32, 32),
        (24, 16, 16),
        (32, 8, 8),
        (64, 4, 4),
        (96, 4, 4),
        (160, 2, 2),
        (320, 2, 2),
        (1280,),
    ),
    "efficientnet_lite0": (
        (16, 32, 32),
        (24, 16, 16),
        (40, 8, 8),
        (80, 4, 4),
        (112, 4, 4),
        (192, 2, 2),
        (320, 2, 2),
        (1280,),
    ),
    "convnext_tiny": ((96, 16, 16), (96, 16, 16), (192, 8, 8), (384, 4, 4), (768,)),
    "swin_t": ((16, 16, 96), (16, 16, 96), (8, 8, 192), (4, 4, 384), (768,)),
    "vit_b_32": ((5, 768), (5, 768), (5, 768), (5, 768), (5, 768), (768,)),
}


@pytest.mark.parametrize(("name", "size", "n_stages", "layout", "width"), SMALLEST, ids=[row[0] for row in SMALLEST])
def test_composition_equals_the_network(
    name: str, size: int, n_stages: int, layout: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nn.init, "trunc_normal_", lambda t, mean=0.0, std=1.0, **_: nn.init.normal_(t, mean, std))
    found = network(name, size)
    parts = assert_equal_composition(found, size)
    assert len(parts.stages) == n_stages
    assert parts.layout == layout
    assert parts.classifier is None or parts.classifier.in_features == width
    if not name.startswith("timm/"):
        assert names.n_stages(name) == n_stages
        assert parts.classifier is not None
        assert parts.classifier.out_features == 1000
    assert any(parameter.requires_grad for parameter in parts.stages[-1].parameters())

    backbone = Backbone(name, parts.stages, found.preprocessing, parts.layout)
    shapes = backbone.stage_shapes(size)
    activation = images(size, n=1)
    with torch.no_grad():
        for stage, shape in zip(parts.stages, shapes, strict=True):
            activation = stage(activation)
            assert activation.shape[1:] == shape
            channels_first = activation if layout == "NCHW" or activation.ndim == 2 else activation.movedim(-1, 1)
            mean = channels_first.flatten(1) if activation.ndim == 2 else channels_first.flatten(2).mean(dim=2)
            torch.testing.assert_close(backbone.pool(activation), mean)
    assert shapes[-1] == (width,)
    if name in SHAPES:
        assert shapes == SHAPES[name]


@pytest.mark.parametrize("name", ["timm/test_vit", "vit_b_32", "swin_t"])
def test_stages_can_be_copied_and_trained(name: str) -> None:
    size = 160 if name == "timm/test_vit" else 32
    backbone = build_backbone(name, pretrained=False, image_size_px=size)
    last_two = nn.Sequential(*copy.deepcopy(backbone.stages[-2:])).train()
    with torch.no_grad():
        activation = images(size)
        for stage in backbone.stages[:-2]:
            activation = stage(activation)
    last_two(activation).square().sum().backward()
    assert all(p.grad is not None for p in last_two.parameters())
    assert all(p.grad is None for stage in backbone.stages for p in stage.parameters())


def test_stage_shapes_leave_the_network_alone() -> None:
    backbone = build_backbone("efficientnet_lite0", pretrained=False, image_size_px=32)
    backbone.stages[3].train()
    backbone.stages[3][0].eval()  # a frozen part within a training one
    modes = [module.training for stage in backbone.stages for module in stage.modules()]
    buffers = [buffer.clone() for stage in backbone.stages for buffer in stage.buffers()]
    backbone.stage_shapes()
    assert modes == [module.training for stage in backbone.stages for module in stage.modules()]
    after = [buffer for stage in backbone.stages for buffer in stage.buffers()]
    assert all(torch.equal(one, other) for one, other in zip(buffers, after, strict=True))


def network(name: str, image_size_px: int | None = None) -> Network:
    """Build the whole network of a name with random weights, in eval mode, nothing in it constant."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        found = catalog._source(name).network(name, image_size_px, False)
        stir(found.model)
    found.model.eval()
    return found


def stir(model: nn.Module) -> None:
    """Replace what initialisation left constant (zero heads, unit norms, running statistics) by random values."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        for parameter in model.parameters():
            if parameter.numel() > 1 and parameter.min() == parameter.max():
                parameter.add_(torch.randn_like(parameter) * 0.1)


def images(image_size_px: int, n: int = 2) -> torch.Tensor:
    """Return the same n random images each time, (n, 3, H, W)."""
    return torch.randn(n, 3, image_size_px, image_size_px, generator=torch.Generator().manual_seed(1))


def assert_equal_composition(found: Network, image_size_px: int) -> Parts:
    """Check that stages and classifier give the network's own output to the bit, and own its own parameters."""
    parts = found.split(found.model)
    batch = images(image_size_px)
    with torch.no_grad():
        expected = found.model(batch.clone())
        activation = batch
        for index, stage in enumerate(parts.stages):
            before = activation.clone()
            after = stage(activation)
            assert torch.equal(before, activation), f"stage {index} changes its input in place"
            activation = after
        assert activation.ndim == 2
        output = activation if parts.classifier is None else parts.classifier(activation)
    assert expected.std() > 1e-6
    assert torch.equal(output, expected)
    assert sorted(parameter_ids(*parts.stages, parts.classifier)) == sorted(parameter_ids(found.model))
    return parts


def parameter_ids(*modules: nn.Module | None) -> list[int]:
    """Return the identities of the modules' parameters, once for each time that one is held."""
    return [id(p) for module in modules if module is not None for p in module.parameters()]
