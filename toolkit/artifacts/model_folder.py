"""The model folder: safetensors and JSON that rebuild a TrainedModel and prove that it is the one that was saved."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from toolkit.artifacts.description import (
    DESCRIPTION,
    FORMAT,
    WEIGHTS,
    description_sha256,
    model_folder,
    read_description,
    reading_of,
)
from toolkit.backbones.backbone import Backbone
from toolkit.backbones.catalog import build_backbone
from toolkit.baselines.model import BaselineModel, BaselineNetwork, described, rebuilt
from toolkit.baselines.neighbours import Neighbours
from toolkit.baselines.net import CentredNet
from toolkit.baselines.reading import Reading
from toolkit.data.decode import DECODING_POLICY, EARLIER_POLICIES
from toolkit.errors import ArtifactError, ToolkitError
from toolkit.evaluation.ensemble import Ensemble
from toolkit.heads.linear import LinearHead
from toolkit.heads.votes import NeighbourVotes
from toolkit.plan import FreezeSpec, StageRule
from toolkit.storage import file_sha256, publish_bytes, publish_json
from toolkit.training.network import TransferNetwork
from toolkit.training.trained import TrainedModel

BASELINE = "baseline"  # the kind of a model; others have none
Model = TrainedModel | BaselineModel
GOLDEN_IMAGES = 2
GOLDEN_TOLERANCE = 1e-3  # of the largest score: other CPUs and library versions add up in another order
PACKAGES = ("torch", "torchvision", "timm", "pillow", "numpy", "transfer-toolkit")


def save_model(model: Model, folder: str | os.PathLike[str]) -> None:
    """Write the model folder; the description comes last, so a folder with one is complete."""
    folder = Path(folder)
    described_network = _described(model)
    content = save(_own_tensors(model.network))
    publish_bytes(folder / WEIGHTS, content)
    description: dict[str, Any] = {
        "format": FORMAT,
        "classes": list(model.classes),
        **described_network,
        "preprocessing": model.preprocessing.to_dict(),
        "decoding": {**DECODING_POLICY, "max_pixels": model.max_pixels},
        "versions": {name: _version(name) for name in PACKAGES},
        "sha256": hashlib.sha256(content).hexdigest(),
        "golden_logits": _golden_logits(model).tolist(),
    }
    publish_json(folder / DESCRIPTION, {**description, "description_sha256": description_sha256(description)})


def _own_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a network on the CPU, one that several modules share under its first key alone."""
    tensors = {}
    state = network.state_dict()
    for key in dict.fromkeys(_first_keys(network).values()):
        value = state[key].detach().cpu().contiguous()
        is_part = value.untyped_storage().nbytes() > value.nbytes  # other tensors may lie in the same memory
        tensors[key] = value.clone() if is_part else value
    return tensors


def _first_keys(network: nn.Module) -> dict[str, str]:
    """Return for every key of a state dict the first one that has the very same tensor."""
    first: dict[object, str] = {}
    return {
        key: first.setdefault(
            (value.device, value.data_ptr(), value.dtype, value.shape, value.stride()) if value.numel() else key, key
        )
        for key, value in network.state_dict().items()
    }


def _described(model: Model) -> dict[str, Any]:
    """Return what rebuilds a network before its tensors are loaded."""
    if isinstance(model, BaselineModel):
        reading = model.network.reading
        read = {"on": reading.on, "channels": reading.channels}
        return {"kind": BASELINE, "reading": read, "body": described(model.network.body)}
    rules = model.network.spec.rules
    return {
        **({"kind": BASELINE} if isinstance(model.network.head, (CentredNet, Neighbours)) else {}),
        "backbone": {"name": model.backbone, "weights": model.weights, "layout": model.layout},
        "stages": [{"trainable": rule.trainable, "multiplier": rule.multiplier} for rule in rules],
        "taps": list(model.network.taps),
        "head": _described_head(model.network.head),
    }


def _described_head(head: nn.Module) -> dict[str, Any]:
    """Return what rebuilds a head before its tensors are loaded."""
    if isinstance(head, LinearHead):
        return {"kind": "linear", "widths": list(head.widths)}
    if isinstance(head, NeighbourVotes):
        return {"kind": "neighbours", "widths": list(head.widths), "references": len(head.references)}
    if isinstance(head, (CentredNet, Neighbours)):
        return {"kind": BASELINE, "body": described(head)}
    raise ArtifactError(f"only the toolkit's own heads can be saved, this model has a {type(head).__name__}")


def _rebuilt_head(values: dict[str, Any], n_classes: int) -> nn.Module:
    if values["kind"] == BASELINE:
        return rebuilt(values["body"], n_classes)
    if values["kind"] == "neighbours":
        return NeighbourVotes(values["widths"], n_classes, int(values["references"]))
    return LinearHead(values["widths"], n_classes)


