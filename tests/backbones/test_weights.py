"""Weights go into the right network or nowhere, and nothing that is loaded runs code."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from toolkit.backbones.catalog import build_backbone
from toolkit.backbones.weights import load_state, read_state, state_sha256
from toolkit.errors import WeightsError
from toolkit.storage import file_sha256


class Tiny(nn.Module):
    """A network with a BatchNorm and a last Linear of 3 classes."""

    def __init__(self, n_classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, n_classes)


def state(n_classes: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(5)
    return Tiny(n_classes).state_dict()


def load(given: dict[str, Tensor]) -> tuple[Tiny, bool]:
    model = Tiny()
    return model, load_state(model, given, model.fc, "file.pth")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s},
        lambda s: {"model_state_dict": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
        lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}},
    ],
)
def test_wrappers_and_prefixes_come_off(tmp_path: Path, wrap: Any) -> None:
    torch.save(wrap(state()), tmp_path / "w.pth")
    read = read_state(tmp_path / "w.pth")
    assert read.keys() == state().keys()
    model, has_head = load(read)
    assert has_head
    assert all(torch.equal(value, state()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_safetensors_under_any_suffix(tmp_path: Path, name: str) -> None:
    save_file(state(), tmp_path / name)
    assert torch.equal(read_state(tmp_path / name)["conv.weight"], state()["conv.weight"])


def test_legacy_torch_format(tmp_path: Path) -> None:
    torch.save(OrderedDict(state()), tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    assert read_state(tmp_path / "w.pth").keys() == state().keys()


def test_half_precision_and_missing_counters_are_taken() -> None:
    given = {k: v.half() if v.is_floating_point() else v for k, v in state().items()}
    del given["norm.num_batches_tracked"]
    model, _ = load(given)
    assert model.conv.weight.dtype == torch.float32
    torch.testing.assert_close(model.conv.weight, state()["conv.weight"], atol=1e-3, rtol=1e-3)


def renamed(given: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {key.replace(old, new): value for key, value in given.items()}


@pytest.mark.parametrize(
    "given",
    [
        state(7),
        {k: v for k, v in state().items() if not k.startswith("fc")},
        renamed(state(7), "fc.", "head."),
        renamed(state(3), "fc.", "fc.1."),
        renamed({**state(7), "fc.0.weight": torch.ones(9, 4), "fc.0.bias": torch.ones(9)}, "fc.w", "fc.2.w"),
    ],
    ids=["other width", "missing", "other name", "in a Sequential", "an MLP"],
)
def test_another_classifier_is_let_go(given: dict[str, Tensor]) -> None:
    model, has_head = load(given)
    assert not has_head
    assert torch.equal(model.conv.weight, state()["conv.weight"])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({k: v for k, v in state().items() if k != "conv.bias"}, "missing conv.bias"),
        ({**state(), "extra.weight": torch.ones(2, 4)}, "unexpected extra.weight"),
        ({**state(7), "other.weight": torch.ones(2, 5)}, "unexpected other.weight"),
        ({**state(), "conv.weight": torch.ones(4, 1, 3, 3)}, r"wrong shape conv.weight \(4, 1, 3, 3\) in place of"),
        ({"a": torch.ones(1)}, r"missing conv.weight, conv.bias, norm.weight … \(6 in all\); unexpected a"),
    ],
)
def test_another_network_is_refused(given: dict[str, Tensor], told: str) -> None:
    with pytest.raises(WeightsError, match=f"file.pth does not fit this backbone: .*{told}"):
        load(given)


class Harmful:
    """Runs code when an unwary reader unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    torch.save({"state_dict": state(), "x": Harmful(harm)}, tmp_path / "w.pth")
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"x": Harmful(harm)}, protocol=2))
    with pytest.raises(WeightsError, match=r"w\.pth: refused, it holds Python objects"):
        read_state(tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"w\.pkl"):
        build_backbone("efficientnet_lite0", weights=tmp_path / "w.pkl")
    assert not harm.exists()
    torch.load(tmp_path / "w.pth", weights_only=False)  # the file is as harmful as it says
    assert harm.exists()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.95])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str, kept: float) -> None:
    file = tmp_path / f"w.{suffix}"
    if suffix == "pth":
        torch.save(state(), file)
    else:
        save_file(state(), file)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(WeightsError, match=rf"w\.{suffix}: damaged, or no checkpoint of tensors"):
        read_state(file)


@pytest.mark.parametrize(
    "start",
    [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"hello", bytes(99)],
    ids=["PNG", "JPEG", "GIF", "text", "zeros"],
)
def test_what_is_no_checkpoint_is_said_without_torchs_advice(tmp_path: Path, start: bytes) -> None:
    (tmp_path / "some.png").write_bytes(start + bytes(range(256)))
    with pytest.raises(
        WeightsError, match=r"some\.png: damaged, or no checkpoint of tensors; safetensors or"
    ) as caught:
        read_state(tmp_path / "some.png")
    assert "weights_only" not in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="there is no weights file"):
        read_state(tmp_path / "absent.pth")
    with pytest.raises(WeightsError, match="there is no weights file"):
        read_state(tmp_path)
    for content, told in (
        ([torch.ones(1)], "found list"),
        ({}, "found dict"),
        ({"a": torch.ones(1), "lr": 0.1}, "found float at 'lr'"),
    ):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(WeightsError, match=told):
            read_state(tmp_path / "w.pth")


def test_state_sha256_sees_every_value_and_the_description() -> None:
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    other.load_state_dict(one.state_dict())
    assert state_sha256([one]) == state_sha256([other])
    assert state_sha256([one]) != state_sha256([one], "relu")
    with torch.no_grad():
        other.bias[1] += 1e-6
    assert state_sha256([one]) != state_sha256([other])


def test_a_backbone_takes_a_file_in_place_of_its_own(tmp_path: Path) -> None:
    own = build_backbone("timm/test_efficientnet", pretrained=False, seed=1)
    import timm

    model = timm.create_model("test_efficientnet", num_classes=10)
    file = tmp_path / "w.safetensors"
    save_file(model.state_dict(), file)
    backbone = build_backbone("timm/test_efficientnet", weights=file)
    assert backbone.weights == "file w.safetensors"
    assert backbone.weights_digest == file_sha256(file)
    assert backbone.classifier is None
    assert own.classifier is not None
    held = torch.cat([p.flatten() for stage in backbone.stages for p in stage.parameters()])
    given = torch.cat([p.flatten() for name, p in model.named_parameters() if not name.startswith("classifier")])
    assert torch.equal(held, given)
    with pytest.raises(WeightsError, match="does not fit this backbone: missing"):
        build_backbone("resnet18", weights=file)
