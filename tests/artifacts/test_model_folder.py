"""The model folder: it gives the same model again, or says why not; it runs no code; equal models, equal bytes."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from toolkit.artifacts.model_folder import description_sha256, load_model, save_model
from toolkit.backbones.backbone import Backbone
from toolkit.backbones.catalog import as_backbone, build_backbone
from toolkit.data.preprocessing import Preprocessing
from toolkit.errors import ArtifactError, SettingError, ToolkitError
from toolkit.heads.linear import LinearHead
from toolkit.plan import FreezeSpec
from toolkit.training.network import TransferNetwork
from toolkit.training.trained import TrainedModel

CLASSES = ("ant", "bee", "cow")


def stages() -> list[nn.Module]:
    torch.manual_seed(3)
    first = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU())
    return [first, nn.Sequential(nn.Conv2d(6, 8, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())]


def model_of(backbone: Backbone, widths: tuple[int, ...], taps: tuple[int, ...]) -> TrainedModel:
    head = LinearHead(widths, len(CLASSES))
    with torch.no_grad():
        head.linear.weight.copy_(torch.randn(head.linear.weight.shape, generator=torch.Generator().manual_seed(1)))
        head.linear.bias.copy_(torch.tensor([0.1, -0.2, 0.3]))
    network = TransferNetwork(backbone, head, FreezeSpec.at_cut(len(backbone), len(backbone) - 1), taps=taps).eval()
    about = (CLASSES, backbone.name, backbone.weights, backbone.layout, backbone.preprocessing, 1_000_000)
    return TrainedModel(network, *about)


def own_model() -> TrainedModel:
    backbone = as_backbone(stages(), preprocessing=Preprocessing(40, 32))
    return model_of(backbone, (6, 8), (0, 1))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a model with a named backbone."""
    backbone = build_backbone("efficientnet_lite0", image_size_px=32)
    folder = tmp_path_factory.mktemp("pristine") / "model"
    save_model(model_of(backbone, (backbone.feature_dim,), (len(backbone) - 1,)), folder)
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """Return a copy that a test may spoil."""
    return Path(shutil.copytree(pristine, tmp_path / "model"))


def edit(folder: Path, change: Callable[[dict[str, Any]], Any], *, hide: bool = False) -> None:
    """Change the description; hide: make its digest right again, as somebody who means it would."""
    file = folder / "model.json"
    description = json.loads(file.read_text())
    change(description)
    if hide:
        description["description_sha256"] = description_sha256(description)
    file.write_text(json.dumps(description))


def test_a_model_comes_back_to_the_bit(pristine: Path) -> None:
    loaded, tensors = load_model(pristine), load_file(pristine / "model.safetensors")
    assert loaded.classes == CLASSES and loaded.backbone == "efficientnet_lite0" and loaded.max_pixels == 1_000_000
    assert loaded.preprocessing == build_backbone("efficientnet_lite0", image_size_px=32).preprocessing
    state = loaded.network.state_dict()
    assert state.keys() == tensors.keys() and all(torch.equal(state[key], tensors[key]) for key in state)
    assert not loaded.network.training
    assert str(loaded) == "efficientnet_lite0 at 32 px for 3 classes: ant, bee, cow"


def test_a_named_backbone_with_preprocessing_of_ones_own_comes_back(tmp_path: Path) -> None:
    prepared = Preprocessing(40, 32, mean=(0.1, 0.2, 0.3), std=(0.9, 0.8, 0.7))
    backbone = as_backbone("efficientnet_lite0", preprocessing=prepared)
    model = model_of(backbone, (backbone.feature_dim,), (len(backbone) - 1,))
    save_model(model, tmp_path)
    assert load_model(tmp_path).preprocessing == prepared
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(load_model(tmp_path).logits(pixels), model.logits(pixels))


def test_a_run_folder_is_as_good(folder: Path) -> None:
    assert load_model(folder.parent).classes == load_model(str(folder)).classes == CLASSES


