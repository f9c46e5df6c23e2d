"""Every member of every family can be cut: structure alone, on the meta device, where giants cost nothing."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torchvision.models import regnet

from toolkit.backbones import names, timm_source, torchvision_source
from toolkit.errors import SettingError


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(names.FAMILY_OF))
def test_every_torchvision_member_on_the_meta_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    widths = regnet.BlockParams.from_init_params

    def widths_on_the_cpu(*args: Any, **kwargs: Any) -> Any:  # RegNet's builder reads numbers out of tensors
        with torch.device("cpu"):
            return widths(*args, **kwargs)

    monkeypatch.setattr(regnet.BlockParams, "from_init_params", widths_on_the_cpu)
    with torch.device("meta"):
        found = torchvision_source.network(name, None, False)
    found.model.eval()
    parts = found.split(found.model)
    size = found.preprocessing.crop_px
    with torch.no_grad():
        activation = torch.empty(1, 3, size, size, device="meta")
        expected = found.model(activation)
        for stage in parts.stages:
            activation = stage(activation)
        assert parts.classifier is not None
        assert parts.classifier(activation).shape == expected.shape == (1, 1000)
    assert len(parts.stages) == names.n_stages(name)
    held = {id(p) for module in (*parts.stages, parts.classifier) for p in module.parameters()}
    assert held == {id(p) for p in found.model.parameters()}
    assert sum(p.numel() for p in found.model.parameters()) == torchvision_source.n_parameters(name)


@pytest.mark.slow
@pytest.mark.parametrize("module", sorted(names.TIMM))
def test_every_timm_member_on_the_meta_device(module: str) -> None:
    refused = []
    for plain in timm.list_models(module=module):
        try:
            with torch.device("meta"):
                found = timm_source.network(f"timm/{plain}", None, False)
        except SettingError:
            refused.append(plain)
            continue
        found.model.eval()
        parts = found.split(found.model)
        size = found.preprocessing.crop_px
        with torch.no_grad():
            activation = torch.empty(1, 3, size, size, device="meta")
            expected = found.model(activation)
            for stage in parts.stages:
                activation = stage(activation)
            output = activation if parts.classifier is None else parts.classifier(activation)
        assert activation.ndim == 2, plain
        assert output.shape == expected.shape, plain
        held = {id(p) for part in (*parts.stages, parts.classifier) if part is not None for p in part.parameters()}
        assert held == {id(p) for p in found.model.parameters()}, plain
    assert len(refused) < 10, refused