def load_model(path: str | os.PathLike[str], *, stages: Sequence[nn.Module] | None = None) -> Model:
    """Return the model of a run folder or model folder, verified.

    stages: the modules of a user's own backbone, which has no name to be built from. Checks the digests of both
    files, the names and shapes of all tensors, and that the model gives its golden logits again. Raises ArtifactError.
    A model of EARLIER_POLICIES is loaded too: who trained one on what these decode in another way should train again.
    """
    folder = model_folder(path)
    description = read_description(folder)
    try:
        model = _rebuild(description, stages)
        _load_weights(model.network, folder / WEIGHTS, description["sha256"])
        golden = torch.tensor(description["golden_logits"])
    except ToolkitError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise ArtifactError(
            f"{folder / DESCRIPTION} is damaged ({type(error).__name__}: {error}); train again"
        ) from error
    _check_golden(model, golden, folder, description.get("versions", {}))
    return model


def load_ensemble(
    paths: Sequence[str | os.PathLike[str]], *, passes: int | None = None, mirrored: bool = False
) -> Ensemble:
    """Return the models of several folders as one Ensemble; raises ArtifactError, and SettingError if they differ.

    passes: how often each is asked with dropout. mirrored: whether it is asked about mirror images as well.
    """
    models = [load_model(path) for path in paths]
    return Ensemble.of(models, passes=passes, mirrored=mirrored, names=[str(path) for path in paths])


def _rebuild(description: dict[str, Any], stages: Sequence[nn.Module] | None) -> Model:
    """Build the network that a description speaks of, its weights still random."""
    policy = {key: value for key, value in description["decoding"].items() if key != "max_pixels"}
    if policy not in (DECODING_POLICY, *EARLIER_POLICIES):
        raise ArtifactError("this model was trained on images decoded in another way than this version's; train again")
    preprocessing, max_pixels = reading_of(description)
    classes = tuple(description["classes"])
    if "reading" in description:
        read = description["reading"]
        reading = Reading(read["on"], int(read["channels"]), preprocessing.crop_px)
        baseline = BaselineNetwork(reading, rebuilt(description["body"], len(classes)))
        return BaselineModel(baseline, classes, preprocessing, max_pixels)
    named = description["backbone"]
    if stages is not None:
        backbone = Backbone(named["name"], tuple(stages), preprocessing, named["layout"])
    elif named["weights"] == "custom":
        raise ArtifactError("this model has a backbone of your own: load it with load_model(path, stages=[…])")
    else:
        built = build_backbone(named["name"], pretrained=False, image_size_px=preprocessing.crop_px)
        backbone = replace(built, preprocessing=preprocessing)
    rules = tuple(StageRule(bool(rule["trainable"]), float(rule["multiplier"])) for rule in description["stages"])
    head = _rebuilt_head(description["head"], len(classes))
    network = TransferNetwork(backbone, head, FreezeSpec(rules), taps=description["taps"])
    return TrainedModel(network, classes, named["name"], named["weights"], named["layout"], preprocessing, max_pixels)


def _load_weights(network: nn.Module, file: Path, sha256: str) -> None:
    try:
        if file_sha256(file) != sha256:
            raise ArtifactError(
                f"{file} is not the file that was saved (its digest differs); restore it or train again"
            )
        tensors = load_file(file)
        for key, first in _first_keys(network).items():
            if first in tensors:
                tensors.setdefault(key, tensors[first])
        network.load_state_dict(tensors)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{file} cannot be read ({type(error).__name__}); restore it or train again") from error
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise ArtifactError(f"{file} does not fit its description: {first}") from error


def _golden_pixels(size_px: int) -> Tensor:
    """Return uint8 (2, 3, S, S), a fixed input made by whole-number formulas: a slope and a chequered ring."""
    y, x = torch.meshgrid(torch.arange(size_px), torch.arange(size_px), indexing="ij")
    slope = torch.stack([x * 255 // size_px, y * 255 // size_px, (x + y) * 255 // (2 * size_px)])
    rings = ((x - size_px // 2) ** 2 + (y - size_px // 3) ** 2) * 16 // size_px
    chequers = torch.stack([rings, rings * 3 + x // 8 * 40, rings * 5 + y // 8 * 40]) % 256
    return torch.stack([slope, chequers]).to(torch.uint8)


def _golden_logits(model: Model) -> Tensor:
    return model.one_pass(_golden_pixels(model.preprocessing.crop_px))


def _check_golden(model: Model, expected: Tensor, folder: Path, versions: dict[str, str]) -> None:
    found = _golden_logits(model)
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=0, atol=GOLDEN_TOLERANCE * scale):
        changed = [f"{name} {old} → {_version(name)}" for name, old in versions.items() if old != _version(name)]
        raise ArtifactError(
            f"{folder}: the model no longer gives the scores that it gave when it was saved"
            + (f"; since then: {', '.join(changed)}" if changed else "")
        )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