def test_equal_models_give_equal_bytes(pristine: Path, tmp_path: Path) -> None:
    save_model(load_model(pristine), tmp_path / "again")
    for name in ("model.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (pristine / name).read_bytes()
    assert sorted(file.name for file in (tmp_path / "again").iterdir()) == ["model.json", "model.safetensors"]


def test_the_description_says_what_is_needed(pristine: Path) -> None:
    description = json.loads((pristine / "model.json").read_text())
    assert description["classes"] == list(CLASSES)
    assert description["backbone"] == {"name": "efficientnet_lite0", "weights": "embedded", "layout": "NCHW"}
    assert description["preprocessing"]["crop_px"] == 32
    assert description["decoding"]["max_pixels"] == 1_000_000 and len(description["decoding"]) > 1
    assert set(description["versions"]) >= {"torch", "timm", "pillow"} and all(description["versions"].values())
    assert description["sha256"] == hashlib.sha256((pristine / "model.safetensors").read_bytes()).hexdigest()
    golden = torch.tensor(description["golden_logits"])
    assert golden.shape == (2, 3) and not torch.allclose(golden[0], golden[1])


def test_a_model_whose_images_were_decoded_as_version_2_did_is_loaded(folder: Path) -> None:
    def older(description: dict[str, Any]) -> None:
        description["decoding"] = {
            "version": 2,
            "formats": ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "AVIF", "JPEG2000"],
            "format_from": "content",
            "frame": "first",
            "orientation": "exif",
            "transparency": "composited on white",
            "grey_16_bit": "value / 257, rounded",
            "grey_32_bit_and_float": "least of 0..1 (floats only), 0..255, 0..65535 that holds all values, "
            "else min..max",
            "icc_profile": "ignored",
            "jpeg": "at 1/2, 1/4 or 1/8 of its size where both sides stay at least as long as is asked for",
            "max_pixels": 1_000_000,
        }

    edit(folder, older, hide=True)
    assert load_model(folder).max_pixels == 1_000_000
    edit(folder, lambda d: d["decoding"].update(version=1), hide=True)
    with pytest.raises(ArtifactError, match="decoded in another way"):
        load_model(folder)


def test_nothing_is_unpickled(pristine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    def refuse(*arguments: object, **more: object) -> None:
        raise AssertionError("something was unpickled")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    load_model(pristine)


def test_a_pickle_in_the_place_of_the_weights_is_never_opened(folder: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"a": Trap()}, folder / "model.safetensors")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    edit(folder, lambda d: d.update(sha256=digest), hide=True)
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_model(folder)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("place", [0.0, 0.001, 0.5, 0.999999])
def test_a_flipped_bit_in_the_weights_is_noticed(folder: Path, place: float) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[int(place * len(content))] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ArtifactError, match="its digest differs"):
        load_model(folder)


def test_a_description_that_is_nested_without_end_is_one_clear_error(folder: Path) -> None:
    (folder / "model.json").write_text("[" * 100_000)
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_model(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["classes"].pop(),
        lambda d: d["classes"].reverse(),
        lambda d: d["preprocessing"].update(resize_px=99),
        lambda d: d["preprocessing"].update(interpolation="nearest"),
        lambda d: d["decoding"].update(max_pixels=3),
        lambda d: d.pop("description_sha256"),
        lambda d: d.update(extra=1),
    ],
)
def test_an_edited_description_is_noticed(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    edit(folder, change)
    with pytest.raises(ArtifactError, match=r"model.json is not what was saved"):
        load_model(folder)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda d: d["classes"].pop(), "does not fit its description"),
        (lambda d: d["decoding"].update(orientation="ignored"), "decoded in another way"),
        (lambda d: d["preprocessing"].update(mean=[0.485, 0.456, 0.406]), "no longer gives the scores"),
        (lambda d: d["preprocessing"].update(std=[0.229, 0.224, 0.225]), "no longer gives the scores"),
        (lambda d: d["preprocessing"].update(crop_px=36, resize_px=40), "no longer gives the scores"),
        (lambda d: d["preprocessing"].update(crop_px=0), "crop_px"),
        (lambda d: d["preprocessing"].update(alien=0), "is damaged"),
        (lambda d: d["golden_logits"].pop(), "no longer gives the scores"),
        (lambda d: d.update(golden_logits=[[float("nan")] * 3] * 2), "no longer gives the scores"),
        (lambda d: d.update(golden_logits="none"), "is damaged"),
        (lambda d: d.pop("golden_logits"), "is damaged"),
        (lambda d: d.pop("sha256"), "is damaged"),
        (lambda d: d.update(taps=[99]), "taps"),
        (lambda d: d["stages"].pop(), "rules expected"),
        (lambda d: d["head"].update(widths=[7]), "does not fit its description"),
        (lambda d: d["backbone"].update(name="mobilenet_v2"), "rules expected|taps|does not fit"),
        (lambda d: d["backbone"].update(name="nothing_like_it"), "unknown backbone"),
        (lambda d: d["decoding"].update(max_pixels=float("inf")), "is damaged"),
        (lambda d: d["backbone"].clear(), "is damaged"),
        (lambda d: d.update(backbone=None), "is damaged"),
    ],
)
def test_a_description_that_lies_is_caught_by_the_model(
    folder: Path, change: Callable[[dict[str, Any]], Any], wanted: str
) -> None:
    edit(folder, change, hide=True)
    with pytest.raises(ToolkitError, match=wanted) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_a_changed_weight_is_caught_by_the_golden_scores(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["head.linear.bias"][0] += 0.5
    save_file(tensors, folder / "model.safetensors")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    edit(folder, lambda d: d.update(sha256=digest), hide=True)
    with pytest.raises(ArtifactError, match="no longer gives the scores that it gave when it was saved"):
        load_model(folder)


def test_a_missing_tensor_is_named(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["head.linear.bias"]
    save_file(tensors, folder / "model.safetensors")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    edit(folder, lambda d: d.update(sha256=digest), hide=True)
    with pytest.raises(ArtifactError, match=r"does not fit its description.*head\.linear\.bias"):
        load_model(folder)


def test_newer_libraries_are_named_where_the_scores_differ(folder: Path) -> None:
    def older(description: dict[str, Any]) -> None:
        description["versions"]["torch"] = "1.0"
        description["golden_logits"][0][0] += 1

    edit(folder, older, hide=True)
    with pytest.raises(ArtifactError, match=r"since then: torch 1\.0 → "):
        load_model(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", '"x"', "null", "{}", '{"format": 2}', "\x00", "NaN"])
def test_a_description_that_is_none(folder: Path, content: str) -> None:
    (folder / "model.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"model.json (cannot be read|is not of format 1)"):
        load_model(folder)


def test_what_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist; expected a run folder or its model/"):
        load_model(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="holds no finished model"):
        load_model(tmp_path / "empty")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"model.safetensors cannot be read \(FileNotFoundError\)"):
        load_model(folder)


def test_a_backbone_of_ones_own_is_given_again(tmp_path: Path) -> None:
    model = own_model()
    save_model(model, tmp_path / "model")
    with pytest.raises(ArtifactError, match=r"load it with load_model\(path, stages="):
        load_model(tmp_path / "model")
    with torch.no_grad():
        other = stages()
        other[0][0].weight.zero_()  # type: ignore[index, union-attr, operator]
    loaded = load_model(tmp_path / "model", stages=other)
    pixels = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.logits(pixels), model.logits(pixels))
    with pytest.raises(ArtifactError, match="does not fit"):
        load_model(tmp_path / "model", stages=[nn.Conv2d(3, 5, 3), stages()[1]])
    with pytest.raises(SettingError, match="distinct stages from 0 to 0 expected"):
        load_model(tmp_path / "model", stages=stages()[:1])


def test_tensors_that_are_shared_within_a_stage_are_saved_once(tmp_path: Path) -> None:
    def sharing() -> list[nn.Module]:
        first, last = stages()
        same, tied, part = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
        tied.weight = same.weight
        assert isinstance(same.bias, nn.Parameter)
        part.weight.data, part.bias.data = same.weight.data[0, :, 0, 0], same.weight.data[1, :, 0, 0]  # of its memory
        return [nn.Sequential(first, same, nn.ReLU(), same, tied, part), last]

    model = model_of(as_backbone(sharing(), preprocessing=Preprocessing(40, 32)), (6, 8), (0, 1))
    save_model(model, tmp_path / "model")
    kept = load_file(tmp_path / "model/model.safetensors")
    assert "stages.0.1.weight" in kept and not {"stages.0.3.weight", "stages.0.4.weight"} & kept.keys()
    loaded = load_model(tmp_path / "model", stages=sharing())
    state = loaded.network.state_dict()
    assert all(torch.equal(state[key], value) for key, value in model.network.state_dict().items())
    assert state["stages.0.4.weight"].data_ptr() == state["stages.0.1.weight"].data_ptr()
    save_model(loaded, tmp_path / "again")
    for name in ("model.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()
    alone = nn.Sequential(*sharing()[0].children())  # type: ignore[arg-type]
    alone[4] = nn.Conv2d(6, 6, 1)
    with pytest.raises(ArtifactError, match="does not fit"):
        load_model(tmp_path / "model", stages=[alone, stages()[1]])


def test_a_backbone_of_ones_own_under_another_name(tmp_path: Path) -> None:
    backbone = as_backbone(stages(), preprocessing=Preprocessing(40, 32), name="mine")
    save_model(model_of(backbone, (8,), (1,)), tmp_path / "model")
    with pytest.raises(ArtifactError, match=r"load it with load_model\(path, stages="):
        load_model(tmp_path / "model")


def test_only_a_linear_head_can_be_saved(tmp_path: Path) -> None:
    model = own_model()
    model.network.head = nn.Identity()
    with pytest.raises(ArtifactError, match="this model has a Identity"):
        save_model(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_kill_between_the_two_files_leaves_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("toolkit.artifacts.model_folder.publish_json", killed)
    with pytest.raises(KeyboardInterrupt):
        save_model(own_model(), tmp_path / "model")
    with pytest.raises(ArtifactError, match="holds no finished model"):
        load_model(tmp_path)
